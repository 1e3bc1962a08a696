"""What is broken, how, and what heals it: one `Fault` for each row of the matrix.

A blow is struck once in every stage, while the stage's command runs, or its task's process where that is what is hit. What ends is
started again by the cluster's restart policy, as Docker would; nothing else helps.
"""

import contextlib
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil

from tests.s3.faulty_proxy import FaultyProxy
from tests.stack import titles
from tests.stack.cluster import Cluster

OUTAGE_SECONDS = 30.0
FROZEN_SECONDS = 60.0
STALL_SECONDS, SILENCE_SECONDS = 60, 60  # what is frozen for good is noticed sooner than by default, so that a row takes minutes
DISK_BYTES = 512_000_000
WAIT_FOR_VICTIM_SECONDS = 4.0
# The row's own words for how long it takes until somebody acts, with docker-compose.yml's settings.
HEARTBEAT_SECONDS = 150.0  # TASK_INSTANCE_HEARTBEAT_TIMEOUT, and the scheduler's looks at it
NODE_SECONDS, HEAD_SECONDS = 60.0, 120.0  # Ray's health checks; a head and its nodes that start again
TRIGGERER_SECONDS, CLIENT_SECONDS = 60.0, 60.0


@dataclass(frozen=True)
class Driver:
    """A stage's command at work, or, for a fault `of_tasks`, the process of its task that submits it or concludes it."""

    stage: str
    process: psutil.Process


@dataclass
class Scene:
    """What a blow may reach."""

    cluster: Cluster
    proxy: FaultyProxy

    def node_of(self, process: psutil.Process) -> str:
        """The Ray node whose container a process is in; the first worker node when it is gone."""
        nodes = [name for name in self.cluster.names if name.startswith("ray-worker")]
        return next((name for name in nodes if process.pid in self.cluster.pids(name)), nodes[0])

    def task_processes(self) -> list[psutil.Process]:
        """Of tasks that do not wait in the triggerer."""
        return self.find(titles.TASK, "airflow-scheduler")

    def find(self, pattern: str, *containers: str) -> list[psutil.Process]:
        """Living processes of these containers whose command line fits."""
        found = []
        for pid in {pid for name in containers for pid in self.cluster.pids(name)}:
            try:
                process = psutil.Process(pid)
                if re.search(pattern, " ".join(process.cmdline()).strip()):
                    found.append(process)
            except psutil.Error:  # it has ended meanwhile
                continue
        return sorted(found, key=lambda process: process.pid)

    def ray_workers(self) -> list[psutil.Process]:
        """Those that have a shard: nobody waits for one that has only begun."""
        return self.find(titles.RAY_WORKER_WITH_A_SHARD, *(name for name in self.cluster.names if name.startswith("ray-worker")))


Strike = Callable[[Scene, Driver], str]  # returns what was hit; empty: there was nothing to hit


@dataclass(frozen=True)
class Fault:
    """One row: what breaks, in words, and the blow itself."""

    name: str
    words: str
    strike: Strike
    variables: Mapping[str, str] = field(default_factory=dict)  # of the cluster's .env
    setting: Callable[[Cluster], Iterator[None]] | None = None  # what has to be there before the cluster starts
    of_tasks: bool = False  # struck is a task's process, not its stage's command
    noticed_within: float = 10.0  # seconds until somebody acts, as docs/reliability.md states it for the cluster's settings
    is_doubled: bool = False  # every DAG run is triggered twice, beside a second scheduler


def _kill(name: str, number: signal.Signals = signal.SIGKILL) -> Strike:
    def strike(scene: Scene, _driver: Driver) -> str:
        scene.cluster.kill(name, number)
        return name

    return strike


def _kill_node(scene: Scene, driver: Driver) -> str:
    node = scene.node_of(driver.process)
    scene.cluster.kill(node)
    return node


def _kill_driver(_scene: Scene, driver: Driver) -> str:
    driver.process.kill()
    return f"bliss {driver.stage}"


def _kill_task(_scene: Scene, driver: Driver) -> str:
    driver.process.kill()
    return f"the task of {driver.stage}"


def _signal_one(number: signal.Signals, find: Callable[[Scene], list[psutil.Process]], scene: Scene, _driver: Driver) -> str:
    """The first that is found, or that comes within seconds."""
    deadline = time.monotonic() + WAIT_FOR_VICTIM_SECONDS
    while not (found := find(scene)) and time.monotonic() < deadline:
        time.sleep(0.1)
    if not found:
        return ""
    words = _words(found[0])
    found[0].send_signal(number)
    return words


def _freeze_node(scene: Scene, driver: Driver) -> str:
    node = scene.node_of(driver.process)
    scene.cluster.pause(node)
    threading.Timer(FROZEN_SECONDS, scene.cluster.resume, [node]).start()
    return node


def _freeze_driver(_scene: Scene, driver: Driver) -> str:
    driver.process.suspend()
    threading.Timer(FROZEN_SECONDS, _resume, [driver.process]).start()
    return f"bliss {driver.stage}"


def _freeze_driver_for_good(_scene: Scene, driver: Driver) -> str:
    driver.process.suspend()
    return f"bliss {driver.stage}"


def _resume(process: psutil.Process) -> None:
    if process.is_running():
        process.resume()


def _words(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline()).strip()[:80]
    except psutil.Error:
        return f"pid {process.pid}"


def _s3(how: str, scene: Scene, _driver: Driver) -> str:
    if how == "cut":
        scene.proxy.cut_upload(count=1)
    elif how == "hang":
        scene.proxy.hang(seconds=OUTAGE_SECONDS)
    elif how == "reset":
        scene.proxy.reset(seconds=OUTAGE_SECONDS)
    else:
        scene.proxy.fail(int(how), seconds=OUTAGE_SECONDS)
    return "s3"


def _ray_disk(cluster: Cluster) -> Path:
    return cluster.directory / "volumes" / "ray"


@contextmanager
def _small_disk(cluster: Cluster) -> Iterator[None]:
    """What Ray's nodes write to gets a file system of its own."""
    disk = _ray_disk(cluster)
    disk.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(disk)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=False)
        shutil.rmtree(cluster.directory, ignore_errors=True)  # what the cluster could not delete while it was mounted


def _fill_disk(scene: Scene, _driver: Driver) -> str:
    balloon = _ray_disk(scene.cluster) / "balloon"
    with balloon.open("wb") as file, contextlib.suppress(OSError):  # now it is full
        while True:
            file.write(bytes(1 << 20))
    threading.Timer(OUTAGE_SECONDS, _delete, [balloon]).start()
    return "Ray's disk"


def _delete(path: Path) -> None:
    path.unlink(missing_ok=True)


def _nothing(_scene: Scene, _driver: Driver) -> str:
    return "nothing"


def _kill_one(pattern: str, containers: str = "ray-worker") -> Strike:
    """The oldest process that fits, in the containers whose names begin so."""

    def find(scene: Scene) -> list[psutil.Process]:
        return scene.find(pattern, *(name for name in scene.cluster.names if name.startswith(containers)))

    return partial(_signal_one, signal.SIGKILL, find)


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("nothing", "nothing: the undisturbed run", _nothing),
        Fault("kill-driver", "the stage's own process (Ray job driver), kill -9", _kill_driver),
        Fault("kill-ray-worker", "a Ray worker process of the stage, kill -9", partial(_signal_one, signal.SIGKILL, Scene.ray_workers)),
        Fault("kill-job-supervisor", "Ray's supervisor of the job, kill -9", _kill_one(titles.JOB_SUPERVISOR)),
        Fault("kill-task", "Airflow's task process as it submits or concludes, kill -9", _kill_task, of_tasks=True),
        Fault("kill-ray-node", "the Ray node that runs the job, kill -9", _kill_node, noticed_within=NODE_SECONDS),
        Fault("kill-raylet", "the raylet of a Ray node, kill -9", _kill_one(titles.RAYLET), noticed_within=NODE_SECONDS),
        Fault("kill-gcs", "the GCS server of Ray's head, kill -9", _kill_one(titles.GCS_SERVER, "ray-head"), noticed_within=HEAD_SECONDS),
        Fault(
            "kill-dashboard", "the dashboard of Ray's head, kill -9", _kill_one(titles.DASHBOARD, "ray-head"), noticed_within=HEAD_SECONDS
        ),
        Fault("kill-ray-head", "the Ray head, kill -9", _kill("ray-head"), noticed_within=HEAD_SECONDS),
        Fault("restart-ray-head", "the Ray head, restarted (SIGTERM)", _kill("ray-head", signal.SIGTERM), noticed_within=HEAD_SECONDS),
        Fault(
            "kill-scheduler",
            "Airflow's scheduler with its task processes, kill -9",
            _kill("airflow-scheduler"),
            noticed_within=HEARTBEAT_SECONDS,
        ),
        Fault(
            "kill-idle-worker",
            "an idle worker of the scheduler's executor, kill -9",
            _kill_one(titles.IDLE_EXECUTOR_WORKER, "airflow-scheduler"),
            noticed_within=HEARTBEAT_SECONDS,
        ),
        Fault("kill-triggerer", "Airflow's triggerer, kill -9", _kill("airflow-triggerer"), noticed_within=TRIGGERER_SECONDS),
        Fault("kill-api-server", "Airflow's API server, kill -9", _kill("airflow-api-server"), noticed_within=CLIENT_SECONDS),
        Fault("kill-dag-processor", "Airflow's DAG processor, kill -9", _kill("airflow-dag-processor")),
        Fault("kill-postgres", "Postgres, kill -9", _kill("postgres"), noticed_within=CLIENT_SECONDS),
        Fault("restart-postgres", "Postgres, restarted (fast shutdown)", _kill("postgres", signal.SIGINT), noticed_within=CLIENT_SECONDS),
        Fault("kill-s3", "the S3 server with all its parts, kill -9", _kill("s3"), noticed_within=OUTAGE_SECONDS),
        Fault("s3-500", "S3 answers 500 for 30 s", partial(_s3, "500"), noticed_within=OUTAGE_SECONDS),
        Fault("s3-503", "S3 answers 503 for 30 s", partial(_s3, "503"), noticed_within=OUTAGE_SECONDS),
        Fault("s3-timeout", "S3 does not answer for 30 s", partial(_s3, "hang"), noticed_within=OUTAGE_SECONDS),
        Fault("s3-reset", "S3 resets every connection for 30 s", partial(_s3, "reset"), noticed_within=OUTAGE_SECONDS),
        Fault("s3-cut", "the next upload is cut in the middle", partial(_s3, "cut")),
        Fault(
            "full-disk",
            "the disk of the Ray nodes and the head is full for 30 s",
            _fill_disk,
            setting=_small_disk,
            variables={"BLISS_RETRY_SECONDS": "30"},  # as shipped: the two retries of two seconds that other rows have are over by then
            noticed_within=OUTAGE_SECONDS,
        ),
        Fault("freeze-driver", "the stage's own process is frozen (SIGSTOP) for 60 s", _freeze_driver, noticed_within=FROZEN_SECONDS),
        Fault(
            "freeze-ray-worker",
            f"a Ray worker process of the stage is frozen for good (BLISS_STALL_SECONDS={STALL_SECONDS})",
            partial(_signal_one, signal.SIGSTOP, Scene.ray_workers),
            variables={"BLISS_STALL_SECONDS": str(STALL_SECONDS)},
            noticed_within=STALL_SECONDS,
        ),
        Fault(
            "freeze-driver-for-good",
            f"the stage's own process is frozen for good (BLISS_SILENCE_SECONDS={SILENCE_SECONDS})",
            _freeze_driver_for_good,
            variables={"BLISS_SILENCE_SECONDS": str(SILENCE_SECONDS)},
            noticed_within=SILENCE_SECONDS,
        ),
        Fault("freeze-ray-node", "the Ray node that runs the job is frozen for 60 s", _freeze_node, noticed_within=FROZEN_SECONDS),
        Fault("duplicates", "every DAG run is triggered twice, two schedulers run", _nothing, is_doubled=True),
    )
}
