"""A job's log as it is written, and its end, without reading anything twice.

The log arrives over one websocket; the job's state is asked for beside it, because the websocket alone would tell the end of a job up to
two seconds late. State is asked for often at first and more seldom as a job lasts. A connection that breaks is made again, and what had
been received is skipped. A head that is away is waited for, for a bounded time. The job's outcome never hangs on its log.

A job whose process is frozen looks like one that works. So a job may be given a time within which it has to log something, else it is
stopped.
"""

import asyncio
import contextlib
import contextvars
import http
import logging
import math
import queue
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any

from bliss_ops.ray.jobs import HEAD_WAIT_SECONDS, REQUEST_SECONDS, Job, RayJobs, RayUnreachable, UnknownJob, as_job

if TYPE_CHECKING:
    import aiohttp

log = logging.getLogger(__name__)

LEAST_POLL_SECONDS, MOST_POLL_SECONDS = 0.2, 5.0
POLLS_PER_DURATION = 20  # a job's end is seen late by at most a twentieth of its duration
HEARTBEAT_SECONDS = 30.0  # of the websocket: a head that is frozen is noticed
RECONNECT_SECONDS = 2.0
SMALL_LOG_CHARS = 1_000_000  # a short log is read whole at the end, at once; the end of a long one is waited for
DRAIN_SECONDS = 10.0  # the websocket looks at the file once or twice a second
MOST_LINE_CHARS = 64_000
MOST_LINES_AHEAD = 10_000  # of whoever reads them
MOST_MESSAGE_BYTES = 64 << 20  # Ray sends ten lines at a time, however long they are


class Following:
    """One look at one job from now to its end; `job` is what was last known of it, None where there is no record.

    Args:
        jobs: the cluster.
        submission_id: the job.
        head_wait_seconds: how long a head that does not answer is waited for.
        silence_seconds: how long the running job may log nothing before it is stopped; None: for ever.
    """

    def __init__(
        self,
        jobs: RayJobs,
        submission_id: str,
        *,
        head_wait_seconds: float = HEAD_WAIT_SECONDS,
        silence_seconds: float | None = None,
    ) -> None:
        self.job: Job | None = None
        self._jobs = jobs
        self._submission_id = submission_id
        self._head_wait_seconds = head_wait_seconds
        self._silence_seconds = silence_seconds
        self._has_begun = asyncio.Event()
        self._num_received = 0  # characters
        self._heard = math.inf  # when something was received last; before the job has begun, it owes nothing
        self._num_logged = 0  # characters, when that was last asked for
        self._was_silenced = False

    async def lines(self) -> AsyncIterator[str]:
        """The log's lines, until the job has ended or the cluster has no record of it.

        Raises:
            RayUnreachable: the head was away for longer than it is waited for.
        """
        pending = ""
        async for chunk in self._chunks():
            pending += chunk
            *lines, pending = pending.split("\n")
            for line in lines:
                yield line
            if len(pending) > MOST_LINE_CHARS:
                yield pending
                pending = ""
        if pending:
            yield pending
        if self._was_silenced:
            yield f"nothing was logged for {self._silence_seconds:.0f} s: the job was stopped"

    async def _chunks(self) -> AsyncIterator[str]:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=REQUEST_SECONDS)
        async with aiohttp.ClientSession(self._jobs.address, headers=self._jobs.headers, timeout=timeout) as session:
            arrived: asyncio.Queue[str | None] = asyncio.Queue(maxsize=100)
            watching = asyncio.create_task(self._watch(session))
            reading = asyncio.create_task(self._read(session, arrived))
            getting = asyncio.create_task(arrived.get())
            try:
                while not watching.done():
                    await asyncio.wait({getting, watching} | ({reading} - _done(reading)), return_when=asyncio.FIRST_COMPLETED)
                    for ended in _done(reading, getting):
                        ended.result()  # raises what nobody expects
                    if not getting.done():
                        continue
                    if (chunk := getting.result()) is None:  # the log has ended, so the job has or is about to
                        await asyncio.wait({watching})
                        break
                    yield chunk
                    getting = asyncio.create_task(arrived.get())
                watching.result()
                if not getting.done():
                    getting.cancel()
                    async for chunk in self._rest(session, arrived, reading):
                        yield chunk
            finally:
                for task in (watching, reading, getting):
                    task.cancel()
                await asyncio.wait({watching, reading, getting})

    async def _watch(self, session: "aiohttp.ClientSession") -> None:
        """Returns when the job has ended or is gone."""
        began = time.monotonic()
        away_since: float | None = None
        while True:
            try:
                self.job = await self._details(session)
            except RayUnreachable as error:
                if away_since is None:
                    away_since = time.monotonic()
                    log.warning("%s; waiting up to %.0f s for it", error, self._head_wait_seconds)
                if time.monotonic() - away_since > self._head_wait_seconds:
                    raise RayUnreachable(f"{error}; waited {self._head_wait_seconds:.0f} s") from error
            else:
                away_since = None
                if self.job is None or not self.job.is_active:
                    return
                if self.job.status == "RUNNING" and not self._has_begun.is_set():
                    log.info("Ray job %s is running", self._submission_id)
                    self._has_begun.set()
                    self._heard = time.monotonic()
                if self._silence_seconds is not None and time.monotonic() - self._heard > self._silence_seconds:
                    await self._stop_if_silent(session)
            seconds = (time.monotonic() - began) / POLLS_PER_DURATION
            await asyncio.sleep(min(MOST_POLL_SECONDS, max(LEAST_POLL_SECONDS, seconds)))

    async def _stop_if_silent(self, session: "aiohttp.ClientSession") -> None:
        """The log is read once more, whole: its connection may be what has failed."""
        path = self._jobs.path(self._submission_id)
        with contextlib.suppress(RayUnreachable, UnknownJob):
            num_logged = len((await self._ask(session, f"{path}/logs"))["logs"])
            self._heard = time.monotonic()
            is_silent = num_logged <= max(self._num_received, self._num_logged)
            self._num_logged = num_logged
            if is_silent:
                log.warning("Ray job %s has logged nothing for %.0f s: stopping it", self._submission_id, self._silence_seconds)
                await self._ask(session, f"{path}/stop", method="POST")
                self._was_silenced = True

    async def _details(self, session: "aiohttp.ClientSession") -> Job | None:
        try:
            return as_job(await self._ask(session, self._jobs.path(self._submission_id)))
        except UnknownJob:
            return None

    async def _ask(self, session: "aiohttp.ClientSession", path: str, *, method: str = "GET") -> Any:
        import aiohttp

        try:
            async with asyncio.timeout(REQUEST_SECONDS), session.request(method, path) as response:
                if response.status != http.HTTPStatus.OK:
                    raise self._jobs.problem(response.status, await response.text())
                return await response.json()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise self._jobs.unreachable(error) from error

    async def _read(self, session: "aiohttp.ClientSession", arrived: "asyncio.Queue[str | None]") -> None:
        """Put what is new in the log into `arrived`, then None at its end."""
        import aiohttp

        await self._has_begun.wait()
        while True:
            num_to_skip = self._num_received
            try:
                tail = f"{self._jobs.path(self._submission_id)}/logs/tail"
                async with session.ws_connect(tail, heartbeat=HEARTBEAT_SECONDS, max_msg_size=MOST_MESSAGE_BYTES) as socket:
                    async for message in socket:
                        if message.type is not aiohttp.WSMsgType.TEXT:
                            break
                        new = message.data[num_to_skip:]
                        num_to_skip -= len(message.data) - len(new)
                        if new:
                            await arrived.put(new)
                            self._num_received += len(new)
                            self._heard = time.monotonic()
                job = await self._details(session)
                if job is None or not job.is_active:
                    await arrived.put(None)
                    return
                log.info("the log's connection was closed (%s)", socket.close_code)
            except (aiohttp.ClientError, OSError) as error:  # RayUnreachable is one
                log.info("the log's connection was lost: %r", error)
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _rest(
        self, session: "aiohttp.ClientSession", arrived: "asyncio.Queue[str | None]", reading: "asyncio.Task[None]"
    ) -> AsyncIterator[str]:
        """What the log holds beyond what was handed on when the job's end was seen."""
        if self.job is None:
            return
        if self._num_received > SMALL_LOG_CHARS:
            with contextlib.suppress(TimeoutError):  # one that was far behind: the rest is read whole, after all
                async with asyncio.timeout(DRAIN_SECONDS):
                    while (chunk := await arrived.get()) is not None:
                        yield chunk
                    return
        reading.cancel()
        await asyncio.wait({reading})
        while not arrived.empty():
            if (chunk := arrived.get_nowait()) is None:
                return
            yield chunk
        try:
            yield (await self._ask(session, f"{self._jobs.path(self._submission_id)}/logs"))["logs"][self._num_received :]
        except (RayUnreachable, UnknownJob) as error:
            log.warning("the end of the log of %s could not be read: %s", self._submission_id, error)


def follow(
    jobs: RayJobs, submission_id: str, *, head_wait_seconds: float = HEAD_WAIT_SECONDS, silence_seconds: float | None = None
) -> Iterator[str]:
    """A job's log lines from the first on, for callers without an event loop; ends when the job has (arguments: `Following`).

    The loop is in a thread of its own: a timeout or a kill of a task is an exception that a signal raises in the main thread, wherever
    that is, and within a loop it would end up in any of its tasks.
    """
    following = Following(jobs, submission_id, head_wait_seconds=head_wait_seconds, silence_seconds=silence_seconds)
    arrived: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    loop = asyncio.new_event_loop()

    async def read() -> None:
        async for line in following.lines():
            arrived.put(line)
            while arrived.qsize() > MOST_LINES_AHEAD:
                await asyncio.sleep(LEAST_POLL_SECONDS)

    def run() -> None:
        try:
            loop.run_until_complete(asyncio.wait({task}))
        finally:
            arrived.put(None)

    task = loop.create_task(read())
    thread = threading.Thread(target=contextvars.copy_context().run, args=(run,), name="following", daemon=True)
    thread.start()
    try:
        while (line := arrived.get()) is not None:
            yield line
        task.result()
    finally:
        loop.call_soon_threadsafe(task.cancel)
        thread.join()
        loop.close()


def _done(*tasks: "asyncio.Task[Any]") -> "set[asyncio.Task[Any]]":
    """Those that are."""
    return {task for task in tasks if task.done()}
