"""Every few seconds: memory, file descriptors, threads and zombies of the stack's processes, bytes on disk."""

import re
import threading
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import psutil

from bliss_ops.stack import processes
from bliss_ops.stack.state import State, read_state
from tests.soak.timeline import Timeline

SAMPLE_SECONDS = 10.0

# Kinds of processes whose memory is followed one by one; the first that matches.
KINDS = (
    ("scheduler", r"airflow scheduler"),
    ("executor worker", r"^airflow worker -- LocalExecutor"),
    ("task", r"^airflow worker -- "),
    ("api-server", r"^airflow api_server"),
    ("triggerer", r"airflow triggerer"),
    ("dag-processor", r"airflow dag-processor|^airflow dag"),
    ("supervisor", r"-m bliss_ops\.stack"),
    ("job driver", r"/bliss [a-z]"),
    ("gcs server", r"/gcs/gcs_server"),
    ("raylet", r"/raylet/raylet"),
    ("ray dashboard", r"dashboard|Dashboard"),
    ("ray worker", r"^ray::"),
    ("ray head", r"ray"),
)


def watch(state_dir: Path, lake: Path, extra: dict[str, int], timeline: Timeline, stop: threading.Event) -> None:
    """Write a sample every SAMPLE_SECONDS; `extra` are processes of the soak that it follows too, by name."""
    while True:
        state = read_state(state_dir)
        if state is not None:
            timeline.write("sample", **sample(state, extra), **disk(state, lake))
        if stop.wait(SAMPLE_SECONDS):
            return


def kind_of(words: str) -> str:
    return next((name for name, pattern in KINDS if re.search(pattern, words)), "other")


def sample(state: State, extra: dict[str, int]) -> dict[str, Any]:
    """What the living processes hold: megabytes are proportional ones (what several share is divided among them)."""
    count: Counter[str] = Counter()
    megabytes: dict[str, float] = defaultdict(float)
    num_fds = num_threads = 0
    each: list[tuple[int, str, float, int]] = []  # pid, kind, MB, file descriptors
    living = [
        *processes.living(state.services, state.layout.marker),
        *(psutil.Process(pid) for pid in extra.values() if psutil.pid_exists(pid)),
    ]
    names = {pid: name for name, pid in extra.items()}
    for process in living:
        try:
            with process.oneshot():
                kind = names.get(process.pid) or kind_of(" ".join(process.cmdline()))
                size, fds = process.memory_full_info().pss / 1e6, process.num_fds()
                num_threads += process.num_threads()
        except psutil.Error:  # it has ended meanwhile
            continue
        count[kind] += 1
        megabytes[kind] += size
        num_fds += fds
        each.append((process.pid, kind, round(size, 1), fds))
    return {
        "megabytes": round(sum(megabytes.values()), 1),
        "by_kind": {kind: round(size, 1) for kind, size in sorted(megabytes.items())},
        "num_processes": dict(count),
        "num_fds": num_fds,
        "num_threads": num_threads,
        "num_zombies": num_zombies({process.pid for process in living}),
        "each": each,
    }


def num_zombies(parents: set[int]) -> int:
    """Ended processes that a living one of the stack has not taken note of."""
    found = 0
    for process in psutil.process_iter(["ppid", "status"]):
        found += process.info["status"] == psutil.STATUS_ZOMBIE and process.info["ppid"] in parents
    return found


def disk(state: State, lake: Path) -> dict[str, Any]:
    layout = state.layout
    database = layout.airflow_home / "airflow.db"
    return {
        "disk_megabytes": {
            "lake": tree(lake),
            "airflow database": sum(_size(database.with_name(database.name + ending)) for ending in ("", "-wal", "-shm")) / 1e6,
            "airflow task logs": tree(layout.airflow_home / "logs"),
            "server logs": tree(layout.logs),
            "ray": tree(layout.ray_temp),
        }
    }


def tree(directory: Path) -> float:
    """Megabytes of the files below a directory."""
    return sum(_size(path) for path in directory.rglob("*")) / 1e6


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() and not path.is_symlink() else 0
    except OSError:  # it was removed meanwhile
        return 0
