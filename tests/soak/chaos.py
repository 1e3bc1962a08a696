"""Who is killed when: a plan that the seed alone decides, and the process that it hits, found at that moment.

The plan is a list of moments, kinds and numbers between 0 and 1. A number picks the victim among the living processes of its kind, oldest
first; where no process of the kind lives, the kill waits for one. So two soaks of one seed kill the same kinds at the same times.
"""

import random
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psutil

from bliss_ops.stack import processes
from bliss_ops.stack.state import State, read_state
from tests.soak.timeline import Timeline
from tests.stack import titles

GAP_SECONDS = (20.0, 60.0)  # between two kills
QUIET_SECONDS = 30.0  # at the beginning
WAIT_FOR_VICTIM_SECONDS = 20.0


@dataclass(frozen=True)
class Kind:
    """One kind of process: how its command line reads, and how often it is chosen."""

    name: str
    pattern: str
    weight: int


# A LocalExecutor worker is killed while it has a task only: see docs/soak.md for what the death of an idle one does.
KINDS = (
    Kind("task", titles.TASK, 4),
    Kind("executor worker", titles.BUSY_EXECUTOR_WORKER, 2),
    Kind("job driver", titles.JOB_DRIVER, 4),
    Kind("ray worker", titles.RAY_WORKER, 3),
    Kind("job supervisor", titles.JOB_SUPERVISOR, 1),
    Kind("raylet", titles.RAYLET, 1),
    Kind("gcs server", titles.GCS_SERVER, 1),
    Kind("ray head", r"/ray start --head", 1),
    Kind("ray dashboard", rf"{titles.DASHBOARD}|^ray::DashboardAgent", 1),
    Kind("scheduler", r"airflow scheduler( |$)", 2),
    Kind("api-server", r"^airflow api_server", 2),
    Kind("triggerer", r"airflow triggerer( |$)", 1),
    Kind("dag-processor", r"airflow dag-processor( |$)", 1),
)


@dataclass(frozen=True)
class Kill:
    """One line of the plan."""

    at_seconds: float
    kind: str
    pick: float  # 0 is the oldest process of the kind, just below 1 the youngest


def plan(seed: int, seconds: float, kinds: Sequence[Kind] = KINDS) -> list[Kill]:
    """The kills of a soak of this length; those of a shorter one are its beginning."""
    chooser = random.Random(seed)  # noqa: S311 - a plan, not a secret
    kills = []
    at = QUIET_SECONDS
    while at < seconds:
        (kind,) = chooser.choices(kinds, [kind.weight for kind in kinds])
        kills.append(Kill(round(at, 1), kind.name, chooser.random()))
        at += chooser.uniform(*GAP_SECONDS)
    return kills


def matches(kind: Kind, words: str) -> bool:
    """Whether a command line is that of a process of this kind; the shell that Ray starts a job with is none."""
    return re.search(kind.pattern, words) is not None and not words.startswith("/bin/sh")


def victims(state: State, kind: Kind) -> list[tuple[psutil.Process, str]]:
    """Living processes of a kind with their command lines, oldest first."""
    found = []
    for process in processes.living(state.services, state.layout.marker):
        try:
            words = " ".join(process.cmdline()).strip()
            if matches(kind, words):
                found.append((process.create_time(), process.pid, process, words))
        except psutil.Error:  # it has ended meanwhile
            continue
    return [(process, words) for _, _, process, words in sorted(found, key=lambda each: each[:2])]


def run(kills: Sequence[Kill], state_dir: Path, timeline: Timeline, stop: threading.Event) -> None:
    """Kill by the plan until it is at its end or `stop` is set."""
    kinds = {kind.name: kind for kind in KINDS}
    for kill in kills:
        if stop.wait(max(0.0, kill.at_seconds - timeline.now)):
            return
        state = read_state(state_dir)
        assert state is not None, "the stack is up for as long as there are kills"
        found = _wait_for(partial(victims, state, kinds[kill.kind]), stop)
        if not found:
            timeline.write("no victim", victim=kill.kind)
            continue
        process, words = found[int(kill.pick * len(found))]
        try:
            process.kill()
        except psutil.NoSuchProcess:
            timeline.write("no victim", victim=kill.kind, command=words)
            continue
        timeline.write("kill", victim=kill.kind, pid=process.pid, command=words[:200])


def _wait_for(find: "Callable[[], list[tuple[psutil.Process, str]]]", stop: threading.Event) -> list[tuple[psutil.Process, str]]:
    deadline = time.monotonic() + WAIT_FOR_VICTIM_SECONDS
    while not (found := find()) and time.monotonic() < deadline and not stop.is_set():
        time.sleep(0.2)
    return found
