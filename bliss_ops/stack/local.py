"""`bliss up` and `bliss down`: start the local servers, wait until they are healthy, write down what to end.

The state file is written before each start and removed after everything has ended, so whatever goes wrong in between,
`bliss down` still knows what to clean up.
"""

import json
import logging
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.error import URLError

from bliss_ops.airflow import GPU_POOL, SCORE_STORE_POOL, TRAINING_POOL
from bliss_ops.lake import Lake
from bliss_ops.stack import processes, services
from bliss_ops.stack.airflow_api import AirflowApi, AirflowError
from bliss_ops.stack.processes import Service
from bliss_ops.stack.services import Layout

log = logging.getLogger(__name__)

DAG_IDS = frozenset({"bliss_compare", "bliss_ingest", "bliss_land", "bliss_rescore", "bliss_rescore_nightly", "bliss_round"})
START_SECONDS = 180.0
LOG_TAIL_LINES = 20


@dataclass
class State:
    """Content of `stack.json`."""

    layout: Layout
    services: list[Service] = field(default_factory=list)

    def save(self) -> None:
        layout = asdict(self.layout) | {"state_dir": str(self.layout.state_dir), "ray_temp": str(self.layout.ray_temp)}
        text = json.dumps({"layout": layout, "services": [asdict(service) for service in self.services]}, indent=2)
        path = _state_file(self.layout.state_dir)
        temporary = path.with_suffix(".tmp")
        temporary.write_text(text)
        temporary.replace(path)

    @property
    def api(self) -> AirflowApi:
        """Airflow, logged in as the user it generated a password for."""
        return AirflowApi(self.layout.airflow_url, services.USER, password(self.layout))


def up(lake: Lake, state_dir: Path) -> State:
    """Start Ray and Airflow over `lake` and wait until both are healthy; when they are up already, say so.

    Raises:
        ValueError: something is not installed, or the stack is up over another lake.
        RuntimeError: a server ended or was not healthy in time; its last log lines are in the message, nothing is left running.
    """
    services.check_installed()
    state_dir = state_dir.absolute()
    if state := read_state(state_dir):
        if is_up(state_dir):
            if state.layout.lake != str(lake.root):
                raise ValueError(f"already up over the lake {state.layout.lake}: run `bliss down` first, to use {lake.root}")
            _announce(state, "already up")
            return state
        log.warning("what an earlier `bliss up` left behind is cleaned up first")
        down(state_dir)
    begun = time.monotonic()
    state = State(_make_layout(lake, state_dir))
    state.save()
    try:
        _start(state)
    except BaseException:
        down(state_dir)
        raise
    _announce(state, f"up in {time.monotonic() - begun:.0f} s")
    return state


def down(state_dir: Path) -> None:
    """End every process `up` started, remove Ray's temporary directory; data, logs and Airflow's history stay."""
    state_dir = state_dir.absolute()
    state = read_state(state_dir)
    if state is None:
        log.info("nothing is up in %s", state_dir)
        return
    begun = time.monotonic()
    num_killed = processes.end(state.services, state.layout.marker)
    _remove_ray_temp(state.layout.ray_temp)
    state.layout.ray_token.unlink(missing_ok=True)
    _state_file(state_dir).unlink()
    log.info("down in %.1f s%s", time.monotonic() - begun, f" ({num_killed} processes had to be killed)" if num_killed else "")


def is_up(state_dir: Path) -> bool:
    """Whether every server that `up` started is alive and healthy."""
    state = read_state(state_dir.absolute())
    return state is not None and all(processes.is_running(service) for service in state.services) and _is_ready(state)


def status(state_dir: Path) -> dict[str, bool]:
    """Which recorded servers are alive; empty when nothing is up."""
    state = read_state(state_dir.absolute())
    return {service.name: processes.is_running(service) for service in state.services} if state else {}


def read_state(state_dir: Path) -> State | None:
    """The recorded state, or None.

    Raises:
        ValueError: the state file is damaged.
    """
    path = _state_file(state_dir)
    try:
        values = json.loads(path.read_text())
        layout = values["layout"]
        layout |= {"state_dir": Path(layout["state_dir"]), "ray_temp": Path(layout["ray_temp"])}
        return State(Layout(**layout), [Service(**service) for service in values["services"]])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): end the processes with {processes.MARKER} in their environment, then delete it"
        ) from error


def password(layout: Layout) -> str:
    """The password Airflow generated, whose file only its owner may read."""
    layout.passwords.chmod(0o600)
    return str(json.loads(layout.passwords.read_text())[services.USER])


def _make_layout(lake: Lake, state_dir: Path) -> Layout:
    for directory in (state_dir, state_dir / "airflow", state_dir / "logs"):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    ports = services.choose_ports()
    for name, port in ports.items():
        if port != services.DEFAULT_PORTS[name] and name in ("airflow", "ray_jobs"):
            log.info("port %d is in use: %s listens on %d", services.DEFAULT_PORTS[name], name, port)
    # Not below state_dir: Ray's socket names are longer than a Unix socket's address may be in a deep directory.
    ray_temp = Path(tempfile.mkdtemp(prefix="bliss-ray-"))
    layout = Layout(state_dir, str(lake.root), secrets.token_hex(8), ray_temp, ports)
    with os.fdopen(os.open(layout.ray_token, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    return layout


def _start(state: State) -> None:
    layout = state.layout
    _start_service(state, "ray", services.ray_command(layout), services.ray_environment(layout))
    environment = services.airflow_environment(layout)
    _migrate(layout, environment)
    for name, command in services.airflow_commands(layout).items():
        _start_service(state, name, command, environment)
    # Our own processes, not any that answer: another stack may have taken the port since it was chosen.
    chosen = {layout.ports["airflow"], layout.ports["ray_jobs"]}
    _wait_for(state, "Airflow and Ray to listen on their ports", lambda: processes.listening_ports(state.services, layout.marker) >= chosen)
    _wait_for(state, "Airflow's parts to be healthy", lambda: _is_healthy(state.layout))
    api = state.api
    api.make_pool(SCORE_STORE_POOL, 1, "The score store has one writer at a time.")
    api.make_pool(GPU_POOL, services.num_gpus() or os.cpu_count() or 1, "Scoring tasks at once: the cluster's GPUs, else its CPUs.")
    api.make_pool(TRAINING_POOL, services.num_training_jobs(), "Training tasks at once: as many as the machine has room for.")
    _wait_for(state, "the DAGs to appear", lambda: api.dag_ids() >= DAG_IDS or _no_import_errors(api))


def _start_service(state: State, name: str, command: list[str], environment: dict[str, str]) -> None:
    log_file = state.layout.logs / f"{name}.log"
    log_file.write_bytes(b"")
    state.services.append(processes.start(name, command, env=environment, log_file=log_file, cwd=state.layout.state_dir))
    state.save()


def _migrate(layout: Layout, environment: dict[str, str]) -> None:
    log_file = layout.logs / "migrate.log"
    with log_file.open("wb") as output:
        result = subprocess.run(services.migrate_command(), env=environment, stdout=output, stderr=subprocess.STDOUT, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"`airflow db migrate` failed; the end of {log_file}:\n{_tail(log_file)}")


def _wait_for(state: State, what: str, is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not is_true():
        for service in state.services:
            if not processes.is_running(service):
                log_file = state.layout.logs / f"{service.name}.log"
                raise RuntimeError(f"{service.name} ended while waiting for {what}; the end of {log_file}:\n{_tail(log_file)}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {START_SECONDS:.0f} s for {what}; see the logs in {state.layout.logs}")
        time.sleep(0.3)


def _is_ready(state: State) -> bool:
    return _is_healthy(state.layout) and state.layout.passwords.exists()


def _is_healthy(layout: Layout) -> bool:
    try:
        return set(AirflowApi(layout.airflow_url, "", "").health().values()) == {"healthy"}
    except (URLError, OSError, AirflowError, ValueError):
        return False


def _no_import_errors(api: AirflowApi) -> bool:
    """False; raises when a DAG cannot be read, because then waiting does not help."""
    if errors := api.import_errors():
        raise RuntimeError("a DAG cannot be imported:\n" + "\n".join(errors))
    return False


def _remove_ray_temp(path: Path) -> None:
    if path.name.startswith("bliss-ray-"):  # never anything else, whatever the state file says
        shutil.rmtree(path, ignore_errors=True)


def _announce(state: State, what: str) -> None:
    layout = state.layout
    log.info(
        "%s: Airflow at %s (user %s, password %s), Ray's Jobs API at %s, lake %s, logs in %s",
        what,
        layout.airflow_url,
        services.USER,
        password(layout),
        layout.ray_url,
        layout.lake,
        layout.logs,
    )


def _tail(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])


def _state_file(state_dir: Path) -> Path:
    return state_dir / "stack.json"
