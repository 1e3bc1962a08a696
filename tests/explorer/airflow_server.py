"""Airflow's real API server with the plugin, over a lake: `airflow db migrate`, then `airflow api-server`, nothing else."""

import json
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from bliss_ops.stack import processes, services

PASSWORDS = {"admin": "a-password-of-tests", "viewer": "another-password", "nobody": "a-third-password"}
SECONDS_TO_START = 120


@dataclass(frozen=True)
class Server:
    """A running API server."""

    url: str
    log: Path

    def token(self, user: str) -> str:
        """A bearer token, as `POST /auth/token` gives it."""
        answer = httpx.post(f"{self.url}/auth/token", json={"username": user, "password": PASSWORDS[user]}, timeout=30)
        answer.raise_for_status()
        return str(answer.json()["access_token"])


@contextmanager
def airflow_server(
    lake: str, directory: Path, *, with_dags: bool = False, with_scheduler: bool = False, variables: Mapping[str, str] | None = None
) -> Iterator[Server]:
    """Start it on a free port of 127.0.0.1 and end it with all its children.

    Args:
        lake: what it is over.
        directory: for its database, logs and scratch files.
        with_dags: the DAGs are read into its database first.
        with_scheduler: what is triggered runs.
        variables: of its environment, beside what `bliss up` sets.
    """
    ports = {name: services.free_port() for name in services.DEFAULT_PORTS}
    layout = services.Layout(state_dir=directory, lake=lake, marker=uuid.uuid4().hex, ray_temp=directory / "scratch", ports=ports)
    for folder in (layout.airflow_home, layout.logs, layout.ray_temp):
        folder.mkdir(parents=True, exist_ok=True)
    layout.passwords.write_text(json.dumps(PASSWORDS))
    environment = services.airflow_environment(layout) | {
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin,viewer:viewer,nobody:",  # a user without a role may do nothing
        **(variables or {}),
    }
    commands = services.airflow_commands(layout)
    command = commands["api-server"]
    run = {"env": environment, "cwd": directory, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "check": True, "timeout": 300}
    subprocess.run(services.migrate_command(), **run)  # type: ignore[call-overload]
    if with_dags:
        subprocess.run([command[0], "dags", "reserialize"], **run)  # type: ignore[call-overload]
    log = layout.logs / "api-server.log"
    started = [processes.start("api-server", command, env=environment, log_file=log, cwd=directory)]
    try:
        wait_until_up(layout.airflow_url, started[0], log)
        if with_scheduler:
            scheduler = layout.logs / "scheduler.log"
            started.append(processes.start("scheduler", commands["scheduler"], env=environment, log_file=scheduler, cwd=directory))
        yield Server(layout.airflow_url, log)
    finally:
        processes.end(started, layout.marker)


def wait_until_up(url: str, service: processes.Service, log: Path) -> None:
    deadline = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            if httpx.get(f"{url}/api/v2/version", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            assert processes.is_running(service), log.read_text()[-2000:]
        assert time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.2)
