"""The operator, its trigger and the reconciliation in Airflow's own task runner, over its execution API and SQLite; only Ray is a stand-in.

One DAG run each by `DAG.test()`, all in one process, which prints what came of them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("airflow")

DAGS = """
from airflow.sdk import DAG, Asset, chain
from bliss_ops.airflow.orphans import FindOrphansOperator, StopOrphanOperator
from bliss_ops.airflow.ray_job import RayJobOperator

ORPHANS = Asset(name="orphans", uri="tests://orphans")
for name, deferrable in (("synchronous", False), ("deferrable", True)):
    with DAG(name, schedule=None):
        RayJobOperator(task_id="work", entrypoint=["work", "{{ run_id }}"], deferrable=deferrable)
with DAG("reconcile", schedule=None):
    look = FindOrphansOperator(task_id="look", memory=ORPHANS, conn_id="ray_default", grace_seconds=0)
    chain(look, StopOrphanOperator.partial(task_id="stop", conn_id="ray_default", outlets=[ORPHANS]).expand_kwargs(look.output))
"""

RUN = """
import json, os, sys, threading, time
from tests.ray.jobs_api import FakeJob, jobs_api

with jobs_api() as api:
    port = int(api.address.rsplit(":", 1)[1])
    os.environ["AIRFLOW_CONN_RAY_DEFAULT"] = json.dumps({"conn_type": "http", "host": "127.0.0.1", "port": port})
    from airflow.dag_processing.dagbag import DagBag
    from airflow.models import Variable

    def end_jobs():
        while True:
            for name, job in list(api.jobs.items()):
                if job.status == "RUNNING" and ".work." in name:
                    job.log = "hello from the job"
                    api.end(name)
            time.sleep(0.05)

    threading.Thread(target=end_jobs, daemon=True).start()
    dags = DagBag(sys.argv[1])
    assert not dags.import_errors, dags.import_errors
    states = {name: str(dags.dags[name].test().state.value) for name in ("synchronous", "deferrable")}
    ours = {"airflow_deployment": Variable.get("ray_jobs_deployment"), "airflow_dag_id": "synchronous", "airflow_run_id": "gone",
            "airflow_task_id": "work", "airflow_map_index": "-1", "airflow_try_number": "1"}
    api.jobs["orphan"] = FakeJob({"entrypoint": "x", "metadata": ours})
    api.jobs["of another Airflow"] = FakeJob({"entrypoint": "x", "metadata": ours | {"airflow_deployment": "another"}})
    run = dags.dags["reconcile"].test()
    states["reconcile"] = str(run.state.value)
    from sqlalchemy import select
    from airflow.models.asset import AssetEvent
    from airflow.models.task_state_store import TaskStateStoreModel
    from airflow.models.xcom import XComModel
    from airflow.utils.session import create_session
    with create_session() as session:
        events = [event.extra for event in session.scalars(select(AssetEvent))]
        stored = len(session.scalars(select(TaskStateStoreModel)).all())
        links = [found.value for found in session.scalars(select(XComModel).where(XComModel.key == "ray_job_link"))]
    print("RESULT " + json.dumps({"states": states, "jobs": {name: job.status for name, job in api.jobs.items()}, "events": events,
                                  "stored": stored, "links": links, "entrypoints": [job.body["entrypoint"] for job in api.jobs.values()]}))
"""


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("airflow")
    (root / "dags").mkdir()
    (root / "dags" / "jobs.py").write_text(DAGS)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("AIRFLOW", "RAY_"))} | {
        "AIRFLOW_HOME": str(root),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(root / "dags"),
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{root / 'airflow.db'}?timeout=60",
    }
    repository = Path(__file__).parents[2]
    for command in (["-m", "airflow", "db", "migrate"], ["-c", RUN, str(root / "dags")]):
        done = subprocess.run([sys.executable, *command], cwd=repository, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    found: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    found["log"] = done.stdout
    return found


def test_every_dag_run_is_green(result: dict[str, Any]) -> None:
    assert result["states"] == {"synchronous": "success", "deferrable": "success", "reconcile": "success"}


def test_each_task_was_one_job_with_its_log_and_its_link(result: dict[str, Any]) -> None:
    names = [name for name in result["jobs"] if ".work." in name]
    assert len(names) == 2
    assert all(name.endswith(".1") for name in names)
    assert all(command.startswith("work manual__") for command in result["entrypoints"][:2])
    assert result["log"].count("hello from the job") == 2
    assert sorted(link.rsplit("/", 1)[1] for link in result["links"]) == sorted(names)


def test_a_finished_task_leaves_nothing_behind(result: dict[str, Any]) -> None:
    assert result["stored"] == 0


def test_the_orphan_is_stopped_and_announced_and_the_other_airflows_job_is_not(result: dict[str, Any]) -> None:
    assert result["jobs"]["orphan"] == "STOPPED"
    assert result["jobs"]["of another Airflow"] == "RUNNING"
    (event,) = [event for event in result["events"] if event]
    assert event == {"submission_id": "orphan", "task": "synchronous gone work", "task_state": "gone", "job_status": "STOPPED"}
