"""What `docker-compose.yml` wires, as processes of this machine: the same commands and variables, real servers, everything on 127.0.0.1.

Each service of the file is started as its container would be, with host names and ports replaced, and its mounts below one directory.
Docker's part is played: jobs first, `unless-stopped` by a thread, a container ends with its first process. Our own images' processes cannot
import what the image does not have (image/), and, where the tests run as root, have their user, read-only root and no capabilities
(container.sh). What differs: the S3 server is Swift, PostgreSQL is Debian's, and Ray's three nodes share one address, which its command
line refuses outside of Windows and macOS (`RAY_LAUNCHER`).
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from bliss_ops.stack import deployment, processes
from bliss_ops.stack.airflow_api import AirflowApi, AirflowError
from bliss_ops.stack.local import DAG_IDS
from bliss_ops.stack.services import free_port
from tests.stack import compose_file, postgres, swift
from tests.stack.compose_file import REPOSITORY, ComposeService
from tests.stack.swift import S3Server

NUM_WORKERS = 2
BUCKET = "bliss"
# Three nodes on one address need ports of their own. And where these are not chosen, Ray gives its agent 15 s to choose them, which is less
# than it takes to start with thirty processes waiting for two cores.
NODE_PORTS = ("dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent", "metrics-export")
CONTAINER_USER = 50000
ABSENT = {
    "bliss-ops-airflow": ("torch", "transformers", "safetensors", "tokenizers", "gigatoken", "ray", "lm_eval", "datasets"),
    "bliss-ops-ray": ("airflow",),
}
START_SECONDS = 600.0  # on a busy machine Ray gives up on its own parts once or twice, and is started again
RESTART_SECONDS = 1.0  # how long a service that ended stays away
PORTS = {"8080": "airflow", "8265": "ray_jobs", "6379": "ray", "5432": "postgres", "7070": "s3"}
AGENT_PORT = "52365"  # each node has it to itself in its container; here it has one of its own

# What a test's machine has room for, in place of what .env.example proposes.
SMALL = {
    "RAY_WORKER_CPUS": "1",
    "BLISS_TRAINING_CPUS": "1",
    "TRAINING_SLOTS": "1",
    "SCORING_SLOTS": "2",
    "AIRFLOW_PARALLELISM": "4",
    "BLISS_RETRY_SECONDS": "2",
}

# One address for all nodes: Ray keeps its servers on the loopback interface then, but will not join a second node, nor take 127.0.0.1
# for an address, unless these two checks are passed first.
RAY_LAUNCHER = """
import os, sys
from ray._private import ray_constants, services
assert ray_constants.ENABLE_RAY_CLUSTER
services.resolve_ip_for_localhost = lambda host: host
services._find_address_from_flag = lambda flag: set()  # in a container there are no processes of other nodes, whose flags name a dead head
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
from ray.scripts.scripts import main
sys.exit(main())
"""


def missing() -> str:
    """What keeps the cluster from running here; empty when nothing does."""
    return swift.missing() or postgres.missing()


@dataclass
class Running:
    """One container's stand-in."""

    name: str
    service: ComposeService
    commands: dict[str, list[str]]  # by process; a service of the file has one, Swift several
    environment: dict[str, str]
    marker: str
    leaders: list[processes.Service] = field(default_factory=list)
    is_wanted: bool = False  # is to be up: ended processes are started again
    num_starts: int = 0


class Cluster:
    """All services of the compose file; a context manager: up and healthy inside, nothing left after.

    Args:
        settings: variables of `.env` beside the secrets, over `SMALL`.
        s3_endpoint: address that clients are told instead of the S3 server's own, such as a proxy's; called with that own address.
        overrides: further compose files.
    """

    def __init__(
        self,
        settings: Mapping[str, str] | None = None,
        *,
        s3_endpoint: Callable[[str], str] = lambda endpoint: endpoint,
        overrides: tuple[str, ...] = (),
    ) -> None:
        # Short, because Ray's sockets are below it; open for searching, because PostgreSQL runs as another user.
        self.directory = Path(tempfile.mkdtemp(prefix="bc-"))
        self.directory.chmod(0o711)
        self.marker = secrets.token_hex(8)
        self.ports = {name: free_port() for name in PORTS.values()}
        self.variables = compose_file.dotenv(deployment.fill((REPOSITORY / ".env.example").read_text())) | SMALL | dict(settings or {})
        self.server, self._swift_commands = swift.prepare(
            self._path("s3"), secret_key=self.variables["S3_SECRET_KEY"], port=self.ports["s3"]
        )
        self.variables |= {"S3_ACCESS_KEY": self.server.access_key, "S3_ENDPOINT": "http://s3:7070", "S3_BUCKET": BUCKET}
        self._s3_endpoint = s3_endpoint
        self._overrides = overrides
        self._running: dict[str, Running] = {}
        self._agent_ports: dict[str, int] = {}  # by container
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    # ---- what tests use ----------------------------------------------------------------------------------------------

    @property
    def s3_endpoint(self) -> str:
        """Address that the cluster's parts were given."""
        return self._s3_endpoint(self.server.endpoint)

    @property
    def api(self) -> AirflowApi:
        return AirflowApi(f"http://127.0.0.1:{self.ports['airflow']}", "admin", self.variables["AIRFLOW_ADMIN_PASSWORD"])

    @property
    def ray_address(self) -> str:
        """Ray's Jobs API."""
        return f"http://127.0.0.1:{self.ports['ray_jobs']}"

    @property
    def lake(self) -> str:
        return f"s3://{BUCKET}/lake"

    @property
    def environment(self) -> dict[str, str]:
        """What a `bliss` command needs to reach the lake, and a client of Ray's Jobs API its token."""
        s3 = S3Server(self.s3_endpoint, self.server.access_key, self.server.secret_key).environment
        return s3 | {"BLISS_LAKE": self.lake, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.variables["RAY_AUTH_TOKEN"]}

    @property
    def names(self) -> list[str]:
        """Names of all containers that stay up, in the order they were started."""
        return [name for name, running in self._running.items() if running.is_wanted]

    def pids(self, name: str) -> list[int]:
        """Every process of a container."""
        return [process.pid for process in self._processes(name)]

    def listening(self, name: str) -> set[str]:
        """Addresses that a container's processes listen on."""
        found: set[str] = set()
        for process in self._processes(name):
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
                found |= {each.laddr.ip for each in process.net_connections(kind="inet") if each.status == psutil.CONN_LISTEN}
        return found

    def leaders(self, name: str) -> list[int]:
        """The container's first process; of the S3 server, those of its parts."""
        return [service.pid for service in self._running[name].leaders]

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal a container; SIGKILL reaches all its processes, as a container's end does, any other its first one."""
        found = self._processes(name)
        leaders = set(self.leaders(name))
        for process in found:
            if number == signal.SIGKILL or process.pid in leaders:
                _send(process, number)

    def pause(self, name: str) -> None:
        for process in self._processes(name):
            _send(process, signal.SIGSTOP)

    def resume(self, name: str) -> None:
        for process in self._processes(name):
            _send(process, signal.SIGCONT)

    def stop(self, name: str) -> None:
        """End a container and leave it so."""
        with self._lock:
            running = self._running[name]
            running.is_wanted = False
            processes.end(running.leaders, running.marker)
            running.leaders = []

    def start(self, name: str) -> None:
        with self._lock:
            self._start(self._running[name])

    def restart(self, name: str) -> None:
        self.stop(name)
        self.start(name)

    def add(self, name: str, *, like: str) -> None:
        """Another container of a service that is up, under a name of its own."""
        self._begin(name, self._running[like].service)

    def num_starts(self, name: str) -> int:
        """How often the container was started, the first time included."""
        return self._running[name].num_starts

    def log(self, name: str) -> str:
        return "".join(path.read_text(errors="replace") for path in sorted((self.directory / "log").glob(f"{name}*.log")))

    def run_healthcheck(self, name: str) -> subprocess.CompletedProcess[str]:
        """The container's health check as the compose file has it."""
        running = self._running[name]
        command = self._contained(
            name, running.service, [self._translated(word, running.service, name) for word in running.service.healthcheck[1:]]
        )
        environment = running.environment | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # as for what RAY_LAUNCHER starts
        return subprocess.run(command, env=environment, cwd=self.directory, capture_output=True, text=True, check=False)

    def ray_nodes(self) -> list[dict[str, Any]]:
        """Ray's living nodes, as its dashboard lists them; empty while it does not answer."""
        request = urllib.request.Request(
            f"{self.ray_address}/nodes?view=summary", headers={"Authorization": f"Bearer {self.variables['RAY_AUTH_TOKEN']}"}
        )
        try:
            with _OPENER.open(request, timeout=10) as answer:
                nodes = json.load(answer)["data"]["summary"]
        except (OSError, ValueError, KeyError, TypeError):
            return []
        return [node for node in nodes if node["raylet"]["state"] == "ALIVE"]

    def is_healthy(self) -> bool:
        """Airflow's four parts, every Ray node, and the S3 server."""
        try:
            healthy = set(self.api.health().values()) == {"healthy"}
        except (OSError, AirflowError, ValueError):
            return False
        return healthy and len(self.ray_nodes()) == 1 + NUM_WORKERS and swift.answers(self.server)

    def wait_until_healthy(self, seconds: float = START_SECONDS) -> None:
        self._wait("every part to be healthy", self.is_healthy, seconds)

    # ---- up and down -------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self._up()
        except BaseException:
            self._down()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._down()

    def _up(self) -> None:
        (self.directory / "log").mkdir()
        services = compose_file.read(self.variables, *self._overrides)
        self._watcher.start()
        while services:
            ready = [name for name, service in services.items() if not service.depends_on.keys() & services.keys()]
            assert ready, f"{sorted(services)} wait for each other"
            for name in ready:
                service = services.pop(name)
                replicas = [f"{name}-{number}" for number in range(1, NUM_WORKERS + 1)] if name == "ray-worker" else [name]
                for replica in replicas:
                    self._begin(replica, service)
        self._wait("every part to be healthy", self.is_healthy)
        self._wait("the DAGs to appear", lambda: self.api.dag_ids() >= DAG_IDS)

    def _begin(self, name: str, service: ComposeService) -> None:
        """Start a service that stays up, or run a job to its end, once what it waits for is there."""
        for other, condition in service.depends_on.items():
            if condition == "service_healthy":
                self._wait(f"{other} to be healthy", lambda other=other: self.run_healthcheck(other).returncode == 0)
        running = self._running[name] = Running(name, service, {}, self._environment(name, service), f"{self.marker}-{name}")
        running.commands = self._commands(name, service)
        if service.restart != "no":
            with self._lock:
                self._start(running)
            return
        with self._log_file(name).open("wb") as output:
            done = subprocess.run(
                running.commands[name], env=running.environment, cwd=self.directory, stdout=output, stderr=subprocess.STDOUT, check=False
            )
        if done.returncode != 0:
            raise RuntimeError(f"the job {name} failed:\n{self.log(name)[-3000:]}")

    def _start(self, running: Running) -> None:
        running.leaders = [
            processes.start(name, command, env=running.environment, log_file=self._log_file(name), cwd=self.directory)
            for name, command in running.commands.items()
        ]
        running.is_wanted = True
        running.num_starts += 1

    def _down(self) -> None:
        self._ended.set()
        if self._watcher.ident is not None:
            self._watcher.join()
        for running in self._running.values():
            running.is_wanted = False
            self.resume(running.name)
            self.kill(running.name, signal.SIGTERM)  # all at once; then one after the other is waited for
        for running in reversed(self._running.values()):
            processes.end(running.leaders, running.marker)
        if os.environ.get("BLISS_KEEP_CLUSTER") is None:
            shutil.rmtree(self.directory, ignore_errors=True)

    def _watch(self) -> None:
        """The restart policy: a container ends with its first process, and what is wanted is started again."""
        while not self._ended.wait(RESTART_SECONDS):
            for running in list(self._running.values()):
                with self._lock:
                    if running.is_wanted and not all(processes.is_running(service) for service in running.leaders):
                        processes.end(running.leaders, running.marker)
                        if not self._ended.is_set():
                            self._start(running)

    def _wait(self, what: str, is_true: Callable[[], bool], seconds: float = START_SECONDS) -> None:
        deadline = time.monotonic() + seconds
        while not is_true():
            if time.monotonic() > deadline:
                logs = "\n".join(f"---- {name}\n{self.log(name)[-1500:]}" for name in self._running)
                raise RuntimeError(f"waited {seconds:.0f} s for {what}\n{logs}")
            time.sleep(1.0)

    # ---- from containers to processes --------------------------------------------------------------------------------

    def _commands(self, name: str, service: ComposeService) -> dict[str, list[str]]:
        if name == "s3":
            return {f"s3-{part}": command for part, command in self._swift_commands.items()}
        if name == "postgres":
            return {name: postgres.prepare(self._path(name), password=self.variables["POSTGRES_PASSWORD"], port=self.ports["postgres"])}
        command = [self._translated(word, service, name) for word in service.command]
        if service.name in ("ray-head", "ray-worker"):
            command = [sys.executable, "-c", RAY_LAUNCHER, *command[1:], "--node-ip-address=127.0.0.1"]
            ports = {part: free_port() for part in NODE_PORTS}
            self._agent_ports[name] = ports["dashboard-agent-listen"]
            command += [f"--{part}-port={port}" for part, port in ports.items()]
        if service.name == "ray-head":
            command.append(f"--ray-client-server-port={free_port()}")
        return {name: self._contained(name, service, command)}

    def _contained(self, name: str, service: ComposeService, command: list[str]) -> list[str]:
        """The command with what its container may not do, where it takes root to arrange that."""
        if os.geteuid() != 0 or not service.is_hardened or name == "s3":
            return command
        writable = [self._mounted(path, service, name) for path in service.mounts]
        for directory in writable:
            os.chown(_made(directory), CONTAINER_USER, CONTAINER_USER)
        script = REPOSITORY / "tests" / "stack" / "container.sh"
        return ["unshare", "--mount", "sh", str(script), sys.executable, " ".join(map(str, writable)), *command]

    def _mounted(self, path: str, service: ComposeService, name: str) -> Path:
        """What is mounted at a container's path. Ray's nodes share theirs: a process finds its node by the address, which is the same."""
        volume = "ray" if service.name.startswith("ray-") else service.mounts[path]
        return self._path("volumes", volume) if volume else self._path(name, path.strip("/").replace("/", "-"))

    def _environment(self, name: str, service: ComposeService) -> dict[str, str]:
        inside = {
            key: value if key in deployment.SECRETS else self._translated(value, service, name)
            for key, value in service.environment.items()
        }
        temporary = _made(self._mounted("/tmp", service, name) if "/tmp" in service.mounts else self._path(name, "tmp"))  # noqa: S108
        kept = {key: os.environ[key] for key in ("LANG", "OMP_NUM_THREADS") if key in os.environ}
        return kept | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.defpath}",
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "tests" / "stack" / "image")]),
            "BLISS_ABSENT": ",".join(ABSENT.get(service.image, ())),
            **inside,
            "HOME": str(temporary),
            "TMPDIR": str(temporary),
            "AWS_ENDPOINT_URL": self.s3_endpoint,
            "DASHBOARD_METRIC_PORT": str(free_port()),
            "AUTOSCALER_METRIC_PORT": str(free_port()),
            processes.MARKER: f"{self.marker}-{name}",
        }

    def _translated(self, text: str, service: ComposeService, name: str = "") -> str:
        """Host names, ports and paths of a container as they are on this machine."""
        text = re.sub(r"\b(?:ray-head|postgres|s3|airflow-api-server)(?=:\d|\")", "127.0.0.1", text)
        text = text.replace("0.0.0.0", "127.0.0.1")  # noqa: S104 - what the containers listen on
        ports = {inside: self.ports[part] for inside, part in PORTS.items()}
        if name in self._agent_ports:
            ports[AGENT_PORT] = self._agent_ports[name]
        text = re.sub(rf"\b(?:{'|'.join(ports)})\b", lambda match: str(ports[match[0]]), text)
        here = {"/opt/bliss/dags": REPOSITORY / "dags"}
        here |= {path: self._mounted(path, service, name or service.name) for path in service.mounts}
        paths = "|".join(sorted(map(re.escape, here), key=len, reverse=True))
        return re.sub(rf"(?<![\w/])(?:{paths})\b", lambda match: str(_made(here[match[0]])), text)

    def _path(self, *parts: str) -> Path:
        return self.directory.joinpath(*parts)

    def _log_file(self, name: str) -> Path:
        return self._path("log", f"{name}.log")

    def _processes(self, name: str) -> list[psutil.Process]:
        running = self._running[name]
        return processes.living(running.leaders, running.marker)


_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
