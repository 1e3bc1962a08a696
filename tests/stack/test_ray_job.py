"""The Ray operator on the real embedded stack, and deferrable on Postgres: whatever dies, one job; whoever stops the task, none.

pytest -m slow tests/stack/test_ray_job.py -k synchronous      # or deferrable: about five minutes each
"""

import os
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import psutil
import pytest

from bliss_ops.lake import Lake
from bliss_ops.ray.jobs import Job, RayJobs
from bliss_ops.stack import local, processes, services
from bliss_ops.stack.airflow_api import FINISHED, AirflowApi
from bliss_ops.stack.services import Layout
from bliss_ops.stack.state import State, read_state
from tests.stack import postgres

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DAGS = '''
from datetime import timedelta
from airflow.sdk import DAG, Asset, chain
from bliss_ops.airflow.orphans import FindOrphansOperator, StopOrphanOperator
from bliss_ops.airflow.ray_job import RayJobOperator
from bliss_ops.airflow.tasks import DAG_ARGS

WORK = """
import sys, time
def say(word):
    print(word, flush=True)
    with open(sys.argv[1], "a") as witness:
        witness.write(word + "\\\\n")
say("began")
time.sleep(float(sys.argv[2]))
say("ended")
"""
ARGS = DAG_ARGS | {"params": {"witness": "/dev/null", "seconds": 1}}
ORPHANS = Asset(name="orphans", uri="tests://orphans")

def work(**kwargs):
    entrypoint = ["python", "-c", WORK, "{{ params.witness }}", "{{ params.seconds }}"]
    return RayJobOperator(task_id="work", entrypoint=entrypoint, head_wait_seconds=120, **kwargs)

with DAG("work", schedule=None, **ARGS):
    work()
with DAG("limited", schedule=None, **ARGS):
    work(execution_timeout=timedelta(seconds=10), retries=0)
with DAG("brief", schedule=None, dagrun_timeout=timedelta(seconds=10), **ARGS):
    work()
with DAG("reconcile", schedule=None, **DAG_ARGS):
    look = FindOrphansOperator(task_id="look", memory=ORPHANS, conn_id="ray_default", grace_seconds=0)
    chain(look, StopOrphanOperator.partial(task_id="stop", conn_id="ray_default", outlets=[ORPHANS]).expand_kwargs(look.output))
'''
MODES = ("synchronous", "deferrable")


class Stack:
    """A stack over DAGs of our own, and what a test asks of it."""

    def __init__(self, state: State, mode: str, directory: Path) -> None:
        self.layout = state.layout
        self.api: AirflowApi = state.api
        self.mode = mode
        self.directory = directory
        self.jobs = RayJobs(state.layout.ray_url, token=state.layout.ray_token.read_text())

    def start(self, dag_id: str, seconds: float) -> tuple[str, Path]:
        """Trigger a DAG run and wait until its job has begun."""
        run_id = f"{dag_id}-{secrets.token_hex(3)}"
        witness = self.directory / run_id
        self.api.trigger(dag_id, run_id, {"witness": str(witness), "seconds": seconds})
        wait_for(witness.exists)
        return run_id, witness

    def end(self, dag_id: str, run_id: str, seconds: float = 150) -> str:
        return str(wait_for(lambda: (state := self.api.dag_run_state(dag_id, run_id)) in FINISHED and state, seconds))

    def jobs_of(self, run_id: str) -> list[Job]:
        """In order of their generations."""
        return sorted((job for job in self.jobs.jobs() if job.metadata.get("airflow_run_id") == run_id), key=lambda job: job.submission_id)

    def states_of(self, run_id: str) -> list[str]:
        return [job.status for job in self.jobs_of(run_id)]

    def kill(self, name: str) -> None:
        """SIGKILL a server; the supervisor starts it again."""
        state = read_state(self.layout.state_dir)
        assert state is not None
        service = state.find(name)
        assert service is not None
        os.kill(service.pid, 9)
        wait_for(lambda: (now := read_state(self.layout.state_dir)) and (new := now.find(name)) and new.pid != service.pid)

    def kill_task_process(self) -> None:
        state = read_state(self.layout.state_dir)
        assert state is not None
        for process in processes.living(state.services, self.layout.marker):
            try:
                title = process.cmdline()[0]
            except (psutil.NoSuchProcess, IndexError):
                continue
            if title.startswith("airflow worker -- ") and "LocalExecutor" not in title:
                process.kill()
                return
        raise AssertionError("no task runs")


@pytest.fixture(scope="module", params=MODES)
def stack(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    root, mode = tmp_path_factory.mktemp("ray-jobs"), request.param
    dags = root / "dags"
    dags.mkdir()
    (dags / "jobs.py").write_text(DAGS)
    more = {"AIRFLOW__CORE__DAGS_FOLDER": str(dags)}
    database: processes.Service | None = None
    marker = secrets.token_hex(8)
    if mode == "deferrable":
        if why := postgres.missing():
            pytest.skip(why)
        directory = Path(tempfile.mkdtemp(prefix="bliss-postgres-"))  # pytest closes its own directories to the user `postgres`
        directory.chmod(0o711)
        database, address = start_postgres(directory, marker)
        more |= {"AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": address, "AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE": "True"}
    environment = services.airflow_environment

    def with_ours(layout: Layout) -> dict[str, str]:
        return environment(layout) | more

    state_dir = root / "state"
    try:
        with mock.patch.object(services, "airflow_environment", with_ours), mock.patch.object(local, "DAG_IDS", {"work", "reconcile"}):
            state = local.up(Lake.open(root / "lake"), state_dir)
        yield Stack(state, mode, root)
    finally:
        local.down(state_dir)
        if database is not None:
            processes.end([database], marker)
            shutil.rmtree(directory)


def start_postgres(root: Path, marker: str) -> tuple[processes.Service, str]:
    """A database of its own for Airflow: the server, and its address."""
    port = services.free_port()
    password = secrets.token_hex(8)
    command = postgres.prepare(root / "postgres", password=password, port=port)
    environment = os.environ | {processes.MARKER: marker}
    database = processes.start("postgres", command, env=environment, log_file=root / "postgres.log", cwd=root / "postgres")
    wait_for(lambda: _accepts(port))
    return database, f"postgresql+psycopg2://{postgres.USER}:{password}@{services.HOST}:{port}/{postgres.USER}"


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((services.HOST, port)) == 0


def wait_for(what: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.2)
    return found


def tries(stack: Stack, dag_id: str, run_id: str) -> int:
    (task,) = stack.api.task_instances(dag_id, run_id)
    return task.try_number


def test_a_job_runs_its_log_is_shown_once_and_its_page_is_linked(stack: Stack) -> None:
    run_id, witness = stack.start("work", seconds=3)
    task_path = f"/api/v2/dags/work/dagRuns/{run_id}/taskInstances/work"
    links = wait_for(lambda: stack.api.call("GET", f"{task_path}/links")["extra_links"], 3)
    assert stack.end("work", run_id) == "success"
    (job,) = stack.jobs_of(run_id)
    assert links == {"Ray dashboard": f"{stack.layout.ray_url}/#/jobs/{job.submission_id}"}
    (task,) = stack.api.task_instances("work", run_id)
    lines = stack.api.task_log("work", run_id, task)
    assert (lines.count("began"), lines.count("ended")) == (1, 1)
    assert witness.read_text() == "began\nended\n"


def test_what_follows_the_job_is_killed(stack: Stack) -> None:
    """The task's process, or the triggerer: one job, and it is followed to its end."""
    run_id, witness = stack.start("work", seconds=15)
    if stack.mode == "synchronous":
        stack.kill_task_process()
    else:
        wait_for(lambda: stack.api.task_instances("work", run_id)[0].state == "deferred")
        stack.kill("triggerer")
    assert stack.end("work", run_id) == "success"
    assert witness.read_text() == "began\nended\n"
    assert stack.states_of(run_id) == ["SUCCEEDED"]
    assert tries(stack, "work", run_id) == (2 if stack.mode == "synchronous" else 1)


def test_the_ray_head_is_killed(stack: Stack) -> None:
    """It comes back without any record: the job is submitted as its next generation, and that costs no try."""
    run_id, witness = stack.start("work", seconds=8)
    stack.kill("ray")
    assert stack.end("work", run_id) == "success"
    assert witness.read_text() == "began\nbegan\nended\n"
    (job,) = stack.jobs_of(run_id)
    assert job.submission_id.endswith(".2")
    assert tries(stack, "work", run_id) == 1


def stopped(stack: Stack, run_id: str, witness: Path, seconds: float = 45) -> None:
    wait_for(lambda: stack.states_of(run_id) == ["STOPPED"], seconds)
    assert witness.read_text() == "began\n"


def test_marking_the_dag_run_failed_stops_the_job(stack: Stack) -> None:
    run_id, witness = stack.start("work", seconds=600)
    stack.api.call("PATCH", f"/api/v2/dags/work/dagRuns/{run_id}", {"state": "failed"})
    stopped(stack, run_id, witness)


def test_an_execution_timeout_stops_the_job(stack: Stack) -> None:
    run_id, witness = stack.start("limited", seconds=600)
    stopped(stack, run_id, witness)
    assert stack.end("limited", run_id) == "failed"


def test_a_timeout_of_the_dag_run_stops_the_job(stack: Stack) -> None:
    run_id, witness = stack.start("brief", seconds=600)
    stopped(stack, run_id, witness)
    assert stack.end("brief", run_id) == "failed"


def test_clearing_a_task_stops_its_job_and_starts_another(stack: Stack) -> None:
    run_id, _ = stack.start("work", seconds=10)
    wait_for(lambda: stack.api.task_instances("work", run_id)[0].state == ("running" if stack.mode == "synchronous" else "deferred"))
    body = {"dag_run_id": run_id, "task_ids": ["work"], "dry_run": False, "only_failed": False, "reset_dag_runs": True}
    stack.api.call("POST", "/api/v2/dags/work/clearTaskInstances", body)
    assert stack.end("work", run_id) == "success"
    assert stack.states_of(run_id) == ["STOPPED", "SUCCEEDED"]


def test_a_job_without_a_task_is_stopped_and_others_are_left_alone(stack: Stack) -> None:
    deployment = stack.api.call("GET", "/api/v2/variables/ray_jobs_deployment")["value"]
    whose = {"dag_id": "work", "run_id": "no such run", "task_id": "work", "map_index": -1, "try_number": 1}
    alive, witness = stack.start("work", seconds=30)
    for name, of in (("orphan", deployment), ("another-airflows", "another")):
        metadata = {f"airflow_{key}": str(value) for key, value in {**whose, "deployment": of}.items()}
        stack.jobs.submit(name, ["sleep", "600"], metadata=metadata)
    stack.api.trigger("reconcile", "reconcile-1", {})
    assert stack.end("reconcile", "reconcile-1") == "success"
    assert stack.jobs.status("orphan") == "STOPPED"
    assert stack.jobs.status("another-airflows") == "RUNNING"
    stack.jobs.stop("another-airflows")
    events = stack.api.call("GET", "/api/v2/assets/events?limit=10")["asset_events"]
    announced = [event["extra"] for event in events if event["name"] == "orphans"]
    assert {"submission_id": "orphan", "task": "work no such run work", "task_state": "gone", "job_status": "STOPPED"} in announced
    assert stack.end("work", alive) == "success"
    assert witness.read_text() == "began\nended\n"
