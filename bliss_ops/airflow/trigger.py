"""Follows a Ray job in Airflow's triggerer, where many wait at little cost, and says how it ended.

The log's lines become the trigger's log, which Airflow shows as the task's. A triggerer that starts again follows the job again, from the
log's first line. Airflow calls `on_kill` when a user acts on the task or its DAG run ends without it, but also when a triggerer that had
been frozen finds that another one has taken over: so the task's state is asked for before the job is stopped. The first such question
makes a triggerer import Airflow's API, which has been seen to take longer than the 30 s that Airflow gives `on_kill` on a busy machine;
so it is put when the trigger starts, and an answer that does not come in time stands for a user's act, which is the likelier one.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowRuntimeError
from airflow.triggers.base import BaseTrigger, TriggerEvent

from bliss_ops.airflow.owner import Owner
from bliss_ops.ray.jobs import MISSING, Job, RayJobs, RayUnreachable

if TYPE_CHECKING:
    from airflow.sdk import Connection

DEFAULT_PORT = 8265
UNREACHABLE = "UNREACHABLE"  # our word for a job of which nothing could be learned in time
STATE_SECONDS = STOP_SECONDS = 10.0  # Airflow gives on_kill 30
MOST_LINE_CHARS = 2000  # of a line in an error


@dataclass(frozen=True)
class Outcome:
    """How a job ended."""

    submission_id: str
    status: str
    message: str = ""
    last_lines: list[str] = field(default_factory=list)


class RayJobTrigger(BaseTrigger):
    """Fires once, with the `Outcome` of a Ray job.

    Args:
        submission_id: the job.
        conn_id: the connection to its cluster.
        head_wait_seconds: how long a head that does not answer is waited for.
        num_lines: how many last lines of the log the event carries.
        owner: the task that waits, as a mapping.
        silence_seconds: how long the running job may log nothing before it is stopped; None: for ever.
    """

    def __init__(
        self,
        submission_id: str,
        conn_id: str,
        head_wait_seconds: float,
        num_lines: int,
        owner: dict[str, Any],
        silence_seconds: float | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.submission_id = submission_id
        self.conn_id = conn_id
        self.head_wait_seconds = head_wait_seconds
        self.num_lines = num_lines
        self.owner = owner
        self.silence_seconds = silence_seconds
        self._jobs: RayJobs | None = None

    def serialize(self) -> tuple[str, dict[str, Any]]:
        names = ("submission_id", "conn_id", "head_wait_seconds", "num_lines", "owner", "silence_seconds")
        return f"{__name__}.RayJobTrigger", {name: getattr(self, name) for name in names}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        from bliss_ops.ray.following import Following

        self._jobs = as_client(await BaseHook.aget_connection(self.conn_id))
        asking = asyncio.create_task(self._is_taken_over())
        following = Following(
            self._jobs, self.submission_id, head_wait_seconds=self.head_wait_seconds, silence_seconds=self.silence_seconds
        )
        last_lines: deque[str] = deque(maxlen=self.num_lines)
        try:
            async for line in following.lines():
                self.log.info("%s", line)
                if line.strip():
                    last_lines.append(short(line))
            outcome = outcome_of(self.submission_id, following.job, last_lines)
        except RayUnreachable as error:
            outcome = Outcome(self.submission_id, UNREACHABLE, str(error))
        finally:
            asking.cancel()
        yield TriggerEvent(asdict(outcome))  # type: ignore[no-untyped-call]

    async def on_kill(self) -> None:
        """Stop the job, unless the task still waits for it: then another triggerer has taken over."""
        if self._jobs is None:
            self._jobs = as_client(await BaseHook.aget_connection(self.conn_id))
        if await self._is_taken_over():
            self.log.info("another triggerer follows Ray job %s now", self.submission_id)
            return
        self.log.info("stopping Ray job %s", self.submission_id)
        try:
            await asyncio.to_thread(self._jobs.stop, self.submission_id, timeout_seconds=STOP_SECONDS)
        except ConnectionError as error:
            self.log.warning("Ray job %s could not be stopped, the reconciliation will: %s", self.submission_id, error)

    async def _is_taken_over(self) -> bool:
        """Whether the task still waits for the job, although this trigger was cancelled."""
        try:
            return await asyncio.wait_for(asyncio.to_thread(Owner(**self.owner).state), STATE_SECONDS) == "deferred"
        except (TimeoutError, AirflowRuntimeError) as error:
            self.log.warning("the state of %s cannot be learned: %s", Owner(**self.owner), error or f"no answer in {STATE_SECONDS:.0f} s")
            return False


def as_client(connection: "Connection") -> RayJobs:
    """The Jobs API that a connection stands for; its password is the token."""
    scheme = connection.schema or ("https" if connection.conn_type == "https" else "http")
    return RayJobs(f"{scheme}://{connection.host}:{connection.port or DEFAULT_PORT}", token=connection.password)


def outcome_of(submission_id: str, job: Job | None, last_lines: Iterable[str]) -> Outcome:
    """How a job that is not followed any more has ended."""
    if job is None:
        return Outcome(submission_id, MISSING)
    return Outcome(submission_id, job.status, job.message, list(last_lines))


def short(line: str) -> str:
    """A line of a log for an error message."""
    return line if len(line) <= MOST_LINE_CHARS else f"{line[:MOST_LINE_CHARS]}..."
