"""Ray's Jobs API as the operator needs it: submit under a name of our choosing, follow, stop.

A job's log arrives over one websocket, so a long log is never read twice; its state is asked for beside it. The websocket alone
would report the end of a job up to two seconds late.
"""

import asyncio
import logging
import shlex
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence

log = logging.getLogger(__name__)

POLL_SECONDS = 0.5
AGENT_SECONDS = 60.0  # a busy two-core machine has been seen to take 20
MISSING = "MISSING"  # our word for a job that the cluster does not know
ACTIVE = frozenset({"PENDING", "RUNNING"})
SUCCEEDED = "SUCCEEDED"


class _Ended(Exception):  # noqa: N818 - not an error
    """The end of a log; StopAsyncIteration itself cannot leave a coroutine."""


class RayJobs:
    """Jobs of one Ray cluster, addressed by submission id."""

    def __init__(self, address: str) -> None:
        """Connect to the Jobs API at `address` (http://host:port); where RAY_ADDRESS is set, Ray's client prefers that.

        Raises:
            ConnectionError: nobody answers there; the message says what to start.
        """
        from ray.job_submission import JobSubmissionClient

        self.address = address
        try:
            self._client: JobSubmissionClient = JobSubmissionClient(address)
        except ConnectionError as error:
            raise ConnectionError(f"no Ray Jobs API answers at {address}: is the Ray head running (`bliss up`)? ({error})") from error

    def submit(
        self,
        submission_id: str,
        command: Sequence[str],
        *,
        env_vars: Mapping[str, str] | None = None,
        num_cpus: float = 0,
        num_gpus: float = 0,
    ) -> None:
        """Start `command` (an argument list: each element reaches the process as it is) as job `submission_id`.

        A head that has just started may not have its job agent yet; it is waited for, since nothing was submitted then.
        """
        deadline = time.monotonic() + AGENT_SECONDS
        while True:
            try:
                self._client.submit_job(
                    entrypoint=shlex.join(command),
                    submission_id=submission_id,
                    runtime_env={"env_vars": dict(env_vars)} if env_vars else None,
                    entrypoint_num_cpus=num_cpus or None,
                    entrypoint_num_gpus=num_gpus or None,
                )
                return
            except RuntimeError as error:
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise
                log.info("%s: the Ray head at %s has no job agent yet, waiting", submission_id, self.address)
                time.sleep(1.0)

    def status(self, submission_id: str) -> str:
        """PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED, or MISSING."""
        try:
            return str(self._client.get_job_status(submission_id).value)
        except RuntimeError as error:
            if "404" in str(error) or "does not exist" in str(error):
                return MISSING
            raise

    def message(self, submission_id: str) -> str:
        """What Ray says about the job's state, such as why it could not start."""
        return self._client.get_job_info(submission_id).message or ""

    def stop(self, submission_id: str) -> None:
        """Ask the job to end; does nothing when it is not running."""
        if self.status(submission_id) in ACTIVE:
            self._client.stop_job(submission_id)

    def follow(self, submission_id: str) -> Iterator[str]:
        """The job's log lines from the first on, as they are written; returns when the job has ended."""
        chunks = self._follow(submission_id)
        pending = ""
        with asyncio.Runner() as runner:
            try:
                while True:
                    try:
                        pending += runner.run(_next(chunks))
                    except _Ended:
                        break
                    *lines, pending = pending.split("\n")
                    yield from lines
            finally:
                runner.run(_close(chunks))
        if pending:
            yield pending

    async def _follow(self, submission_id: str) -> AsyncIterator[str]:
        tail = self._client.tail_job_logs(submission_id)
        arriving = asyncio.ensure_future(_next(tail))
        received = 0
        ended = False
        try:
            while not ended:
                await asyncio.wait({arriving}, timeout=POLL_SECONDS)
                if arriving.done():
                    if isinstance(arriving.exception(), _Ended | RuntimeError):  # the websocket closed: read the rest below
                        while self.status(submission_id) in ACTIVE:
                            await asyncio.sleep(POLL_SECONDS)
                        break
                    chunk = arriving.result()
                    received += len(chunk)
                    yield chunk
                    arriving = asyncio.ensure_future(_next(tail))
                ended = self.status(submission_id) not in ACTIVE
        finally:
            arriving.cancel()
            await asyncio.wait({arriving})
        if rest := self._client.get_job_logs(submission_id)[received:]:
            yield rest


async def _next(iterator: AsyncIterator[str]) -> str:
    try:
        return await anext(iterator)
    except StopAsyncIteration:
        raise _Ended from None


async def _close(iterator: AsyncIterator[str]) -> None:
    await iterator.aclose()  # type: ignore[attr-defined]
