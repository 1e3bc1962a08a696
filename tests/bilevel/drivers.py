"""A training job whose driver is killed in the middle, and what a killed job leaves."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.bilevel import jobs

REPOSITORY = Path(__file__).parents[2]
SETTINGS = {"num_steps": 6}
STEP_OF_DEATH = 5  # past the checkpoint of step 4, before that of step 6

DRIVER = f"""
import sys
from functools import partial
from importlib import import_module

from tests.bilevel import jobs

if __name__ == "__main__":  # workers import this file
    module, _, launcher = sys.argv[2].rpartition(".")
    getattr(import_module(module), launcher)(partial(jobs.train, sys.argv[1], {SETTINGS}, pause_at={STEP_OF_DEATH}), 2)
"""


def kill_driver(directory: Path, launcher: Callable[..., None]) -> None:
    """Start a job of two workers in `directory` by `launcher`, kill its driver at STEP_OF_DEATH, and wait for its workers to end."""
    driver = directory.with_suffix(".py")
    driver.write_text(DRIVER)
    importable = os.pathsep.join([str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])])
    process = subprocess.Popen(
        [sys.executable, str(driver), str(directory), f"{launcher.__module__}.{launcher.__name__}"],
        env=os.environ | {"PYTHONPATH": importable},
    )
    try:
        pids = [directory / f"pid-{rank}" for rank in (0, 1)]
        wait_until(lambda: all(path.exists() for path in pids) or process.poll() is not None)
        assert process.poll() is None, "the driver ended by itself"
        workers = [int(path.read_text()) for path in pids]
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    wait_until(lambda: not any(is_running(pid) for pid in workers))


def assert_same_files(directory: Path, expected: Path) -> None:
    for name in (jobs.MODEL, "state.safetensors", "metrics.jsonl"):
        assert (directory / name).read_bytes() == (expected / name).read_bytes(), name


def is_running(pid: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(is_true: Callable[[], bool], seconds: float = 240.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.1)
