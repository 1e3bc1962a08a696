"""`bliss up` and `bliss down`: start the local servers, wait until they are healthy, write down what to end.

The state file is written before each start and removed after everything has ended, so whatever goes wrong in between,
`bliss down` still knows what to clean up. A supervisor stays beside the servers and restarts one that ends (see supervisor.py).
"""

import logging
import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from urllib.error import URLError

from bliss_ops.airflow import GPU_POOL, SCORE_STORE_POOL, TRAINING_POOL
from bliss_ops.lake import Lake
from bliss_ops.stack import processes, services, supervisor
from bliss_ops.stack.airflow_api import AirflowApi, AirflowError
from bliss_ops.stack.services import Layout
from bliss_ops.stack.state import State, password, read_state, state_file

log = logging.getLogger(__name__)

DAG_IDS = frozenset(
    {"bliss_compare", "bliss_ingest", "bliss_land", "bliss_reconcile", "bliss_rescore", "bliss_rescore_nightly", "bliss_round"}
)
START_SECONDS = 180.0
LOG_TAIL_LINES = 20


def up(lake: Lake, state_dir: Path) -> State:
    """Start Ray and Airflow over `lake` and wait until both are healthy; when they are up already, say so.

    Raises:
        ValueError: something is not installed, or the stack is up over another lake.
        RuntimeError: a server ended or was not healthy in time; its last log lines are in the message, nothing is left running.
    """
    services.check_installed()
    state_dir = state_dir.absolute()
    if there := read_state(state_dir):
        if is_up(state_dir):
            if there.layout.lake != str(lake.root):
                raise ValueError(f"already up over the lake {there.layout.lake}: run `bliss down` first, to use {lake.root}")
            _wait_for(there, "a server that is being restarted", lambda: _is_listening(there) and _is_healthy(there.layout))
            _announce(read_state(state_dir) or there, "already up")
            return there
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
    if watching := state.find(supervisor.NAME):
        processes.stop(watching)  # it would restart what is ended here
        state = read_state(state_dir) or state
    killed = processes.end(state.services, state.layout.marker)
    _remove_ray_temp(state.layout.ray_temp)
    state.layout.ray_token.unlink(missing_ok=True)
    state_file(state_dir).unlink()
    log.info("down in %.1f s%s", time.monotonic() - begun, f" (had to be killed: {', '.join(killed)})" if killed else "")


def is_up(state_dir: Path) -> bool:
    """Whether `up` has brought the servers up and they are seen to: one that has ended is restarted."""
    state = read_state(state_dir.absolute())
    watching = state.find(supervisor.NAME) if state else None
    return watching is not None and processes.is_running(watching)


def status(state_dir: Path) -> dict[str, bool]:
    """Which recorded servers are alive; empty when nothing is up."""
    state = read_state(state_dir.absolute())
    return {service.name: processes.is_running(service) for service in state.services} if state else {}


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
    _wait_for(state, "Airflow and Ray to listen on their ports", lambda: _is_listening(state))
    _wait_for(state, "Airflow's parts to be healthy", lambda: _is_healthy(layout))
    api = state.api
    api.make_pool(SCORE_STORE_POOL, 1, "The score store has one writer at a time.")
    api.make_pool(GPU_POOL, services.num_gpus() or os.cpu_count() or 1, "Scoring tasks at once: the cluster's GPUs, else its CPUs.")
    api.make_pool(TRAINING_POOL, services.num_training_jobs(), "Training tasks at once: as many as the machine has room for.")
    _wait_for(state, "the DAGs to appear", lambda: api.dag_ids() >= DAG_IDS or _no_import_errors(api))
    _start_service(state, supervisor.NAME, supervisor.command(layout), environment)


def _start_service(state: State, name: str, command: list[str], environment: dict[str, str]) -> None:
    log_file = state.layout.log_of(name)
    log_file.write_bytes(b"")
    state.put(processes.start(name, command, env=environment, log_file=log_file, cwd=state.layout.state_dir))


def _migrate(layout: Layout, environment: dict[str, str]) -> None:
    log_file = layout.logs / "migrate.log"
    with log_file.open("wb") as output:
        result = subprocess.run(services.migrate_command(), env=environment, stdout=output, stderr=subprocess.STDOUT, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"`airflow db migrate` failed; the end of {log_file}:\n{_tail(log_file)}")


def _wait_for(state: State, what: str, is_true: Callable[[], bool]) -> None:
    """Return when `is_true()` holds; a server that ends meanwhile ends the waiting, where nobody restarts it."""
    is_supervised = state.find(supervisor.NAME) is not None
    deadline = time.monotonic() + START_SECONDS
    while not is_true():
        for service in [] if is_supervised else state.services:
            if not processes.is_running(service):
                log_file = state.layout.log_of(service.name)
                raise RuntimeError(f"{service.name} ended while waiting for {what}; the end of {log_file}:\n{_tail(log_file)}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"waited {START_SECONDS:.0f} s for {what}; see the logs in {state.layout.logs}")
        time.sleep(0.3)


def _is_listening(state: State) -> bool:
    """Our own processes, not any that answer: another stack may have taken a port since it was chosen."""
    layout = state.layout
    return processes.listening_ports(state.services, layout.marker) >= {layout.ports["airflow"], layout.ports["ray_jobs"]}


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
    for service in state.services:
        if service.num_restarts:
            log.info(
                "%s has ended and was restarted, %d times; the last time at %s", service.name, service.num_restarts, service.restarted_at
            )


def _tail(path: Path) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
