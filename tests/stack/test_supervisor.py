"""Servers that end are restarted, at once and then more and more slowly; what they leave behind is killed; down means down."""

import itertools
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("psutil")

import psutil

from bliss_ops.stack import local, processes, services, supervisor
from bliss_ops.stack.processes import MARKER, Service
from bliss_ops.stack.services import Layout
from bliss_ops.stack.state import State, read_state
from bliss_ops.stack.supervisor import Command, Supervisor

# A server with a child in a session of its own, as Ray's jobs have; each says its pid.
SERVER = """
import os, subprocess, sys, time
child = "import os, time; print('child', os.getpid(), flush=True); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", child], start_new_session=True)
print("server", os.getpid(), flush=True)
time.sleep(600)
"""


def wait_for(what: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.02)


def said(layout: Layout, name: str, what: str) -> list[int]:
    """The pids that a server's log has for `what`: those of all its lives."""
    lines = layout.log_of(name).read_text().splitlines(keepends=True)
    return [int(line.split()[1]) for line in lines if line.startswith(f"{what} ") and line.endswith("\n")]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    (tmp_path / "logs").mkdir()
    ray_temp = tmp_path / "bliss-ray-test"
    ray_temp.mkdir()
    return Layout(tmp_path, str(tmp_path / "lake"), "supervised", ray_temp, services.DEFAULT_PORTS)


@pytest.fixture
def commands(layout: Layout) -> dict[str, Command]:
    return {name: Command([sys.executable, "-c", SERVER], os.environ | {MARKER: layout.marker}) for name in ("one", "two")}


@pytest.fixture
def state(layout: Layout, commands: dict[str, Command]) -> Iterator[State]:
    state = State(layout)
    try:
        for name, command in commands.items():
            log_file = layout.log_of(name)
            state.put(processes.start(name, command.arguments, env=command.environment, log_file=log_file, cwd=layout.state_dir))
        for name in commands:
            wait_for(lambda name=name: len(said(layout, name, "child")) == 1)
        yield state
    finally:
        processes.end(state.services, layout.marker)


def kill(service: Service) -> None:
    process = psutil.Process(service.pid)
    process.kill()
    process.wait()


def recorded(layout: Layout, name: str) -> Service:
    state = read_state(layout.state_dir)
    assert state is not None
    service = state.find(name)
    assert service is not None
    return service


def test_a_killed_server_is_restarted_and_its_remains_are_not_left(state: State, layout: Layout, commands: dict[str, Command]) -> None:
    watch = Supervisor(layout.state_dir, layout.marker, commands)
    before = {name: recorded(layout, name) for name in commands}
    assert watch.look(100.0)
    assert {name: recorded(layout, name) for name in commands} == before, "nothing has ended"

    kill(before["one"])
    assert watch.look(101.0)
    after = recorded(layout, "one")
    assert after.pid != before["one"].pid
    assert after.num_restarts == 1
    assert after.restarted_at
    assert recorded(layout, "two") == before["two"]
    wait_for(lambda: len(said(layout, "one", "child")) == 2)
    first, second = said(layout, "one", "child")
    assert not psutil.pid_exists(first) or psutil.Process(first).status() == psutil.STATUS_ZOMBIE
    assert psutil.pid_exists(second)
    (bystander,) = said(layout, "two", "child")
    assert psutil.Process(bystander).is_running(), "another server's child has the same marker of the stack"


def test_one_that_ends_again_and_again_waits_longer_each_time(layout: Layout) -> None:
    ending = {"one": Command([sys.executable, "-c", "pass"], os.environ | {MARKER: layout.marker})}
    state = State(layout)
    state.put(
        processes.start("one", ending["one"].arguments, env=ending["one"].environment, log_file=layout.log_of("one"), cwd=layout.state_dir)
    )
    watch = Supervisor(layout.state_dir, layout.marker, ending)
    restarts = []
    for second in range(200):
        wait_for(lambda: not processes.is_running(recorded(layout, "one")))
        watch.look(float(second))
        if recorded(layout, "one").num_restarts > len(restarts):
            restarts.append(second)
    waits = [later - earlier for earlier, later in itertools.pairwise(restarts)]
    assert waits == [3, 5, 9, 17, 33, 61, 61], "a second to see it, then 2, 4, 8, 16, 32, 60, 60"


def test_a_start_that_fails_is_tried_again(
    state: State, layout: Layout, commands: dict[str, Command], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    watch = Supervisor(layout.state_dir, layout.marker, commands)
    kill(recorded(layout, "one"))
    with monkeypatch.context() as patch:
        patch.setattr(processes, "start", lambda *args, **kwargs: (_ for _ in ()).throw(OSError("no space left")))
        assert watch.look(1.0)
    assert "one cannot be restarted yet: no space left" in caplog.text
    assert recorded(layout, "one").num_restarts == 0
    assert watch.look(2.0)
    assert recorded(layout, "one").num_restarts == 1


def test_a_start_that_cannot_be_written_down_leaves_no_process_behind(
    state: State, layout: Layout, commands: dict[str, Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Supervisor(layout.state_dir, layout.marker, commands)
    kill(recorded(layout, "one"))
    started: list[Service] = []
    start = processes.start
    with monkeypatch.context() as patch:
        patch.setattr(processes, "start", lambda *args, **kwargs: started.append(start(*args, **kwargs)) or started[-1])
        patch.setattr(State, "save", lambda self: (_ for _ in ()).throw(OSError("no space left")))
        for second in range(10):
            assert watch.look(float(second))
    assert len(started) == 1, "the disk is full for longer than a second"
    assert not processes.is_running(started[0])
    assert watch.look(100.0)
    assert recorded(layout, "one").num_restarts == 1


def test_one_that_has_lasted_is_restarted_at_once(
    state: State, layout: Layout, commands: dict[str, Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Supervisor(layout.state_dir, layout.marker, commands)
    monkeypatch.setattr(supervisor, "STABLE_SECONDS", 0.0)
    for number in range(1, 4):
        kill(recorded(layout, "one"))
        watch.look(float(number))
        assert recorded(layout, "one").num_restarts == number


# A scheduler with an idle worker and one that has a task, by their titles.
EXECUTOR = """
import os, sys, time
import setproctitle
for title in ("<idle>", "bliss_round.fit"):
    if os.fork() == 0:
        setproctitle.setproctitle(f"airflow worker -- LocalExecutor: {title}")
        print("idle" if "idle" in title else "busy", os.getpid(), flush=True)
        time.sleep(600)
print("server", os.getpid(), flush=True)
time.sleep(600)
"""


def test_a_scheduler_is_restarted_when_an_idle_worker_of_its_executor_dies(layout: Layout) -> None:
    pytest.importorskip("setproctitle")
    commands = {"scheduler": Command([sys.executable, "-c", EXECUTOR], os.environ | {MARKER: layout.marker})}
    state = State(layout)
    command = commands["scheduler"]
    log_file = layout.log_of("scheduler")
    state.put(processes.start("scheduler", command.arguments, env=command.environment, log_file=log_file, cwd=layout.state_dir))
    try:
        wait_for(lambda: len(said(layout, "scheduler", "idle")) == len(said(layout, "scheduler", "busy")) == 1)
        watch = Supervisor(layout.state_dir, layout.marker, commands)
        watch.look(1.0)
        os.kill(said(layout, "scheduler", "busy")[0], signal.SIGKILL)
        watch.look(2.0)
        assert recorded(layout, "scheduler").num_restarts == 0, "it costs its own task a try and no more"
        os.kill(said(layout, "scheduler", "idle")[0], signal.SIGKILL)
        watch.look(3.0)
        assert recorded(layout, "scheduler").num_restarts == 1
        wait_for(lambda: len(said(layout, "scheduler", "idle")) == 2)
        watch.look(4.0)
        assert recorded(layout, "scheduler").num_restarts == 1, "the workers of the one before are not missed"
    finally:
        processes.end(read_state(layout.state_dir).services, layout.marker)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_in_a_container_a_scheduler_ends_with_an_idle_worker_of_its_executor(layout: Layout, number: signal.Signals) -> None:
    """SIGKILL to the idle worker, or SIGTERM to the container's first process, as Docker stops one."""
    pytest.importorskip("setproctitle")
    command = [sys.executable, "-m", "bliss_ops.stack.executor", sys.executable, "-c", EXECUTOR]
    first = processes.start("scheduler", command, env=os.environ | {MARKER: layout.marker}, log_file=layout.log_of("x"), cwd=Path.cwd())
    try:
        wait_for(lambda: len(said(layout, "x", "idle")) == len(said(layout, "x", "busy")) == len(said(layout, "x", "server")) == 1)
        os.kill(said(layout, "x", "busy")[0], signal.SIGKILL)
        time.sleep(3.0)
        assert processes.is_running(first), "a worker with a task holds nothing up"
        os.kill(first.pid if number == signal.SIGTERM else said(layout, "x", "idle")[0], number)
        wait_for(lambda: not processes.is_running(first))
        assert not psutil.pid_exists(said(layout, "x", "server")[0])
        assert ("no task would start any more" in layout.log_of("x").read_text()) == (number == signal.SIGKILL)
    finally:
        processes.end([first], layout.marker)


def test_another_stack_or_none_ends_it(state: State, layout: Layout, commands: dict[str, Command]) -> None:
    assert not Supervisor(layout.state_dir, "an earlier stack", commands).look(0.0)
    kill(state.services[0])
    (layout.state_dir / "stack.json").unlink()
    assert not Supervisor(layout.state_dir, layout.marker, commands).look(0.0)
    assert len(said(layout, "one", "server")) == 1, "not restarted"


def test_down_ends_it_before_the_servers(state: State, layout: Layout) -> None:
    """The real process, over two servers; a stack that is taken down must not come up again."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom bliss_ops.stack import services, supervisor\n"
        "services.airflow_commands = lambda layout: {name: [sys.executable, '-c', sys.argv[2]] for name in ('one', 'two')}\n"
        "supervisor.main(Path(sys.argv[1]))\n"
    )
    command = [sys.executable, "-c", script, str(layout.state_dir), SERVER]
    environment = os.environ | {MARKER: layout.marker}
    state.put(processes.start(supervisor.NAME, command, env=environment, log_file=layout.log_of(supervisor.NAME), cwd=layout.state_dir))
    wait_for(lambda: "watching over one, two" in layout.log_of(supervisor.NAME).read_text())
    assert local.is_up(layout.state_dir)
    kill(recorded(layout, "two"))
    wait_for(lambda: len(said(layout, "two", "server")) == 2)
    wait_for(lambda: recorded(layout, "two").num_restarts == 1)
    assert "two has ended" in layout.log_of(supervisor.NAME).read_text()
    local.down(layout.state_dir)
    assert read_state(layout.state_dir) is None
    assert processes.living(state.services, layout.marker) == []
    assert not local.is_up(layout.state_dir)


def test_without_its_supervisor_a_stack_is_not_up(state: State, layout: Layout) -> None:
    assert not local.is_up(layout.state_dir)
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    state.put(
        processes.start(
            supervisor.NAME, sleeper, env=os.environ | {MARKER: layout.marker}, log_file=layout.log_of("x"), cwd=layout.state_dir
        )
    )
    assert local.is_up(layout.state_dir)
    kill(recorded(layout, supervisor.NAME))
    assert not local.is_up(layout.state_dir)
