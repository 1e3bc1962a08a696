"""Restarts a server that has ended; `bliss up` leaves this running beside the servers, `bliss down` ends it before them.

A server that ends is restarted at once, with the command, ports and secrets it had; what it left behind is killed first, since it would
hold ports or go on with tasks that are given out again. One that ends within a minute of its start waits 2, 4, 8, ... 60 s, for ever.
What ends with a server comes back by itself: Airflow's scheduler gives out again the tasks that it finds without a process, and a
task whose Ray job was lost with the head submits it again. Each restart is in `logs/supervisor.log` and counted in `stack.json`.
"""

import contextlib
import logging
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from bliss_ops.stack import processes, services
from bliss_ops.stack.executor import IdleWorkers
from bliss_ops.stack.processes import Service
from bliss_ops.stack.services import Layout
from bliss_ops.stack.state import State, read_state

log = logging.getLogger(__name__)

NAME = "supervisor"
SCHEDULER = "scheduler"
POLL_SECONDS = 1.0
STABLE_SECONDS = 60.0
WAITS_SECONDS = (0.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0)  # before the first restart, the second in a row, ...


@dataclass(frozen=True)
class Command:
    """How a server is started."""

    arguments: list[str]
    environment: Mapping[str, str]


@dataclass
class Supervisor:
    """The servers of one stack, looked at once a second."""

    state_dir: Path
    marker: str
    commands: Mapping[str, Command]  # by server
    num_in_a_row: dict[str, int] = field(default_factory=dict)  # starts of a server, each of which did not last
    not_before: dict[str, float] = field(default_factory=dict)  # when a server may be started again, in seconds of `now`
    idle_workers: IdleWorkers = field(default_factory=IdleWorkers)

    def look(self, now: float) -> bool:
        """Restart what has ended and whose time has come; False when the stack that this is for is no longer there."""
        state = read_state(self.state_dir)
        if state is None or state.layout.marker != self.marker:
            return False
        for service in list(state.services):
            if service.name in self.commands and (not processes.is_running(service) or self._is_wedged(service)):
                try:
                    self._see_to(state, service, now)
                except (RuntimeError, OSError) as error:  # what hangs in the kernel, no memory, a full disk: all of them may pass
                    log.error("%s cannot be restarted yet: %s", service.name, error)  # noqa: TRY400 - the message says it all
        return True

    def _is_wedged(self, service: Service) -> bool:
        """Whether it is a scheduler whose executor will not start another task."""
        if service.name != SCHEDULER or not self.idle_workers.one_has_died(service):
            return False
        log.warning("%s (pid %d): an idle worker of its executor has died, no task would start any more", service.name, service.pid)
        return True

    def _see_to(self, state: State, service: Service, now: float) -> None:
        name = service.name
        if name not in self.not_before:
            lasted = processes.age_seconds(service)
            num_left = processes.end_remains(service, self.marker)
            in_a_row = 0 if lasted >= STABLE_SECONDS else self.num_in_a_row.get(name, -1) + 1
            wait = WAITS_SECONDS[min(in_a_row, len(WAITS_SECONDS) - 1)]
            self.num_in_a_row[name], self.not_before[name] = in_a_row, now + wait
            when = f"in {wait:.0f} s" if wait else "now"
            log.warning("%s has ended after %.0f s; %d processes of it are killed, it is restarted %s", name, lasted, num_left, when)
        if now < self.not_before[name]:
            return
        started = self._start(state.layout, service)
        try:
            state.put(started)
        except OSError:  # a full disk: what nobody knows of would be started once more at every look
            processes.end_remains(started, self.marker)
            self.not_before[name] = now + WAITS_SECONDS[-1]
            raise
        del self.not_before[name]

    def _start(self, layout: Layout, service: Service) -> Service:
        command = self.commands[service.name]
        started = processes.start(
            service.name, command.arguments, env=command.environment, log_file=layout.log_of(service.name), cwd=layout.state_dir
        )
        log.info("%s is started again: pid %d", service.name, started.pid)
        return replace(started, num_restarts=service.num_restarts + 1, restarted_at=datetime.now(UTC).isoformat(timespec="seconds"))


def command(layout: Layout) -> list[str]:
    """The command that supervises the stack of this layout, to be started with Airflow's environment: its secrets are nowhere else."""
    return [sys.executable, "-m", "bliss_ops.stack", str(layout.state_dir)]


def main(state_dir: Path) -> None:
    """Watch over the stack that is up in `state_dir` until it is gone."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S", stream=sys.stdout)
    state = _when_recorded(state_dir)
    if state is None:
        return
    layout = state.layout
    commands = {name: Command(arguments, dict(os.environ)) for name, arguments in services.airflow_commands(layout).items()}
    commands["ray"] = Command(services.ray_command(layout), services.ray_environment(layout))
    supervisor = Supervisor(state_dir, layout.marker, commands)
    log.info("watching over %s", ", ".join(service.name for service in state.services if service.name in commands))
    while supervisor.look(time.monotonic()):
        _reap()
        time.sleep(POLL_SECONDS)


def _when_recorded(state_dir: Path) -> State | None:
    """The state, as soon as `bliss up` has written this process down: its last word before it leaves the file to us."""
    while state := read_state(state_dir):
        own = state.find(NAME)
        if own is not None and own.pid == os.getpid():
            return state
        time.sleep(0.1)
    return None


def _reap() -> None:
    """Take note of ended children, which would stay zombies otherwise."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
