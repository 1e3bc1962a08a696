"""Workers that Ray's processes import by name, like those of the product."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from bliss_ops.sharding import ShardRecord


def count_workers(directory: str) -> Callable[[int], ShardRecord]:
    """Leaves a file for every worker made, and one per shard; shard 0 takes until there is a second worker."""
    (Path(directory) / f"worker-{os.getpid()}").touch()

    def work(shard: int) -> ShardRecord:
        deadline = time.monotonic() + 60
        while shard == 0 and len(list(Path(directory).glob("worker-*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        (Path(directory) / f"shard-{shard}").touch()
        return ShardRecord(shard=shard, outputs=[], metrics={"num_rows": shard * 10})

    return work


def die_on_shard_2(directory: str, times: int) -> Callable[[int], ShardRecord]:
    def work(shard: int) -> ShardRecord:
        deaths = list(Path(directory).glob("death-*"))
        if shard == 2 and len(deaths) < times:
            (Path(directory) / f"death-{os.getpid()}").touch()
            os._exit(1)
        return ShardRecord(shard=shard, outputs=[], metrics={})

    return work


def freeze_on_shard_2(directory: str) -> Callable[[int], ShardRecord]:
    """The first process that has shard 2 stops for good, as by SIGSTOP."""

    def work(shard: int) -> ShardRecord:
        frozen = Path(directory) / "frozen"
        if shard == 2 and not frozen.exists():
            frozen.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGSTOP)
        return ShardRecord(shard=shard, outputs=[], metrics={})

    return work


def sleep(seconds: float) -> Callable[[int], ShardRecord]:
    """A worker that says nothing of how far it is, as one that hangs."""

    def work(shard: int) -> ShardRecord:
        time.sleep(seconds)
        return ShardRecord(shard=shard, outputs=[], metrics={})

    return work


def refuse_shard_1(message: str) -> Callable[[int], ShardRecord]:
    def work(shard: int) -> ShardRecord:
        if shard == 1:
            raise ValueError(message)
        return ShardRecord(shard=shard, outputs=[], metrics={})

    return work


def refuse_to_start(message: str) -> Callable[[int], ShardRecord]:
    raise ValueError(message)


def break_inside(_: str) -> Callable[[int], ShardRecord]:
    def work(shard: int) -> ShardRecord:
        return {}["no such key"]  # type: ignore[return-value]

    return work


def note_worker(directory: str) -> None:
    """A training job that leaves a file with the addresses its process listens on."""
    import psutil

    from bliss_ops.training.workers import Workers

    workers = Workers.current()
    workers.barrier()
    process = psutil.Process()
    listening = [connection.laddr.ip for connection in process.net_connections("inet") if connection.status == psutil.CONN_LISTEN]
    (Path(directory) / f"worker-{workers.rank}-of-{workers.count}").write_text("\n".join(listening))
    workers.barrier()


def refuse_on_worker_1(directory: str, message: str) -> None:
    """A training job of which one worker raises while the other waits for it."""
    from bliss_ops.training.workers import Workers

    workers = Workers.current()
    if workers.rank == 1:
        (Path(directory) / f"attempt-{os.getpid()}").touch()
        raise ValueError(message)
    workers.barrier()
