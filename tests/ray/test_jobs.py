"""Jobs and the operator against a real Ray: submitted once, followed, stopped, reported."""

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("airflow")

from bliss_ops.airflow.operator import BlissStageOperator, StageFailed, submission_id
from bliss_ops.ray.jobs import MISSING, RayJobs


@pytest.fixture
def jobs(ray_url: str, monkeypatch: pytest.MonkeyPatch) -> RayJobs:
    host, port = ray_url.removeprefix("http://").split(":")
    monkeypatch.setenv("AIRFLOW_CONN_RAY_DEFAULT", json.dumps({"conn_type": "http", "host": host, "port": int(port)}))
    return RayJobs(ray_url)


def context(task_id: str) -> Any:
    return {"ti": SimpleNamespace(dag_id="bliss_round", run_id="demo-round-01", task_id=task_id, map_index=-1), "outlet_events": {}}


def name_of(task_id: str, generation: int = 1) -> str:
    return submission_id("bliss_round", "demo-round-01", task_id, -1, generation)


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_command_reaches_the_job_argument_by_argument(jobs: RayJobs) -> None:
    arguments = ["two words", "$HOME", "; echo injected", "'"]
    jobs.submit("arguments", ["python", "-c", "import sys; print(sys.argv[1:])", *arguments])
    assert repr(arguments) in list(jobs.follow("arguments"))
    assert jobs.status("arguments") == "SUCCEEDED"
    assert jobs.status("never submitted") == MISSING


def test_a_long_log_arrives_whole_and_in_order(jobs: RayJobs) -> None:
    jobs.submit("long", ["python", "-c", "import time\nfor i in range(3000):\n  print('line', i)\n  i % 1000 or time.sleep(0.6)"])
    assert [line for line in jobs.follow("long") if line.startswith("line")] == [f"line {i}" for i in range(3000)]


def test_nobody_at_the_address_is_a_clear_error() -> None:
    with pytest.raises(ConnectionError, match="bliss up"):
        RayJobs("http://127.0.0.1:1")


def test_a_stage_runs_and_its_log_is_shown(jobs: RayJobs, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLISS_LAKE", "s3://bucket/lake")
    operator = BlissStageOperator(task_id="greet", subcommand="greet", subject="demo")
    with caplog.at_level(logging.INFO):
        operator.execute(context("greet"))
    assert jobs.status(name_of("greet")) == "SUCCEEDED"
    log = "\n".join(jobs.follow(name_of("greet")))
    assert "hello from demo" in log
    assert "lake s3://bucket/lake" in log


def test_a_stage_leaves_the_room_to_its_own_workers(jobs: RayJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLISS_TRAINING_CPUS", "99")  # with such a claim it would wait for ever
    BlissStageOperator(task_id="wide", subcommand="greet", subject="demo", trains=True, num_workers="2").execute(context("wide"))
    assert jobs.status(name_of("wide")) == "SUCCEEDED"


def test_a_retry_follows_the_job_that_still_runs(jobs: RayJobs, tmp_path: Path) -> None:
    witness = str(tmp_path / "witness")
    jobs.submit(name_of("slow"), ["bliss", "slow", witness])  # by a first try, whose process was then killed
    BlissStageOperator(task_id="slow", subcommand="slow", subject=witness).execute(context("slow"))
    assert Path(witness).read_text() == "slow began\nslow ended\n"
    assert jobs.status(name_of("slow", 2)) == MISSING


def test_a_failed_stage_shows_its_last_lines_and_is_submitted_again(jobs: RayJobs) -> None:
    operator = BlissStageOperator(task_id="fail", subcommand="fail", subject="demo")
    for generation in (1, 2):
        with pytest.raises(StageFailed, match="FAILED") as failure:
            operator.execute(context("fail"))
        assert "bliss fail: no such corpus" in str(failure.value)
        assert jobs.status(name_of("fail", generation)) == "FAILED"


def test_cancelling_a_task_stops_its_job(jobs: RayJobs) -> None:
    operator = BlissStageOperator(task_id="hang", subcommand="hang", subject="demo")
    errors: list[BaseException] = []

    def execute() -> None:
        try:
            operator.execute(context("hang"))
        except StageFailed as error:
            errors.append(error)

    task = threading.Thread(target=execute)
    task.start()
    wait_until(lambda: jobs.status(name_of("hang")) == "RUNNING")
    operator.on_kill()
    task.join(timeout=30)
    assert jobs.status(name_of("hang")) == "STOPPED"
    assert "STOPPED" in str(errors[0])
