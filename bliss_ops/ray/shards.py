"""Shards over a pool of Ray actors: each actor makes its worker once (loads the model once), then works shard after shard.

The driver hands an actor its next shard only when one is committed, so a dead actor costs the shards it had in work. They are tried
again on fresh actors, one at a time, three times in all; each attempt is logged. An actor that says nothing for five minutes counts as
dead: it is frozen. What a worker raises ends the whole map: a ValueError comes out as that ValueError, so the command line shows the
worker's own message.

Actors are spread over the nodes, and only one that has begun to run is given shards: those there is no room for yet, because other jobs
work or a node is still coming, hold nothing up, and tell an autoscaler what is wanted. The head has no CPUs and gets none of them.
"""

import logging
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any

from bliss_ops.ray import exporting
from bliss_ops.sharding import SECONDS_BETWEEN_LINES, Part, Progress, Worker, reporting_to

if TYPE_CHECKING:
    from bliss_ops.sharding import ShardRecord

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
ANSWER_SECONDS = 1.0  # an actor answers beside its work
STALL_SECONDS = "BLISS_STALL_SECONDS"  # how long one may not answer: then its process is frozen, or its node on its way out
MAX_ACTORS = "BLISS_MAX_ACTORS"  # in the environment of Ray's nodes: actors that a job may ask for beyond the room there is
GPU_NODES = "BLISS_GPU_NODES"  # there too: 1 where nodes with GPUs are added on demand


def map_on_ray(
    make_worker: Callable[[], Worker], shards: Sequence[int], *, description: str, in_flight: int = 1, on_gpu: bool = False
) -> "Iterator[ShardRecord]":
    """The `ShardMapper` of a cluster: runs `make_worker()` in every actor and yields records in the order they are finished.

    Args:
        make_worker: picklable, such as a partial of a module's function with plain arguments.
        shards: the shards to make; none means that Ray is not even connected to.
        description: what the progress lines begin with.
        in_flight: shards that an actor has at a time.
        on_gpu: whether each actor wants a GPU where the cluster has any.

    Raises:
        ValueError, OSError: raised by a worker, with its own message.
        RuntimeError: a shard's actor died or froze MAX_ATTEMPTS times, or that many in a row before they had begun.
    """
    if not shards:
        return
    import ray

    connected_here = not ray.is_initialized()
    if connected_here:
        ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), log_to_driver=True, logging_level=logging.WARNING)
    try:
        yield from _map(make_worker, shards, description, in_flight, on_gpu=on_gpu)
    finally:
        if connected_here:
            ray.shutdown()


def _map(
    make_worker: Callable[[], Worker], shards: Sequence[int], description: str, in_flight: int, *, on_gpu: bool
) -> "Iterator[ShardRecord]":
    import ray

    per_actor, num_actors = _pool(len(shards), on_gpu=on_gpu)
    per_actor |= {"max_concurrency": in_flight + 1}  # a thread for each shard, and one that says how far they are
    actor_class: Any = ray.remote(**per_actor, scheduling_strategy="SPREAD")(_ShardActor)
    waiting = deque(shards)
    attempts = Counter[int]()
    beginning: dict[Any, Any] = {}  # reference that says that an actor runs -> the actor
    working: dict[Any, tuple[Any, int]] = {}  # result reference -> its actor and shard
    num_unanswered = Counter[Any]()  # questions in a row, by actor
    stall_seconds = float(os.environ.get(STALL_SECONDS, "300"))
    num_lost_in_a_row = 0

    def begin() -> None:
        actor = actor_class.remote(make_worker, description)
        beginning[actor.parts.remote()] = actor

    def in_work(actor: Any) -> list[int]:
        return [shard for other, shard in working.values() if other == actor]

    def fill(actor: Any) -> None:
        """As many shards in work as it takes; a second one when there is one for every actor that is still to begin. One whose actor has
        died is worked on alone, so that nobody else is blamed for its next death."""
        while waiting and len(has := in_work(actor)) < in_flight:
            if has and (len(waiting) <= len(beginning) or attempts[has[0]] > 1 or attempts[waiting[0]]):
                break
            shard = waiting.popleft()
            attempts[shard] += 1
            working[actor.work.remote(shard)] = (actor, shard)
        if not in_work(actor):
            ray.kill(actor)

    def lost(actor: Any, shard: int, error: BaseException) -> None:
        """Put back what a lost actor had in work, and begin another one; one that may only be out of reach is ended, for it holds room."""
        nonlocal working
        ray.kill(actor)
        num_unanswered.pop(actor, None)
        numbers = [shard, *in_work(actor)]
        working = {reference: (other, number) for reference, (other, number) in working.items() if other != actor}
        for number in numbers:
            log.warning(
                "%s: the actor of shard %d died (attempt %d of %d): %s",
                description,
                number,
                attempts[number],
                MAX_ATTEMPTS,
                first_line(error),
            )
            if attempts[number] >= MAX_ATTEMPTS:
                raise RuntimeError(
                    f"{description}: shard {number} ended {MAX_ATTEMPTS} actors; is the memory enough? {first_line(error)}"
                ) from error
        waiting.extendleft(numbers)
        begin()

    def ask(actors: set[Any]) -> dict[int, Part]:
        """How far the shards in work are; an actor that has not answered for STALL_SECONDS is ended, and its shards are put back."""
        parts = _parts(actors)
        for actor in actors:
            num_unanswered[actor] = 0 if actor in parts else num_unanswered[actor] + 1
            if num_unanswered[actor] * (SECONDS_BETWEEN_LINES + ANSWER_SECONDS) >= stall_seconds:
                log.warning("%s: an actor has not answered for %.0f s (%s): it is ended", description, stall_seconds, STALL_SECONDS)
                ray.kill(actor)
        return {shard: part for of_actor in parts.values() for shard, part in of_actor.items()}

    progress = Progress(description, len(shards))
    shown: dict[int, Part] = {}  # a line says that something has moved: where nothing does, silence is what is noticed
    log.info("%s: %d shards on %d actors", description, len(shards), num_actors)
    try:
        for _ in range(num_actors):
            begin()
        while working or waiting:
            done, _ = ray.wait([*beginning, *working], num_returns=1, timeout=SECONDS_BETWEEN_LINES)
            if not done:
                if working:
                    if (parts := ask({actor for actor, _ in working.values()})) != shown:
                        progress.partly(parts)
                        shown = parts
                else:
                    log.info("%s: waiting for room for %d actors of %s", description, len(beginning), per_actor)
                continue
            if (begun := beginning.pop(done[0], None)) is not None:
                try:
                    ray.get(done[0])
                except _lost_errors() as error:
                    num_lost_in_a_row += 1
                    log.warning("%s: an actor died before it had begun: %s", description, first_line(error))
                    if num_lost_in_a_row >= MAX_ATTEMPTS:
                        raise RuntimeError(f"{description}: {MAX_ATTEMPTS} actors did not begin: {first_line(error)}") from error
                    begin()
                else:
                    num_lost_in_a_row = 0
                    fill(begun)
                continue
            actor, shard = working.pop(done[0])
            try:
                record = ray.get(done[0])
            except ray.exceptions.RayTaskError as error:
                raise _as_raised(error) from None
            except _lost_errors() as error:
                lost(actor, shard, error)
                continue
            progress.finish(record)
            fill(actor)
            yield record
    finally:
        for actor in {*beginning.values(), *(actor for actor, _ in working.values())}:
            ray.kill(actor)


class _ShardActor:
    """One worker process: makes its worker before the first shard."""

    def __init__(self, make_worker: Callable[[], Worker], description: str) -> None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
        exporting.begin()
        self._numbers = exporting.ShardNumbers(description)
        self._make_worker = make_worker
        self._worker: Worker | None = None
        self._lock = Lock()
        self._parts: dict[int, Part] = {}

    def work(self, shard: int) -> "ShardRecord":
        with self._lock:
            if self._worker is None:  # here and not in __init__, so that an error keeps its own type
                self._worker = self._make_worker()
        try:
            with reporting_to(partial(self._partly, shard)):
                record = self._worker(shard)
            self._numbers.finish(record)
            return record
        finally:
            self._parts.pop(shard, None)

    def _partly(self, shard: int, share: float, num_tokens: int) -> None:
        self._parts[shard] = (share, num_tokens)
        self._numbers.partly(shard, num_tokens)

    def parts(self) -> dict[int, Part]:
        """How far the shards in work are."""
        return dict(self._parts)


def _parts(actors: set[Any]) -> dict[Any, dict[int, Part]]:
    """What each actor says; those that are too busy to answer, frozen, or dead, are not in it."""
    import ray

    answers = {actor.parts.remote(): actor for actor in actors}
    ready, _ = ray.wait(list(answers), num_returns=len(answers), timeout=ANSWER_SECONDS)
    parts: dict[Any, dict[int, Part]] = {}
    for answer in ready:
        try:
            parts[answers[answer]] = ray.get(answer)
        except _lost_errors():
            continue  # its shards' own references say so, and are dealt with there
    return parts


def _lost_errors() -> tuple[type[BaseException], ...]:
    """How Ray says that an actor is no more; one that it has ended for want of memory is not among its actor errors."""
    import ray

    return ray.exceptions.RayActorError, ray.exceptions.OutOfMemoryError


def _pool(num_shards: int, *, on_gpu: bool) -> tuple[dict[str, Any], int]:
    """What one actor claims, and how many actors to ask for: one per GPU where they want one and the cluster has any, else one per CPU.

    On a cluster that grows by what is asked for, MAX_ACTORS asks for that many, and GPU_NODES for GPUs, where there is no room yet.
    """
    import ray

    num_cpus, num_gpus = (int(ray.cluster_resources().get(name, 0)) for name in ("CPU", "GPU"))  # type: ignore[no-untyped-call]
    wants_gpu = on_gpu and (num_gpus > 0 or os.environ.get(GPU_NODES) == "1")
    room = num_gpus if wants_gpu else num_cpus
    wanted = max(room, int(os.environ.get(MAX_ACTORS, "1")))
    return {"num_gpus": 1, "num_cpus": 0} if wants_gpu else {"num_cpus": 1}, min(num_shards, wanted)


def _as_raised(error: Any) -> BaseException:
    """The worker's own ValueError or OSError; for anything else Ray's error, which carries the remote traceback."""
    cause = error.cause
    return cause if isinstance(cause, ValueError | OSError) else error


def first_line(error: BaseException) -> str:
    """What an error says before its traceback; its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
