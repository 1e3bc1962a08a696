"""The commands and settings of the local servers: one Ray head and Airflow's four parts, all bound to 127.0.0.1.

Ray's head is told that this is a one-machine cluster (the switch is named after Windows and macOS): only then do all its ports stay on
the loopback interface. Its Jobs API runs whatever it is sent, so it also asks for a token, which other users of the machine cannot read.
"""

import json
import os
import secrets
import socket
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import bliss_ops
from bliss_ops.stack.processes import MARKER

HOST = "127.0.0.1"
USER = "admin"
DEFAULT_PORTS = {
    "airflow": 8080,
    "ray_jobs": 8265,
    "ray": 6379,
    "ray_client": 10001,
    "ray_agent": 52365,
    "ray_metrics": 44227,
    "ray_monitor": 44217,
}
OBJECT_STORE_BYTES = 200_000_000  # stages hand each other files, not objects
REPOSITORY = Path(bliss_ops.__file__).resolve().parents[1]


@dataclass(frozen=True)
class Layout:
    """Where one stack keeps things, and on which ports it listens."""

    state_dir: Path
    lake: str
    marker: str
    ray_temp: Path
    ports: dict[str, int]

    @property
    def airflow_home(self) -> Path:
        return self.state_dir / "airflow"

    @property
    def logs(self) -> Path:
        return self.state_dir / "logs"

    def log_of(self, server: str) -> Path:
        return self.logs / f"{server}.log"

    @property
    def ray_token(self) -> Path:
        return self.state_dir / "ray-token"

    @property
    def airflow_url(self) -> str:
        return f"http://{HOST}:{self.ports['airflow']}"

    @property
    def ray_url(self) -> str:
        return f"http://{HOST}:{self.ports['ray_jobs']}"

    @property
    def passwords(self) -> Path:
        return self.airflow_home / "simple_auth_manager_passwords.json.generated"


def check_installed() -> None:
    """Raise ValueError when Airflow, Ray or the DAGs are not there."""
    missing = [name for name in ("airflow", "ray", "psutil") if find_spec(name) is None]
    if missing:
        raise ValueError(f"{', '.join(missing)} not installed: run `make install`, or pip install 'bliss-ops[airflow,ray,train]'")
    if not (REPOSITORY / "dags").is_dir():
        raise ValueError(f"no DAGs at {REPOSITORY / 'dags'}: `bliss up` works from a clone of the repository")


def choose_ports() -> dict[str, int]:
    """The usual ports where they are free, else any free ones."""
    return {name: port if _is_free(port) else free_port() for name, port in DEFAULT_PORTS.items()}


def shared_environment(layout: Layout) -> dict[str, str]:
    """What Ray and Airflow both need to see."""
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "RAY_"))},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        MARKER: layout.marker,
        "BLISS_LAKE": layout.lake,
        **_landing(),
        "TMPDIR": str(layout.ray_temp),  # short, and removed with everything in it
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(layout.ray_token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def ray_environment(layout: Layout) -> dict[str, str]:
    return shared_environment(layout) | {
        "RAY_JOB_START_TIMEOUT_SECONDS": str(7 * 24 * 3600),  # a training job may wait days for the one before it
        "DASHBOARD_METRIC_PORT": str(layout.ports["ray_metrics"]),
        "AUTOSCALER_METRIC_PORT": str(layout.ports["ray_monitor"]),
    }


def ray_command(layout: Layout) -> list[str]:
    ports = layout.ports
    return [
        _script("ray"),
        "start",
        "--head",
        "--block",
        f"--node-ip-address={HOST}",
        f"--port={ports['ray']}",
        f"--dashboard-host={HOST}",
        f"--dashboard-port={ports['ray_jobs']}",
        f"--dashboard-agent-listen-port={ports['ray_agent']}",
        f"--ray-client-server-port={ports['ray_client']}",
        f"--temp-dir={layout.ray_temp}",
        f"--object-store-memory={OBJECT_STORE_BYTES}",
        "--disable-usage-stats",
        "--log-color=false",
    ]


def airflow_commands(layout: Layout) -> dict[str, list[str]]:
    """Airflow's parts; task logs are read from the disk, so no log server is started."""
    airflow = _script("airflow")
    return {
        "api-server": [airflow, "api-server", "--host", HOST, "--port", str(layout.ports["airflow"]), "--workers", "1"],
        "scheduler": [airflow, "scheduler", "--skip-serve-logs"],
        "dag-processor": [airflow, "dag-processor"],
        "triggerer": [airflow, "triggerer", "--skip-serve-logs"],
    }


def migrate_command() -> list[str]:
    return [_script("airflow"), "db", "migrate"]


def airflow_environment(layout: Layout) -> dict[str, str]:
    """SQLite, LocalExecutor, one user; short waits, because a demo has many small tasks."""
    home, url = layout.airflow_home, layout.airflow_url
    settings = {
        "CORE__DAGS_FOLDER": REPOSITORY / "dags",
        "CORE__EXECUTOR": "LocalExecutor",
        "CORE__PARALLELISM": 4,
        "CORE__LOAD_EXAMPLES": False,
        "CORE__DAGS_ARE_PAUSED_AT_CREATION": False,
        "CORE__AUTH_MANAGER": "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager",
        "CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
        "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": layout.passwords,
        "CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}?timeout=60",  # without it: HTTP 500 under start-up load
        "API__HOST": HOST,
        "API__PORT": layout.ports["airflow"],
        "API__BASE_URL": url,
        "API__SECRET_KEY": secrets.token_urlsafe(32),
        "API_AUTH__JWT_SECRET": secrets.token_urlsafe(48),
        "LOGGING__BASE_LOG_FOLDER": home / "logs",
        "SCHEDULER__SCHEDULER_HEARTBEAT_SEC": 2,
        "SCHEDULER__ENABLE_HEALTH_CHECK": False,
        # A task waits for an API server that is being restarted, a minute; by default it gives up after some ten seconds, a try each time.
        "WORKERS__EXECUTION_API_RETRIES": 20,
        "WORKERS__EXECUTION_API_RETRY_WAIT_MAX": 5,
        # A task's process ends a moment after its sockets close; who watches it sleeps that long before the next look, holding the slot.
        "WORKERS__MIN_HEARTBEAT_INTERVAL": 1,
        "SCHEDULER__TASK_INSTANCE_HEARTBEAT_TIMEOUT": 90,  # a killed process's task is tried again after that, not five minutes
        "SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": 15,  # and a killed scheduler's tasks as soon as it counts as dead, after 30 s
        "DAG_PROCESSOR__PARSING_PROCESSES": 1,
        "DAG_PROCESSOR__REFRESH_INTERVAL": 30,
        "USAGE_DATA_COLLECTION__ENABLED": False,
    }
    connection = {"conn_type": "http", "host": HOST, "port": layout.ports["ray_jobs"]}
    return shared_environment(layout) | {
        "AIRFLOW_HOME": str(home),
        **{f"AIRFLOW__{name}": str(value) for name, value in settings.items()},
        "AIRFLOW_CONN_RAY_DEFAULT": json.dumps(connection),
        "BLISS_RETRY_SECONDS": "2",
        "BLISS_TRAINING_CPUS": str(training_cpus()),
        "BLISS_TRAINING_GPUS": str(min(1, num_gpus())),
    }


def training_cpus() -> int:
    """CPUs that a training job claims: half of them, so that a run and its baseline go side by side."""
    return max(1, (os.cpu_count() or 1) // 2)


def num_training_jobs() -> int:
    """Training jobs that have room at the same time."""
    return num_gpus() or (os.cpu_count() or 1) // training_cpus()


def num_gpus() -> int:
    """NVIDIA GPUs of this machine."""
    return len(list(Path("/dev").glob("nvidia[0-9]*")))


def _landing() -> dict[str, str]:
    """The watched folder as seen from the servers' own working directory."""
    prefix = os.environ.get("BLISS_LANDING")
    return {"BLISS_LANDING": prefix if "://" in prefix else str(Path(prefix).absolute())} if prefix else {}


def _script(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])
