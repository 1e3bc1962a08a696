"""Jobs and the operator against a real Ray: submitted once, followed, found again, stopped, reported."""

import json
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("airflow")

from bliss_ops.airflow.operator import BlissStageOperator
from bliss_ops.airflow.owner import Owner, submission_id
from bliss_ops.airflow.ray_job import RayJobFailed
from bliss_ops.ray.following import follow
from bliss_ops.ray.jobs import MISSING, RayJobs, RayUnreachable
from tests.ray.tasks import StateStore, context


@pytest.fixture
def jobs(ray_url: str, monkeypatch: pytest.MonkeyPatch) -> RayJobs:
    host, port = ray_url.removeprefix("http://").split(":")
    monkeypatch.setenv("AIRFLOW_CONN_RAY_DEFAULT", json.dumps({"conn_type": "http", "host": host, "port": int(port)}))
    monkeypatch.setenv("AIRFLOW_VAR_RAY_JOBS_DEPLOYMENT", "tests")
    return RayJobs(ray_url)


def name_of(task_id: str, generation: int = 1) -> str:
    return submission_id("bliss_round", "demo-round-01", task_id, -1, generation)


def wait_until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_command_reaches_the_job_argument_by_argument(jobs: RayJobs) -> None:
    arguments = [
        "two words",
        "$HOME",
        "$(reboot)",
        "`id`",
        "; echo injected",
        "'",
        '"',
        "\\",
        "a\nb",
        "*",
        "~",
        "&& x",
        "é🎈",
        "",
        "-rf",
        "!!",
    ]
    jobs.submit("arguments", ["python", "-c", "import sys; print(sys.argv[1:])", *arguments])
    assert repr(arguments) in list(follow(jobs, "arguments"))
    assert jobs.status("arguments") == "SUCCEEDED"
    assert jobs.status("never submitted") == MISSING


def test_a_long_log_arrives_whole_and_in_order(jobs: RayJobs) -> None:
    jobs.submit("long", ["python", "-c", "import time\nfor i in range(3000):\n  print('line', i)\n  i % 1000 or time.sleep(0.6)"])
    assert [line for line in follow(jobs, "long") if line.startswith("line")] == [f"line {i}" for i in range(3000)]


def test_a_very_long_log_is_not_read_again_at_its_end(jobs: RayJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bliss_ops.ray.following.SMALL_LOG_CHARS", 1000)
    asked = _asked(monkeypatch)
    jobs.submit("very-long", ["python", "-c", "import time\nfor i in range(3000):\n  print('line', i)\n  i % 1000 or time.sleep(1.5)"])
    assert [line for line in follow(jobs, "very-long") if line.startswith("line")] == [f"line {i}" for i in range(3000)]
    assert not [path for path in asked if path.endswith("/logs")], "the whole log was asked for"


def test_the_end_of_a_very_long_log_arrives_though_its_reader_is_far_behind(jobs: RayJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bliss_ops.ray.following.SMALL_LOG_CHARS", 1000)
    monkeypatch.setattr("bliss_ops.ray.following.DRAIN_SECONDS", 0.0)
    asked = _asked(monkeypatch)
    jobs.submit("behind", ["python", "-c", "import time\nfor i in range(3000):\n  print('line', i)\n  i % 1000 or time.sleep(1.5)"])
    assert [line for line in follow(jobs, "behind") if line.startswith("line")] == [f"line {i}" for i in range(3000)]
    assert [path for path in asked if path.endswith("/logs")]


def _asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Paths of what is asked for while a log is followed, the log's own connection apart."""
    from bliss_ops.ray.following import Following

    ask, paths = Following._ask, list[str]()

    async def noted(self: Following, session: Any, path: str, *, method: str = "GET") -> Any:
        paths.append(path)
        return await ask(self, session, path, method=method)

    monkeypatch.setattr(Following, "_ask", noted)
    return paths


def test_a_submission_whose_answer_was_lost_is_made_once(jobs: RayJobs, tmp_path: Path) -> None:
    witness = str(tmp_path / "witness")
    for _ in range(2):
        jobs.submit("twice", ["bliss", "slow", witness])
    list(follow(jobs, "twice"))
    assert Path(witness).read_text() == "slow began\nslow ended\n"


def test_nobody_at_the_address_is_a_clear_error() -> None:
    with pytest.raises(RayUnreachable, match="bliss up"):
        RayJobs("http://127.0.0.1:1").status("x")


def test_a_wrong_token_is_a_clear_error(ray_url: str) -> None:
    with pytest.raises(PermissionError, match="connection's password"):
        RayJobs(ray_url, token="no").status("x")


def test_a_stage_runs_and_says_whose_it_is(jobs: RayJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLISS_LAKE", "s3://bucket/lake")
    pushed = context("greet")
    BlissStageOperator(task_id="greet", subcommand="greet", subject="demo").execute(pushed)
    job = jobs.details(name_of("greet"))
    assert job is not None
    assert job.status == "SUCCEEDED"
    assert Owner.from_metadata(job.metadata) == Owner("tests", "bliss_round", "demo-round-01", "greet", -1, 1)
    assert pushed["ti"].xcoms == {"ray_job_link": f"{jobs.address}/#/jobs/{name_of('greet')}"}
    log = "\n".join(follow(jobs, name_of("greet")))
    assert "hello from demo" in log
    assert "lake s3://bucket/lake" in log


def test_the_link_leads_to_where_browsers_see_the_dashboard(jobs: RayJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    host, port = jobs.address.removeprefix("http://").split(":")
    extra = {"dashboard_url": "https://ray.example.org/"}
    monkeypatch.setenv("AIRFLOW_CONN_RAY_DEFAULT", json.dumps({"conn_type": "http", "host": host, "port": int(port), "extra": extra}))
    pushed = context("linked")
    BlissStageOperator(task_id="linked", subcommand="greet", subject="demo").execute(pushed)
    assert pushed["ti"].xcoms == {"ray_job_link": f"https://ray.example.org/#/jobs/{name_of('linked')}"}


def test_a_stage_leaves_the_room_to_its_own_workers(jobs: RayJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLISS_TRAINING_CPUS", "99")  # with such a claim it would wait for ever
    BlissStageOperator(task_id="wide", subcommand="greet", subject="demo", trains=True, num_workers="2").execute(context("wide"))
    assert jobs.status(name_of("wide")) == "SUCCEEDED"


@pytest.mark.parametrize("was_written_down", [True, False])
def test_a_retry_follows_the_job_that_still_runs(jobs: RayJobs, tmp_path: Path, was_written_down: bool) -> None:
    task_id, witness = f"slow-{was_written_down}", str(tmp_path / "witness")
    jobs.submit(name_of(task_id), ["bliss", "slow", witness])  # by a first try, whose process was then killed
    store = StateStore({"ray_submission_id": name_of(task_id)} if was_written_down else {})
    BlissStageOperator(task_id=task_id, subcommand="slow", subject=witness).execute(context(task_id, store))
    assert Path(witness).read_text() == "slow began\nslow ended\n"
    assert jobs.status(name_of(task_id, 2)) == MISSING
    assert store.values == {}


def test_a_retry_after_the_job_has_succeeded_runs_nothing_and_a_cleared_task_runs_again(jobs: RayJobs, tmp_path: Path) -> None:
    witness, store = str(tmp_path / "witness"), StateStore({"ray_submission_id": name_of("again")})
    jobs.submit(name_of("again"), ["bliss", "slow", witness])
    wait_until(lambda: jobs.status(name_of("again")) == "SUCCEEDED")
    operator = BlissStageOperator(task_id="again", subcommand="slow", subject=witness)
    operator.execute(context("again", store))
    assert jobs.status(name_of("again", 2)) == MISSING
    BlissStageOperator(task_id="again", subcommand="slow", subject=witness).execute(context("again", store))
    assert jobs.status(name_of("again", 2)) == "SUCCEEDED"


def test_a_job_that_runs_something_else_makes_way(jobs: RayJobs) -> None:
    jobs.submit(name_of("changed"), ["bliss", "hang"])
    store = StateStore({"ray_submission_id": name_of("changed")})
    BlissStageOperator(task_id="changed", subcommand="greet", subject="demo").execute(context("changed", store))
    assert jobs.status(name_of("changed", 2)) == "SUCCEEDED"
    wait_until(lambda: jobs.status(name_of("changed")) == "STOPPED")


def test_a_job_that_was_stopped_by_the_try_before_is_submitted_again(jobs: RayJobs, tmp_path: Path) -> None:
    """A frozen task process wakes, is told that it is not wanted, and stops the job that the next try has found and follows."""
    witness = tmp_path / "witness"
    jobs.submit(name_of("taken"), ["bliss", "slow", str(witness)])
    stopping = threading.Timer(1.0, lambda: (wait_until(witness.exists), jobs.stop(name_of("taken"))))
    stopping.start()
    BlissStageOperator(task_id="taken", subcommand="slow", subject=str(witness)).execute(context("taken"))
    assert jobs.status(name_of("taken")) == "STOPPED"
    assert jobs.status(name_of("taken", 2)) == "SUCCEEDED"


def test_a_failed_stage_shows_its_last_lines_and_is_submitted_again(jobs: RayJobs) -> None:
    store = StateStore()
    for generation in (1, 2):
        with pytest.raises(RayJobFailed, match="FAILED") as failure:
            BlissStageOperator(task_id="fail", subcommand="fail", subject="demo").execute(context("fail", store))
        assert str(failure.value).count("bliss fail: no such corpus") == 1
        assert jobs.status(name_of("fail", generation)) == "FAILED"


def test_cancelling_a_task_stops_its_job(jobs: RayJobs, caplog: pytest.LogCaptureFixture) -> None:
    operator = BlissStageOperator(task_id="hang", subcommand="hang", subject="demo")
    errors: list[BaseException] = []

    def execute() -> None:
        try:
            operator.execute(context("hang"))
        except RayJobFailed as error:
            errors.append(error)

    task = threading.Thread(target=execute)
    with caplog.at_level(logging.INFO):
        task.start()
        wait_until(lambda: jobs.status(name_of("hang")) == "RUNNING")
        operator.on_kill()
        task.join(timeout=30)
    assert jobs.status(name_of("hang")) == "STOPPED"
    assert "STOPPED" in str(errors[0])
