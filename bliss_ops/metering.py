"""What a piece of work costs: wall, CPU and device seconds, peak memory, and on which device.

A stage that is one piece keeps a record per attempt in `_cost/` of its artifact, written every half minute and at the end, so that a
killed attempt loses at most that; training workers in processes of their own keep one each. A shard's cost is in the shard's own
record: of a killed one the shards in work are lost. All of it is added up in the manifest. It is no part of any fingerprint or digest.

Peak memory is the high-water mark of a process from the beginning of the work on; what the process held before and has not given back
is in it, so a stage run as a command of its own is measured best. Hashing and describing the files at the end is not measured.
"""

import json
import logging
import platform
import re
import resource
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar, copy_context
from functools import cache, partial
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

from upath import UPath

from bliss_ops.fence import ReplacedError, check_begun
from bliss_ops.lake import Check, check_here, checked_by, is_local, names_in, read_bytes, remove, write_json
from bliss_ops.launching import Job, Launcher
from bliss_ops.sharding import Cost

log = logging.getLogger(__name__)

SECONDS_BETWEEN_RECORDS = 30.0
RECORDS = "_cost"


class _Clock:
    """The time of this process, shared out evenly among the meters that run, so that their sum is the time it was at work."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._running: list[Meter] = []
        self._wall = self._cpu = 0.0

    def start(self, meter: "Meter") -> None:
        with self._lock:
            if not self._running:
                _reset_peaks()
            self._settle()
            self._running.append(meter)

    def settle(self) -> None:
        with self._lock:
            self._settle()

    def stop(self, meter: "Meter") -> None:
        with self._lock:
            self._settle()
            self._running.remove(meter)

    def _settle(self) -> None:
        wall, cpu = time.monotonic(), time.process_time()
        peak, peak_gpu = (_peak_memory(), _peak_gpu_memory()) if self._running else (0, None)
        for meter in self._running:
            meter.seconds += (wall - self._wall) / len(self._running)
            meter.cpu_seconds += (cpu - self._cpu) / len(self._running)
            meter.peak_memory_bytes = max(meter.peak_memory_bytes, peak)
            meter.peak_gpu_memory_bytes = peak_gpu
        self._wall, self._cpu = wall, cpu


class Meter:
    """Measures what is done inside `with Meter() as meter:`."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0
        self.peak_memory_bytes = 0
        self.peak_gpu_memory_bytes: int | None = None
        self.num_workers = 1
        self.only_waits = False  # for workers in processes of their own, which have meters of their own
        self._is_running = False

    def __enter__(self) -> "Meter":
        _clock.start(self)
        self._is_running = True
        return self

    def __exit__(self, *_: object) -> None:
        _clock.stop(self)
        self._is_running = False

    def cost(self) -> Cost:
        """What was measured so far."""
        if self._is_running:
            _clock.settle()
        return Cost(
            seconds=round(self.seconds, 3),
            device_seconds=0.0 if self.only_waits else round(self.seconds, 3),
            cpu_seconds=round(self.cpu_seconds, 3),
            peak_memory_bytes=self.peak_memory_bytes,
            peak_gpu_memory_bytes=self.peak_gpu_memory_bytes,
            device=_gpu_name() if self.peak_gpu_memory_bytes else _cpu_name(),
            num_workers=self.num_workers,
        )


_clock = _Clock()
_attempt: ContextVar[Meter | None] = ContextVar("attempt", default=None)


def total(costs: Iterable[Cost]) -> Cost:
    """Seconds added up, the largest of the peaks, the devices that worked."""
    all_costs = list(costs)
    gpu_peaks = [cost.peak_gpu_memory_bytes for cost in all_costs if cost.peak_gpu_memory_bytes is not None]
    return Cost(
        seconds=round(sum(cost.seconds for cost in all_costs), 3),
        device_seconds=round(sum(cost.device_seconds for cost in all_costs), 3),
        cpu_seconds=round(sum(cost.cpu_seconds for cost in all_costs), 3),
        peak_memory_bytes=max((cost.peak_memory_bytes for cost in all_costs), default=0),
        peak_gpu_memory_bytes=max(gpu_peaks, default=None),
        device=", ".join(sorted({name for cost in all_costs if cost.device_seconds for name in cost.device.split(", ")})),
        num_workers=max((cost.num_workers for cost in all_costs), default=1),
    )


@contextmanager
def recorded(directory: UPath, fingerprint: str, *, is_worker: bool = False) -> Iterator[Meter]:
    """Measure what is done inside as one attempt at the artifact; the record is written now and then, and also when the attempt fails."""
    path = directory / RECORDS / f"{uuid.uuid4().hex[:16]}.json"
    ended = Event()
    with Meter() as meter:

        def write() -> None:
            try:
                check_begun(directory, fingerprint)
                write_json(path, {"fingerprint": fingerprint, "is_worker": is_worker, "cost": meter.cost().model_dump()})
            except ReplacedError:  # this attempt belongs to nothing
                return
            except OSError as error:  # a full disk, a store that does not answer: the work itself goes on, or fails by itself
                log.warning("what the work on %s costs is not recorded: %s", directory, error)

        def now_and_then() -> None:
            while not ended.wait(SECONDS_BETWEEN_RECORDS):
                write()

        thread = Thread(target=copy_context().run, args=(now_and_then,), name="cost", daemon=True)
        thread.start()
        token = _attempt.set(meter)
        try:
            yield meter
        finally:
            _attempt.reset(token)
            ended.set()
            thread.join()
            write()


def spent(directory: UPath, fingerprint: str) -> Cost:
    """All attempts at the artifact together; of those with several workers, seconds are the attempt's and device seconds the workers'."""
    costs = []
    for path in _records(directory):
        try:
            record = json.loads(read_bytes(path))
        except FileNotFoundError:  # deleted, and still in a listing
            continue
        if record["fingerprint"] == fingerprint:
            cost = Cost.model_validate(record["cost"])
            costs.append(cost.model_copy(update={"seconds": 0.0}) if record["is_worker"] else cost)
    return total(costs)


def forget(directory: UPath) -> None:
    """Remove the records of an artifact that is finished, or begun anew."""
    folder = directory / RECORDS
    names = names_in(folder)
    for name in names:
        remove(folder / name)
    if is_local(directory):
        with suppress(OSError):  # there is none; or another process at the same work is just writing its record
            folder.rmdir()


def metered(launch: Launcher, directory: UPath, fingerprint: str) -> Launcher:
    """`launch`, whose training workers keep records of their own, and check their files as whoever launches them does, where they are
    processes of their own. Picklable like `launch`.
    """
    return partial(_launch_metered, launch, directory, fingerprint)


def _launch_metered(launch: Launcher, directory: UPath, fingerprint: str, job: Job, num_workers: int) -> None:
    if num_workers == 1:
        launch(job, 1)
        return
    if attempt := _attempt.get():
        attempt.only_waits = True
    launch(partial(_work_metered, job, directory, fingerprint, check_here()), num_workers)


def _work_metered(job: Job, directory: UPath, fingerprint: str, check: Check | None) -> None:
    distributed = sys.modules.get("torch.distributed")
    with checked_by(check), recorded(directory, fingerprint, is_worker=True) as meter:
        if distributed and distributed.is_initialized():
            meter.num_workers = distributed.get_world_size()
        job()


def _records(directory: UPath) -> list[UPath]:
    folder = directory / RECORDS
    return [folder / name for name in names_in(folder) if name.endswith(".json")]


def _reset_peaks() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets VmHWM to what is resident now
    except OSError as error:  # another system, or a container that forbids it
        log.debug("the high-water mark of memory cannot be reset, so it is that of the whole process: %s", error)
    if cuda := _cuda():
        cuda.reset_peak_memory_stats()


def _peak_memory() -> int:
    """The process's own high-water mark in bytes. Not `ru_maxrss` where it can be helped: that begins with what its parent had."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def _peak_gpu_memory() -> int | None:
    cuda = _cuda()
    return int(cuda.max_memory_allocated()) if cuda else None


def _gpu_name() -> str:
    cuda = _cuda()
    assert cuda is not None
    return str(cuda.get_device_name()).replace(", ", " ")


@cache
def _cpu_name() -> str:
    """`cpu (AMD EPYC 9654 96-Core Processor)`; `cpu` alone where the system does not say."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    except FileNotFoundError:
        found = None
    name = found[1].strip() if found else platform.processor()
    return f"cpu ({name})".replace(", ", " ") if name and name != "unknown" else "cpu"


def _cuda() -> Any:
    """torch.cuda where this process has used it; nothing is imported to measure."""
    cuda = sys.modules.get("torch.cuda")
    is_initialized = getattr(cuda, "is_initialized", None)  # None while another thread is still importing it
    return cuda if is_initialized is not None and is_initialized() else None
