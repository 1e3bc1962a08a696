"""Shards: how ids name them, the record of a finished one, groups of them, and who works through them.

A mapper runs one worker per process over many shards. `map_locally` does it in this process; `bliss_ops.ray.shards.map_on_ray`
does the same on a cluster. Both give the same files, because a shard's content never depends on who made it. A worker that reports
how far it is inside a shard is seen to move every few seconds, also where a shard takes an hour.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any, Protocol

from pydantic import BaseModel, Field

log = logging.getLogger(__name__)

ROWS_PER_SHARD = 10_000_000  # sequence_id = shard * ROWS_PER_SHARD + row; document_id likewise
SECONDS_BETWEEN_LINES = 3.0

Metrics = dict[str, Any]


class Output(BaseModel):
    """One file of an artifact; `path` is relative to the directory."""

    path: str
    bytes: int
    sha256: str
    rows: int | None = None


class Cost(BaseModel):
    """What work took (metering.py)."""

    seconds: float = 0.0  # from beginning to end; of shards, one after another
    device_seconds: float = 0.0  # summed over the processes that worked at the same time, each on its GPU or CPU
    cpu_seconds: float = 0.0
    peak_memory_bytes: int = 0  # of the largest process
    peak_gpu_memory_bytes: int | None = None  # allocated by torch; None where no GPU was in use
    device: str = ""
    num_workers: int = 1  # the most processes that shared the work


class ShardRecord(BaseModel):
    """What one shard's worker wrote: its files and its counts."""

    shard: int
    outputs: list[Output]
    metrics: dict[str, int | float] = Field(default_factory=dict)
    cost: Cost | None = None


Worker = Callable[[int], ShardRecord]


class ShardMapper(Protocol):
    """Runs workers over shards; yields each shard's record as soon as its files are committed, in any order.

    A worker that says so by `in_flight` is given that many shards at once, each in a thread of its own: it computes one while it reads
    the next and writes the last. One that runs a model says so by `on_gpu`.
    """

    def __call__(
        self, make_worker: Callable[[], Worker], shards: Sequence[int], *, description: str, in_flight: int = 1, on_gpu: bool = False
    ) -> Iterator[ShardRecord]: ...


def map_locally(
    make_worker: Callable[[], Worker],
    shards: Sequence[int],
    *,
    description: str,
    in_flight: int = 1,
    on_gpu: bool = False,  # noqa: ARG001 - the worker takes what this machine has
) -> Iterator[ShardRecord]:
    """One worker, in this process, shard after shard."""
    if not shards:
        return
    worker = make_worker()
    progress = Progress(description, len(shards))

    def work(shard: int) -> ShardRecord:
        with reporting_to(lambda share, num_tokens: progress.partly({shard: (share, num_tokens)})):
            return worker(shard)

    if in_flight == 1:
        for shard in shards:
            record = work(shard)
            progress.finish(record)
            yield record
        return
    with ThreadPoolExecutor(in_flight) as threads:
        working = [threads.submit(work, shard) for shard in shards]
        try:
            for done in as_completed(working):
                record = done.result()
                progress.finish(record)
                yield record
        finally:  # an error or an interrupt: what is not begun never begins, what has begun ends at its next report
            progress.is_stopped = True
            threads.shutdown(wait=False, cancel_futures=True)


class Stopped(Exception):  # noqa: N818 - an order, not an error
    """Raised inside a worker whose mapper has ended."""


Part = tuple[float, int]  # how much of a shard is done, from 0 to 1, and how many tokens that is
_report: ContextVar[Callable[[float, int], None] | None] = ContextVar("report", default=None)


@contextmanager
def reporting_to(take: Callable[[float, int], None]) -> Iterator[None]:
    """Inside, `report_part` of this thread calls `take`."""
    token = _report.set(take)
    try:
        yield
    finally:
        _report.reset(token)


def report_part(share: float, num_tokens: int) -> None:
    """A worker in the middle of a long shard says how far it is; whoever runs it shows that."""
    if take := _report.get():
        take(share, num_tokens)


class Progress:
    """A log line per finished part, and one every few seconds: `score runs/demo/round-01/scores: 3/12 shards (27%) 412k tok/s eta 40s`."""

    def __init__(self, description: str, total: int, unit: str = "shards", *, seconds_between_lines: float = 0.0) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.seconds_between_lines = seconds_between_lines
        self.done = 0
        self.is_stopped = False
        self._parts: dict[int, Part] = {}  # of shards that are not finished
        self._num_tokens = 0  # of those that are
        self._lock = Lock()
        self.begun = self.last_line = time.monotonic()

    def advance(self) -> None:
        self._advance(None, 0)

    def finish(self, record: ShardRecord) -> None:
        """`advance` by a shard."""
        self._advance(record.shard, int(record.metrics.get("num_tokens", 0)))

    def partly(self, parts: dict[int, Part]) -> None:
        """How far shards are that are being worked on."""
        with self._lock:
            if self.is_stopped:
                raise Stopped
            self._parts |= parts
            if time.monotonic() - self.last_line >= SECONDS_BETWEEN_LINES:
                self._line()

    def _advance(self, shard: int | None, num_tokens: int) -> None:
        with self._lock:
            self.done += 1
            self._num_tokens += num_tokens
            if shard is not None:
                self._parts.pop(shard, None)
            if time.monotonic() - self.last_line >= self.seconds_between_lines or self.done == self.total:
                self._line()

    def _line(self) -> None:
        self.last_line = time.monotonic()
        seconds = max(self.last_line - self.begun, 1e-9)
        done = self.done + sum(share for share, _ in self._parts.values())
        num_tokens = self._num_tokens + sum(count for _, count in self._parts.values())
        rate = f" {num_tokens / seconds / 1000:.0f}k tok/s" if num_tokens else ""
        eta = f" eta {seconds / done * (self.total - done):.0f}s" if done else ""
        log.info("%s: %d/%d %s (%.0f%%)%s%s", self.description, self.done, self.total, self.unit, 100 * done / self.total, rate, eta)


def sum_metrics(records: Iterable[ShardRecord]) -> Metrics:
    """Counts of all shards, added up by name."""
    totals: Metrics = {}
    for record in records:
        for name, value in record.metrics.items():
            totals[name] = totals.get(name, 0) + value
    return totals


def group_shards(shards: Sequence[int], group: int, num_groups: int) -> list[int]:
    """Group number `group` (from 0) of `num_groups`: every num_groups-th shard, so groups are of about equal size.

    Raises:
        ValueError: the group does not exist.
    """
    if not 0 <= group < num_groups:
        raise ValueError(f"group {group} of {num_groups} does not exist: groups count from 0 to {num_groups - 1}")
    return sorted(shards)[group::num_groups]
