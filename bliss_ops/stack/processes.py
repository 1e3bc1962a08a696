"""Start server processes so that exactly they, and all their children, can be ended later by another process.

Each server leads a session of its own, recorded as pid + when it began. Its descendants are found by session, by parentage and by
markers in their environment, of the stack and of the server (Ray puts every job's command in a new session, so a process group alone
would miss them).
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import psutil

log = logging.getLogger(__name__)

MARKER = "BLISS_STACK_ID"
SERVER = "BLISS_STACK_SERVER"
STARTTIME = 19  # place in /proc/<pid>/stat behind the name; proc(5) counts it as the 22nd field
GRACE_SECONDS = 5.0  # Ray ends in about 3 s; Airflow would wait for its running tasks


@dataclass(frozen=True)
class Service:
    """A started server: the leader of its own session."""

    name: str
    pid: int
    created_at: float  # tells it from a later process with the same pid; see `began`
    num_restarts: int = 0
    restarted_at: str = ""  # the last time


def start(name: str, command: Sequence[str], *, env: Mapping[str, str], log_file: Path, cwd: Path) -> Service:
    """Start `command` in a session of its own; its output goes to `log_file`."""
    with log_file.open("ab") as output:
        process = subprocess.Popen(
            list(command),
            env=dict(env) | {SERVER: name},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return Service(name, process.pid, began(process.pid))


def began(pid: int) -> float:
    """When a process began, in seconds of `_now`.

    On Linux since the machine's start, which stays what it is when somebody sets the clock; psutil's times move with it (its `boot_time`
    is read anew each time), and every server would seem to be another process.

    Raises:
        psutil.NoSuchProcess: there is none.
    """
    import psutil

    if sys.platform != "linux":
        return float(psutil.Process(pid).create_time())
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # what is before may contain anything
    except (FileNotFoundError, ProcessLookupError):
        raise psutil.NoSuchProcess(pid) from None
    return int(fields[STARTTIME]) / os.sysconf("SC_CLK_TCK")


def age_seconds(service: Service) -> float:
    """How long ago a service began."""
    return _now() - service.created_at


def _now() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME) if sys.platform == "linux" else time.time()


def is_running(service: Service) -> bool:
    """Whether the recorded process itself is alive (not another one with its pid, not a zombie)."""
    import psutil

    try:
        return bool(began(service.pid) == service.created_at and psutil.Process(service.pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def living(services: Sequence[Service], marker: str, server: str | None = None) -> "list[psutil.Process]":
    """Every living process that belongs to these services, the services themselves included.

    Args:
        services: recorded servers; what is in their sessions belongs to them.
        marker: the stack's; what has it in its environment belongs to it ...
        server: ... where this is given, only what that server has started.
    """
    import psutil

    sessions = {service.pid: service for service in services if not _pid_was_reused(service)}
    markers = {MARKER: marker} | ({SERVER: server} if server else {})
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        if process.pid != os.getpid() and _belongs(process, sessions, markers):
            found[process.pid] = process
            found |= {child.pid: child for child in _children(process)}
    found.pop(os.getpid(), None)
    return [process for process in found.values() if _is_alive(process)]


def listening_ports(services: Sequence[Service], marker: str) -> set[int]:
    """TCP ports that the services' processes listen on."""
    import psutil

    ports: set[int] = set()
    for process in living(services, marker):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # it ended meanwhile
            ports |= {c.laddr.port for c in process.net_connections(kind="tcp") if c.status == psutil.CONN_LISTEN}
    return ports


def end(services: Sequence[Service], marker: str) -> list[str]:
    """End all of them: politely first, then by SIGKILL. Returns the names of the processes that had to be killed.

    Raises:
        RuntimeError: a process survives SIGKILL (it hangs in the kernel).
    """
    _signal(_leaders(services), signal.SIGTERM)
    deadline = time.monotonic() + GRACE_SECONDS
    while (left := living(services, marker)) and time.monotonic() < deadline:
        if not any(is_running(service) for service in services):
            _signal(left, signal.SIGTERM)  # their leaders are gone: nobody else will tell them
        time.sleep(0.2)
    killed = [_name(process) for process in left]
    _kill(lambda: living(services, marker))
    return killed


def end_remains(service: Service, marker: str) -> int:
    """Kill what a server has left behind that ended by itself; returns how many processes that were."""

    def left() -> "list[psutil.Process]":
        return living([service], marker, service.name)

    num_left = len(left())
    _kill(left)
    return num_left


def stop(service: Service) -> None:
    """End this one process, and nothing that it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        _signal(_leaders([service]), number)
        deadline = time.monotonic() + GRACE_SECONDS
        while is_running(service) and time.monotonic() < deadline:
            time.sleep(0.05)


def _kill(find: "Callable[[], list[psutil.Process]]") -> None:
    """SIGKILL to what there is until nothing is."""
    deadline = time.monotonic() + GRACE_SECONDS
    while left := find():
        if time.monotonic() > deadline:
            raise RuntimeError(f"processes {sorted(process.pid for process in left)} do not end, not even by SIGKILL")
        _signal(left, signal.SIGKILL)
        time.sleep(0.1)


def _leaders(services: Sequence[Service]) -> "list[psutil.Process]":
    import psutil

    return [psutil.Process(service.pid) for service in services if is_running(service)]


def _signal(processes: "Iterable[psutil.Process]", number: signal.Signals) -> None:
    import psutil

    for process in processes:
        try:
            process.send_signal(number)  # psutil checks the creation time again
        except psutil.NoSuchProcess:
            continue


def _belongs(process: "psutil.Process", sessions: Mapping[int, Service], markers: Mapping[str, str]) -> bool:
    import psutil

    try:
        service = sessions.get(os.getsid(process.pid))
        if service is not None and began(process.pid) >= service.created_at:
            return True
        environment = process.environ()
        return all(environment.get(name) == value for name, value in markers.items())
    except (psutil.Error, OSError):  # gone meanwhile, or another user's
        return False


def _children(process: "psutil.Process") -> "list[psutil.Process]":
    import psutil

    try:
        return list(process.children(recursive=True))
    except psutil.NoSuchProcess:
        return []


def _is_alive(process: "psutil.Process") -> bool:
    import psutil

    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _pid_was_reused(service: Service) -> bool:
    import psutil

    try:
        return began(service.pid) != service.created_at
    except psutil.NoSuchProcess:
        return False


def _name(process: "psutil.Process") -> str:
    """How a message names a process: the beginning of its command line."""
    import psutil

    try:
        words = " ".join(process.cmdline()) or process.name()
    except psutil.Error:  # it has ended at last
        return f"pid {process.pid}"
    return words if len(words) <= 60 else f"{words[:59]}…"
