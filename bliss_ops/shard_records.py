"""The records of an artifact's finished shards, and the fence around the work on the others.

Right before a shard's file appears, its worker looks whether the artifact is still the one it was started for (fence.py) and the shard
still to do: another driver may have finished it.
"""

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from upath import UPath

from bliss_ops import metering
from bliss_ops.fence import check_begun
from bliss_ops.lake import at_once, checked_by, read_bytes
from bliss_ops.sharding import Output, ShardRecord

log = logging.getLogger(__name__)


def find_shard(directory: UPath, shard: int) -> ShardRecord | None:
    """The record of a finished shard whose files are in place, else None."""
    try:
        record = ShardRecord.model_validate_json(read_bytes(record_path(directory, shard)))
    except FileNotFoundError:
        return None
    return record if all(is_in_place(directory, output) for output in record.outputs) else None


def find_shards(directory: UPath, shards: Sequence[int]) -> Iterator[ShardRecord | None]:
    """`find_shard` of each of `shards`, in their order."""
    return at_once(partial(find_shard, directory), shards, directory)


def all_records(directory: UPath, shards: Sequence[int]) -> list[ShardRecord] | None:
    """The records of all shards in their order; None as soon as one is found that is not finished.

    The last shards are looked at first: each group works from its first to its last, so what is missing is found there. Of 64 groups all
    but the last few to end ask for some dozens of records instead of for every one.
    """
    records = []
    for record in find_shards(directory, shards[::-1]):
        if record is None:
            return None
        records.append(record)
    return records[::-1]


def record_path(directory: UPath, shard: int) -> UPath:
    """Where a finished shard is recorded."""
    return directory / "_shards" / f"shard-{shard:05d}.json"


def is_in_place(directory: UPath, output: Output) -> bool:
    """Whether a file is there, in its recorded size."""
    try:
        return bool((directory / output.path).stat().st_size == output.bytes)
    except FileNotFoundError:
        return False


class _MadeMeanwhile(Exception):  # noqa: N818 - a signal between two functions of this file
    pass


def make_fenced(
    make_worker: Callable[[], Callable[[int], ShardRecord]], directory: UPath, fingerprint: str
) -> Callable[[int], ShardRecord]:
    """`make_worker()`, whose shards are looked at once more right before their files appear, and which say what they cost."""
    with metering.Meter() as beginning:
        worker = make_worker()
    to_begin_with = iter([beginning.cost()])  # goes to the worker's first shard

    def work(shard: int) -> ShardRecord:
        def check() -> None:
            check_begun(directory, fingerprint)
            if find_shard(directory, shard) is not None:
                raise _MadeMeanwhile

        try:
            with checked_by(check), metering.Meter() as meter:
                record = worker(shard)
            record.cost = metering.total([*itertools.islice(to_begin_with, 1), meter.cost()])
            return record
        except FileNotFoundError:  # its directory may be gone, and the temporary file with it
            check_begun(directory, fingerprint)
            raise
        except _MadeMeanwhile:
            theirs = find_shard(directory, shard)
            assert theirs is not None
            log.info("shard %d of %s was made by another worker meanwhile: this one's is thrown away", shard, directory)
            return theirs

    return work
