"""Shards over a pool of Ray actors: each actor makes its worker once (loads the model once), then works shard after shard.

The driver hands an actor its next shard only when the last one is committed, so a dead actor costs one shard. A lost shard is
tried again on a fresh actor, three times in all; each attempt is logged. What a worker raises ends the whole map: a ValueError
comes out as that ValueError, so the command line shows the worker's own message.
"""

import logging
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from bliss_ops.sharding import Progress, Worker

if TYPE_CHECKING:
    from bliss_ops.sharding import ShardRecord

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3


def map_on_ray(make_worker: Callable[[], Worker], shards: Sequence[int], *, description: str) -> "Iterator[ShardRecord]":
    """The `ShardMapper` of a cluster: runs `make_worker()` in every actor and yields records in the order they are finished.

    Args:
        make_worker: picklable, such as a partial of a module's function with plain arguments.
        shards: the shards to make; none means that Ray is not even connected to.
        description: what the progress lines begin with.

    Raises:
        ValueError, OSError: raised by a worker, with its own message.
        RuntimeError: a shard's actor died MAX_ATTEMPTS times.
    """
    if not shards:
        return
    import ray

    connected_here = not ray.is_initialized()
    if connected_here:
        ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), log_to_driver=True, logging_level=logging.WARNING)
    try:
        yield from _map(make_worker, shards, description)
    finally:
        if connected_here:
            ray.shutdown()


def _map(make_worker: Callable[[], Worker], shards: Sequence[int], description: str) -> "Iterator[ShardRecord]":
    import ray

    per_actor, num_actors = _pool(len(shards))
    actor_class = ray.remote(**per_actor)(_ShardActor)
    start = actor_class.remote
    waiting = deque(shards)
    attempts = dict.fromkeys(shards, 0)
    working: dict[Any, tuple[Any, int]] = {}  # result reference -> its actor and shard

    def give_next(actor: Any) -> None:
        if waiting:
            shard = waiting.popleft()
            attempts[shard] += 1
            working[actor.work.remote(shard)] = (actor, shard)
        else:
            ray.kill(actor)

    progress = Progress(description, len(shards))
    log.info("%s: %d shards on %d actors", description, len(shards), num_actors)
    try:
        for _ in range(num_actors):
            give_next(start(make_worker))
        while working:
            (done,), _ = ray.wait(list(working), num_returns=1)
            actor, shard = working.pop(done)
            try:
                record = ray.get(done)
            except ray.exceptions.RayTaskError as error:
                raise _as_raised(error) from None
            except ray.exceptions.RayActorError as error:
                log.warning(
                    "%s: the actor of shard %d died (attempt %d of %d): %s",
                    description,
                    shard,
                    attempts[shard],
                    MAX_ATTEMPTS,
                    _first_line(error),
                )
                if attempts[shard] >= MAX_ATTEMPTS:
                    raise RuntimeError(
                        f"{description}: shard {shard} ended {MAX_ATTEMPTS} actors; is the memory enough? {_first_line(error)}"
                    ) from error
                waiting.appendleft(shard)
                give_next(start(make_worker))
                continue
            progress.advance()
            give_next(actor)
            yield record
    finally:
        for actor, _ in working.values():
            ray.kill(actor)


class _ShardActor:
    """One worker process: makes its worker before the first shard."""

    def __init__(self, make_worker: Callable[[], Worker]) -> None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
        self._make_worker = make_worker
        self._worker: Worker | None = None

    def work(self, shard: int) -> "ShardRecord":
        if self._worker is None:  # here and not in __init__, so that an error keeps its own type
            self._worker = self._make_worker()
        return self._worker(shard)


def _pool(num_shards: int) -> tuple[dict[str, Any], int]:
    """What one actor claims, and how many actors to start: one per GPU where the cluster has any, else one per CPU."""
    import ray

    total: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    if num_gpus := int(total.get("GPU", 0)):
        return {"num_gpus": 1, "num_cpus": 0}, min(num_shards, num_gpus)
    return {"num_cpus": 1}, min(num_shards, max(1, int(total.get("CPU", 1))))


def _as_raised(error: Any) -> BaseException:
    """The worker's own ValueError or OSError; for anything else Ray's error, which carries the remote traceback."""
    cause = error.cause
    return cause if isinstance(cause, ValueError | OSError) else error


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
