"""Ending servers: all their descendants, and never a process that is not theirs."""

import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("psutil")

import psutil

from bliss_ops.stack import local, processes
from bliss_ops.stack.processes import MARKER
from bliss_ops.stack.state import read_state

# A server that ignores SIGTERM and has a child in a session of its own, as Ray's jobs have.
SERVER = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; print('child', flush=True); time.sleep(600)"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def start_server(tmp_path: Path, marker: str) -> tuple[processes.Service, int]:
    log = tmp_path / "server.log"
    service = processes.start("server", [sys.executable, "-c", SERVER], env=os.environ | {MARKER: marker}, log_file=log, cwd=tmp_path)
    deadline = time.monotonic() + 20
    while "child" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return service, int(next(line for line in log.read_text().splitlines() if line.isdecimal()))


@pytest.fixture(autouse=True)
def _short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "GRACE_SECONDS", 1.0)


def test_a_stubborn_server_and_its_detached_child_are_ended(tmp_path: Path) -> None:
    service, child = start_server(tmp_path, "one")
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    try:
        assert processes.is_running(service)
        assert len(processes.end([service], "one")) >= 1
        assert not alive(service.pid)
        assert not alive(child)
        assert alive(bystander.pid)
    finally:
        bystander.kill()
        bystander.wait()


def test_a_child_that_outlives_its_server_is_found_by_its_marker(tmp_path: Path) -> None:
    service, child = start_server(tmp_path, "two")
    psutil.Process(service.pid).kill()
    psutil.Process(service.pid).wait()
    assert not processes.is_running(service)
    processes.end([service], "two")
    assert not alive(child)


def test_a_process_that_got_the_recorded_pid_later_is_left_alone(tmp_path: Path) -> None:
    service, child = start_server(tmp_path, "three")
    recorded_earlier = dataclasses.replace(service, created_at=service.created_at - 1000)
    assert not processes.is_running(recorded_earlier)
    assert processes.end([recorded_earlier], "another stack") == []
    assert alive(service.pid)
    assert alive(child)
    processes.end([service], "three")


def test_a_server_is_the_same_one_when_the_clock_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service, child = start_server(tmp_path, "four")
    create_time = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: create_time(process) + 3600)  # as after the clock was an hour late
    assert processes.is_running(service)
    assert {service.pid, child} <= {process.pid for process in processes.living([service], "four")}
    assert 0 <= processes.age_seconds(service) < 600
    processes.end([service], "four")


def test_down_without_anything_up_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        local.down(tmp_path)
    assert "nothing is up" in caplog.text
    assert local.status(tmp_path) == {}


def test_a_damaged_state_file_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "stack.json").write_text("{")
    with pytest.raises(ValueError, match=r"stack\.json is damaged"):
        read_state(tmp_path)
