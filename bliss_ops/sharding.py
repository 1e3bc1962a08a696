"""Shards: how ids name them, the record of a finished one, groups of them, and who works through them.

A mapper runs one worker per process over many shards. `map_locally` does it in this process; `bliss_ops.ray.shards.map_on_ray`
does the same on a cluster. Both give the same files, because a shard's content never depends on who made it.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from pydantic import BaseModel, Field

log = logging.getLogger(__name__)

ROWS_PER_SHARD = 10_000_000  # sequence_id = shard * ROWS_PER_SHARD + row; document_id likewise


class Output(BaseModel):
    """One file of an artifact; `path` is relative to the directory."""

    path: str
    bytes: int
    sha256: str
    rows: int | None = None


class ShardRecord(BaseModel):
    """What one shard's worker wrote: its files and its counts."""

    shard: int
    outputs: list[Output]
    metrics: dict[str, int | float] = Field(default_factory=dict)


Worker = Callable[[int], ShardRecord]


class ShardMapper(Protocol):
    """Runs workers over shards; yields each shard's record as soon as its files are committed, in any order."""

    def __call__(self, make_worker: Callable[[], Worker], shards: Sequence[int], *, description: str) -> Iterator[ShardRecord]: ...


def map_locally(make_worker: Callable[[], Worker], shards: Sequence[int], *, description: str) -> Iterator[ShardRecord]:
    """One worker, in this process, shard after shard."""
    if not shards:
        return
    progress = Progress(description, len(shards))
    worker = make_worker()
    for shard in shards:
        record = worker(shard)
        progress.advance()
        yield record


class Progress:
    """A log line per advance, or every few seconds: `score runs/demo/round-01/scores: 3/12 shards (25%) eta 40s`."""

    def __init__(self, description: str, total: int, unit: str = "shards", *, seconds_between_lines: float = 0.0) -> None:
        self.description, self.total, self.unit = description, total, unit
        self.seconds_between_lines = seconds_between_lines
        self.done = 0
        self.begun = self.last_line = time.monotonic()

    def advance(self) -> None:
        self.done += 1
        now = time.monotonic()
        if now - self.last_line < self.seconds_between_lines and self.done < self.total:
            return
        self.last_line = now
        remaining = (now - self.begun) / self.done * (self.total - self.done)
        log.info(
            "%s: %d/%d %s (%.0f%%) eta %.0fs", self.description, self.done, self.total, self.unit, 100 * self.done / self.total, remaining
        )


def group_shards(shards: Sequence[int], group: int, num_groups: int) -> list[int]:
    """Group number `group` (from 0) of `num_groups`: every num_groups-th shard, so groups are of about equal size.

    Raises:
        ValueError: the group does not exist.
    """
    if not 0 <= group < num_groups:
        raise ValueError(f"group {group} of {num_groups} does not exist: groups count from 0 to {num_groups - 1}")
    return sorted(shards)[group::num_groups]
