"""The soak, as one command: `python -m tests.soak --minutes 60 --seed 0`; exit code 0 when every invariant held.

Up, an hour of work with kills, quiet, a last nightly look, down, the same work undisturbed, the verdict. Everything that it saw is in the
directory it names at the end, which is kept when an invariant did not hold.
"""

import argparse
import logging
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from bliss_ops import __version__
from bliss_ops.lake import Lake
from bliss_ops.stack import processes
from bliss_ops.stack.services import USER
from bliss_ops.stack.state import State, password, read_state
from tests.soak import chaos, dag_runs, invariants, reference, sampling, summary, workload
from tests.soak import timeline as timelines
from tests.soak.invariants import Check
from tests.soak.patient import PatientApi
from tests.soak.timeline import Timeline

log = logging.getLogger(__name__)

QUIET_SECONDS = 1200.0  # for what was begun to end, without kills
IDLE_SECONDS = 30.0
NUM_RUNS_AT_ONCE = 2
SHORT_MINUTES = 15.0  # below, runs have one round instead of two, and landings and nights follow each other three times as quickly


def main() -> int:
    """Run the soak or judge the evidence of one; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="of kills (default: %(default)s; 5 to try it)")
    parser.add_argument("--seed", type=int, default=0, help="of the plan of kills and of the runs (default: %(default)s)")
    parser.add_argument("--directory", help="for evidence, lake and stack; a temporary one by default, removed when everything held")
    parser.add_argument("--judge", action="store_true", help="only the verdict, on the evidence that is in --directory")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the stack is taken down, whoever ends the soak
    directory = Path(arguments.directory or tempfile.mkdtemp(prefix="bliss-soak-")).absolute()
    directory.mkdir(parents=True, exist_ok=True)
    if not arguments.judge:
        soak(directory, arguments.minutes, arguments.seed)
    held = judge(directory)
    sys.stdout.write(f"\n{(directory / 'summary.md').read_text()}\n")
    if held and not arguments.directory:
        kept = Path.cwd() / "soak-summary"
        kept.mkdir(exist_ok=True)
        for name in ("summary.json", "summary.md", "timeline.svg", "timeline.jsonl"):
            shutil.copy(directory / name, kept / name)
        shutil.rmtree(directory)
        directory = kept
    sys.stdout.write(f"soak: {'everything held' if held else 'NOT everything held'}; see {directory}\n")
    return 0 if held else 1


def soak(directory: Path, minutes: float, seed: int) -> None:
    """Everything until the stack is down again; what was seen is in `directory`."""
    if any((directory / name).exists() for name in ("lake", "timeline.jsonl")):
        raise SystemExit(f"{directory} has a soak in it already: give an empty directory, or --judge")
    lake, drop = Lake.open(directory / "lake"), directory / "drop"
    drop.mkdir()
    state_dir = directory / "state"
    environment = os.environ | {"BLISS_LANDING": str(drop), "BLISS_LANDING_SECONDS": "5"}
    _bliss("up", "--lake", str(lake.root), "--state", str(state_dir), env=environment)
    timeline = Timeline(directory / "timeline.jsonl")
    timeline.write(
        "begin",
        minutes=minutes,
        seed=seed,
        version=__version__,
        commit=_commit(),
        processors=os.cpu_count(),
        python=platform.python_version(),
    )
    state = read_state(state_dir)
    assert state is not None
    try:
        timeline.write("up", ports=state.layout.ports)
        _work(directory, lake, state, timeline, minutes, seed)
    finally:
        said = _bliss("down", "--state", str(state_dir))
        left = [" ".join(process.cmdline())[:200] for process in processes.living(state.services, state.layout.marker)]
        timeline.write("down", said=said.strip().splitlines()[-1:], left=left, ray_temp_is_there=state.layout.ray_temp.exists())


def _work(directory: Path, lake: Lake, state: State, timeline: Timeline, minutes: float, seed: int) -> None:
    api = PatientApi(state.layout.airflow_url, USER, password(state.layout))
    no_more, ended = threading.Event(), threading.Event()
    threads = Threads(timeline)
    with workload.explorer(lake, directory / "explorer.log") as address:
        try:
            _watch(threads, api, lake, state, address, timeline, ended, seed)
            _disturb(threads, api, lake, state, directory, timeline, no_more, minutes, seed)
            _settle(api, state, timeline)
        finally:
            no_more.set()
            ended.set()
            threads.join()
    timeline.write("final check", **workload.store_check(lake))
    now = read_state(state.layout.state_dir) or state
    timeline.write("restarts", **{service.name: service.num_restarts for service in now.services})


def _watch(
    threads: "Threads", api: PatientApi, lake: Lake, state: State, address: str, timeline: Timeline, ended: threading.Event, seed: int
) -> None:
    """Start all who look and ask, until the end."""
    state_dir, root = state.layout.state_dir, Path(lake.root.path)
    extra = {"soak": os.getpid(), "explorer": next(child.pid for child in psutil.Process().children() if "explore" in child.cmdline())}
    threads.start("samples", lambda: sampling.watch(state_dir, root, extra, timeline, ended))
    threads.start("health", lambda: workload.watch_health(api.url, timeline, ended))
    threads.start("sql", lambda: workload.read_sql(lake, timeline, ended, seed))
    threads.start("pages", lambda: workload.read_pages(lake, address, timeline, ended, seed))
    threads.start("checks", lambda: workload.check_store(lake, timeline, ended))
    threads.start("DAG runs", lambda: dag_runs.follow(api, timeline, ended))


def _disturb(
    threads: "Threads",
    api: PatientApi,
    lake: Lake,
    state: State,
    directory: Path,
    timeline: Timeline,
    no_more: threading.Event,
    minutes: float,
    seed: int,
) -> None:
    """All work and all kills; returns when the time is over."""
    is_short = minutes < SHORT_MINUTES
    hurry, num_rounds = (3.0, 1) if is_short else (1.0, 2)
    names, kills = workload.Names(seed), chaos.plan(seed, 60 * minutes)
    threads.start("kills", lambda: chaos.run(kills, state.layout.state_dir, timeline, no_more))
    workload.ingest(api, timeline)
    if timeline.now < 60 * minutes:  # else the machine was slow and the soak is short
        for number in range(NUM_RUNS_AT_ONCE):
            threads.start(f"rounds {number}", lambda: workload.run_rounds(api, timeline, no_more, names, num_rounds))
        drop, prepared = directory / "drop", directory / "prepared"
        threads.start("landing", lambda: workload.land(lake, drop, prepared, timeline, no_more, seed, workload.LANDING_SECONDS / hurry))
        threads.start("nights", lambda: workload.rescore_nightly(api, timeline, no_more, workload.NIGHTLY_SECONDS / hurry))
    while timeline.now < 60 * minutes:
        time.sleep(1.0)
    no_more.set()
    timeline.write("no more", said="no more kills and nothing new; what was begun may end")


def _settle(api: PatientApi, state: State, timeline: Timeline) -> None:
    """Wait until what was begun has ended, have one last nightly look, and see what Ray still has."""
    quiet = dag_runs.wait_until_quiet(api, timeline, QUIET_SECONDS)
    if quiet:
        night = api.trigger_once("bliss_rescore_nightly", "last-night", {})
        timeline.write("trigger", dag="bliss_rescore_nightly", run=night)
        quiet = dag_runs.wait_until_quiet(api, timeline, QUIET_SECONDS)
    timeline.write("quiet", quiet=quiet, api_waits=api.num_waits)
    time.sleep(IDLE_SECONDS)
    jobs = invariants.no_ray_job(state)
    timeline.write("ray", held=jobs.held, figures=jobs.figures, findings=jobs.findings)


def judge(directory: Path) -> bool:
    """The verdict on a soak's evidence; makes the undisturbed run where it is not there yet."""
    timeline = directory / "timeline.jsonl"
    events = timelines.read(timeline)
    found = {event["kind"]: event for event in events}
    if not {"final check", "down"} <= found.keys():
        raise SystemExit(f"the soak in {directory} was broken off: there is nothing to judge")
    lake, alone = Lake.open(directory / "lake"), Lake.open(directory / "undisturbed")
    begun = time.monotonic()
    reference.make(lake, alone)
    differences = list(reference.differences(lake, alone))
    bytes_equal = Check(
        "every artifact equals the undisturbed run's",
        not differences,
        {"files": reference.num_compared(lake), "corpora": len(lake.corpus_names()), "runs": len(lake.run_names())},
        differences,
    )
    ray, down = found["ray"], found["down"]
    checks = [
        *invariants.of_timeline(timeline),
        Check("no orphan Ray job, no orphan driver", ray["held"], ray["figures"], ray["findings"]),
        bytes_equal,
        invariants.store_is_files(found["final check"], lake),
        invariants.landed_are_scored(lake, directory / "drop"),
        invariants.temporary_files_end(lake),
        Check("down leaves nothing", not down["left"] and not down["ray_temp_is_there"], {"said": down["said"]}, down["left"]),
        Check("no thread of the soak failed", "thread failed" not in found, {}, [str(e) for e in events if e["kind"] == "thread failed"]),
        invariants.tracebacks(directory / "state" / "logs", events),
    ]
    facts = {
        **{name: found["begin"][name] for name in ("minutes", "seed", "version", "commit", "processors", "python")},
        "date": found["begin"]["at"],
        "took, with what was begun": f"{found['down']['seconds'] / 60:.1f} minutes",
        "judged": f"{datetime.now(UTC).isoformat(timespec='seconds')}, the undisturbed run took {time.monotonic() - begun:.0f} s",
        **summary.counted(timeline),
        "restarts": {name: count for name, count in found["restarts"].items() if name not in ("seconds", "at", "kind")},
        **availability(events),
    }
    return summary.write(directory, facts, checks)


def availability(events: list[dict[str, Any]]) -> dict[str, Any]:
    """How often and how long each part of Airflow was away."""
    away: dict[str, list[float]] = {}
    since: dict[str, float] = {}
    for event in events:
        if event["kind"] != "health":
            continue
        if event["status"] == "healthy":
            if event["part"] in since:
                away.setdefault(event["part"], []).append(event["seconds"] - since.pop(event["part"]))
        else:
            since.setdefault(event["part"], event["seconds"])
    return {"away": {part: f"{len(each)} times, {max(each):.0f} s at most" for part, each in away.items()}}


class Threads:
    """Threads whose failure is an event of the timeline, not a line on the terminal that nobody reads."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self._threads: list[threading.Thread] = []

    def start(self, name: str, work: Callable[[], None]) -> None:
        def guarded() -> None:
            try:
                work()
            except Exception as error:
                self.timeline.write("thread failed", thread=name, error=f"{type(error).__name__}: {error}")
                log.exception("the soak's thread %s failed", name)

        thread = threading.Thread(target=guarded, name=name, daemon=True)
        thread.start()
        self._threads.append(thread)

    def join(self) -> None:
        for thread in self._threads:
            thread.join(120)


def _bliss(*arguments: str, env: Any = None) -> str:
    result = subprocess.run([sys.executable, "-m", "bliss_ops.cli", *arguments], env=env, capture_output=True, text=True, check=False)
    sys.stdout.write(result.stderr)
    if result.returncode != 0:
        raise SystemExit(f"`bliss {' '.join(arguments)}` failed: {result.stderr[-2000:]}")
    return result.stderr


def _commit() -> str:
    if commit := os.environ.get("BLISS_GIT_COMMIT"):
        return commit
    result = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    return result.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
