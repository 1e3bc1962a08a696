"""What the embedded stack holds in memory: each part at rest, and at its most while a small recipe runs.

    .venv/bin/python benchmarks/stack_memory.py                  # at rest and during `bliss run smoke --airflow`; about four minutes
    .venv/bin/python benchmarks/stack_memory.py --rest           # at rest only

The figure is PSS: memory that several processes share is divided among them, so that parts can be added up. Resident sets, which count it
in each process, are beside it. Linux only. Ends with one line of JSON.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

import psutil

from bliss_ops.lake import Lake
from bliss_ops.stack import local, processes
from bliss_ops.stack.local import State

SECONDS_TO_REST, SECONDS_BETWEEN_LOOKS = 30.0, 2.0
OF_RAY = (  # in the command line; the first that fits
    ("gcs_server", "gcs"),
    ("raylet/raylet", "raylet"),
    ("dashboard/dashboard", "dashboard"),
    ("dashboard/agent", "agents"),
    ("runtime_env/agent", "agents"),
    ("log_monitor", "log monitor"),
    ("monitor.py", "autoscaler"),
    ("client.server", "client server"),
    ("ray::IDLE", "idle workers"),
    ("ray::", "jobs"),
    ("default_worker", "idle workers"),
    ("bliss", "jobs"),
)
Megabytes = dict[str, float]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rest", action="store_true", help="do not run anything")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bliss-memory-") as scratch:
        lake, state_dir = Lake.open(f"{scratch}/lake"), Path(scratch, "state")
        state = local.up(lake, state_dir)
        try:
            time.sleep(SECONDS_TO_REST)
            result = {"at_rest": look(state)}
            show("at rest", result["at_rest"])
            if not arguments.rest:
                result["at_most"] = while_it_works(state, lake, state_dir)
                show("at most", result["at_most"])
                time.sleep(SECONDS_TO_REST)
                result["at_rest_afterwards"] = look(state)
                show("at rest afterwards", result["at_rest_afterwards"])
        finally:
            local.down(state_dir)
    print(json.dumps(result))
    return 0


def while_it_works(state: State, lake: Lake, state_dir: Path) -> Megabytes:
    """The most that each part held at any look, and of all looks the one with the largest sum."""
    command = [
        str(Path(sys.executable).with_name("bliss")),
        "run",
        "smoke",
        "--airflow",
        "--lake",
        str(lake.root),
        "--state",
        str(state_dir),
    ]
    most: Megabytes = defaultdict(float)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as running:
        while running.poll() is None:
            for name, megabytes in look(state).items():
                most[name] = max(most[name], megabytes)
            time.sleep(SECONDS_BETWEEN_LOOKS)
    assert running.returncode == 0, f"the recipe failed: see {state.layout.logs}"
    return dict(most)


def look(state: State) -> Megabytes:
    """Megabytes by part; `sum` is of one moment, `resident` counts what is shared once for each process."""
    by_part: Counter[str] = Counter()
    resident = 0
    seen: set[int] = set()
    for service in state.services:
        for process in processes.living([service], state.layout.marker, service.name):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.pid in seen:
                    continue
                seen.add(process.pid)
                memory = process.memory_full_info()
                by_part[part_of(service.name, " ".join(process.cmdline()))] += memory.pss
                resident += memory.rss
    found = {name: size / 1e6 for name, size in sorted(by_part.items())}
    return found | {"sum": sum(found.values()), "resident": resident / 1e6, "processes": len(seen)}


def part_of(service: str, command: str) -> str:
    if service == "ray":
        return f"ray: {next((name for text, name in OF_RAY if text in command), 'other')}"
    if service == "scheduler" and "supervis" in command:
        return "scheduler: tasks"
    return service


def show(title: str, found: Mapping[str, float]) -> None:
    print(f"{title}:", flush=True)
    for name, megabytes in found.items():
        print(f"  {name:<24}{megabytes:>8.0f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
