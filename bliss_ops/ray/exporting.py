"""Numbers of work (gauges.py) as Ray's own metrics: every node's agent offers them to Prometheus beside those of the node.

Only where BLISS_METRICS is 1: a training job has to connect to Ray for it, which costs a second or two.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from bliss_ops import gauges

if TYPE_CHECKING:
    from ray.util.metrics import Counter, Gauge

WANTED = "BLISS_METRICS"
PREFIX = "bliss_"  # Ray puts `ray_` before it, and `_total` behind a counter


class RaySink:
    """Sends numbers to this node's agent; the process is connected to Ray."""

    def __init__(self) -> None:
        from ray.util import metrics

        tags = gauges.TAGS
        self._counters: dict[str, Counter] = {
            name: metrics.Counter(PREFIX + name, description=text, tag_keys=tags) for name, text in gauges.COUNTERS.items()
        }
        self._gauges: dict[str, Gauge] = {
            name: metrics.Gauge(PREFIX + name, description=text, tag_keys=tags) for name, text in gauges.GAUGES.items()
        }
        self._nothing = dict.fromkeys(tags, "")  # Ray wants a value for every tag

    def __call__(self, name: str, value: float, tags: gauges.Tags) -> None:
        values = self._nothing | dict(tags)
        if name in self._gauges:
            self._gauges[name].set(value, tags=values)
        elif value > 0:
            self._counters[name].inc(value, tags=values)


def is_wanted() -> bool:
    return os.environ.get(WANTED) == "1"


def begin() -> None:
    """From now on the numbers of this process, which is an actor or a training worker, are Ray's metrics."""
    if is_wanted():
        gauges.export_to(RaySink())


@contextmanager
def exported() -> Iterator[None]:
    """Inside, the numbers of this process, which is a job's own, are Ray's metrics; it is connected to Ray for that where it is not."""
    if not is_wanted():
        yield
        return
    import ray

    connected_here = not ray.is_initialized()
    if connected_here:
        ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), log_to_driver=True, logging_level=logging.WARNING)
    begin()
    try:
        yield
    finally:
        gauges.export_to(None)
        if connected_here:
            ray.shutdown()


class ShardNumbers:
    """Counts what one worker does for one artifact, described as `<stage> <address>`."""

    def __init__(self, description: str) -> None:
        stage, _, address = description.partition(" ")
        self._tags = gauges.tags_of(address, stage)
        self._num_tokens: dict[int, int] = {}  # counted so far of shards in work

    def partly(self, shard: int, num_tokens: int) -> None:
        """A shard in work is that far."""
        gauges.emit("tokens", num_tokens - self._num_tokens.get(shard, 0), self._tags)
        self._num_tokens[shard] = num_tokens

    def finish(self, record: Any) -> None:
        """A shard is done."""
        counted = self._num_tokens.pop(record.shard, 0)
        gauges.emit("tokens", record.metrics.get("num_tokens", counted) - counted, self._tags)
        gauges.emit("rows", sum(output.rows or 0 for output in record.outputs), self._tags)
        gauges.emit("shards", 1, self._tags)
