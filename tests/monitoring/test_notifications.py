"""What is told to a webhook, when, how often, and that a webhook that is down costs a task a few seconds at most."""

import hashlib
import hmac
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("airflow")

from airflow.sdk.exceptions import AirflowFailException

from bliss_ops.airflow import notifications, webhook
from tests.monitoring.receiver import Receiver

OURS = ("BLISS_WEBHOOK_URL", "BLISS_WEBHOOK_SECRET", "BLISS_WEBHOOK_FORMAT", "BLISS_WEBHOOK_EVENTS")
JOB = "demo-bliss-s0-round-01.score.3.abcdef12.1"
ERROR = "`bliss score` ended as FAILED:\n" + "\n".join(f"  line {number}" for number in range(40)) + "\n  ValueError: <no> & space"


@pytest.fixture(autouse=True)
def airflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of a fresh Airflow, whose log folder is empty."""
    for name in OURS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AIRFLOW__LOGGING__BASE_LOG_FOLDER", str(tmp_path / "logs"))


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    with Receiver() as receiver:
        monkeypatch.setenv("BLISS_WEBHOOK_URL", f"{receiver.url}/hook")
        yield receiver


def context(
    task_id: str = "score", map_index: int = 3, try_number: int = 3, error: BaseException | None = None, rendered: bool = True, **more: Any
) -> Any:
    """As Airflow gives it to a callback in the task's process; with `rendered=False` as to one in its DAG processor."""

    def xcom_pull(task_ids: str, key: str, map_indexes: int | None = None) -> str | None:
        found = {("configure", "name"): "demo-bliss-s0", (task_id, "ray_job_link"): f"http://127.0.0.1:8265/#/jobs/{JOB}"}
        return found.get((task_ids, key))

    task = SimpleNamespace(subject="demo-bliss-s0" if rendered else "{{ ti.xcom_pull(task_ids='configure', key='name') }}")
    ti = SimpleNamespace(
        dag_id="bliss_round", run_id="demo-bliss-s0-round-01", task_id=task_id, map_index=map_index, rendered_map_index="3/8",
        try_number=try_number, max_tries=2, log_url="http://127.0.0.1:8080/dags/bliss_round/runs/x/tasks/score", task=task,
        xcom_pull=xcom_pull,
    )  # fmt: skip
    exception = {} if error is None else {"exception": error}
    return {"ti": ti, "task": task, "params": {"round": 1}, "dag": SimpleNamespace(dag_id="bliss_round"), **exception, **more}


def test_a_final_failure_says_all_that_is_needed_to_begin(receiver: Receiver) -> None:
    notifications.task_failed(context(error=RuntimeError(ERROR)))
    (message,) = receiver.messages
    error = message.pop("error")
    assert error[0] == "`bliss score` ended as FAILED:"
    assert error[-1] == "  ValueError: <no> & space"
    assert len(error) == 15
    text = message.pop("text")
    assert "*Failed for good*: `bliss_round` task `score` [3/8] for demo-bliss-s0, round 1 (try 3 of 3, " in text
    assert "ValueError: &lt;no&gt; &amp; space" in text
    assert f"<http://127.0.0.1:8265/#/jobs/{JOB}|Ray job>" in text
    assert datetime.fromisoformat(message.pop("at"))
    assert message == {
        "event": "task_failed", "severity": "page", "dedup_key": "task_failed/bliss_round/demo-bliss-s0-round-01/score/3",
        "dag_id": "bliss_round", "run_id": "demo-bliss-s0-round-01", "task_id": "score", "map_index": 3, "map_label": "3/8",
        "try_number": 3, "max_tries": 3, "was_retried": True, "is_final": True, "subject": "demo-bliss-s0", "round": 1, "corpus": "",
        "error_type": "RuntimeError", "log_url": "http://127.0.0.1:8080/dags/bliss_round/runs/x/tasks/score",
        "ray_job_id": JOB, "ray_job_url": f"http://127.0.0.1:8265/#/jobs/{JOB}",
    }  # fmt: skip


def test_a_killed_process_has_no_error_and_is_told_of_from_elsewhere(receiver: Receiver) -> None:
    notifications.task_failed(context(rendered=False))
    (message,) = receiver.messages
    assert message["error"] == [notifications.KILLED]
    assert (message["subject"], message["ray_job_id"]) == ("demo-bliss-s0", JOB)


def test_retries_are_not_told_of_unless_asked_for(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    notifications.task_retried(context(try_number=1, error=RuntimeError("once")))
    assert receiver.messages == []
    monkeypatch.setenv("BLISS_WEBHOOK_EVENTS", "task_failed, task_retried")
    notifications.task_retried(context(try_number=1, error=RuntimeError("once")))
    notifications.task_retried(context(try_number=2, error=RuntimeError("twice")))
    assert [(one["severity"], one["is_final"], one["try_number"]) for one in receiver.messages] == [("info", False, 1), ("info", False, 2)]


def test_many_instances_of_one_task_are_one_message(receiver: Receiver) -> None:
    with ThreadPoolExecutor(16) as threads:
        list(threads.map(lambda number: notifications.task_failed(context(map_index=number, error=RuntimeError("no space"))), range(64)))
    assert len(receiver.messages) == 1
    assert "Other instances of this task in this DAG run are not told of." in receiver.messages[0]["text"]
    notifications.task_failed(context("pretrain", map_index=-1, error=RuntimeError("another task")))
    assert len(receiver.messages) == 2


def test_a_task_that_was_cleared_and_fails_again_is_told_of_again(receiver: Receiver) -> None:
    notifications.task_failed(context(error=RuntimeError("first")))
    cleared = context(try_number=6, error=RuntimeError("again"))
    cleared["ti"].max_tries = 5  # Airflow adds the retries to the tries that were made
    notifications.task_failed(cleared)
    assert [message["error"] for message in receiver.messages] == [["first"], ["again"]]


def test_what_fails_because_something_else_has_is_not_told_of(receiver: Receiver) -> None:
    notifications.task_failed(context(error=notifications.FailedElsewhereError("the warm-up is not there")))
    notifications.run_failed(context(reason="task_failure"))
    assert receiver.messages == []
    assert issubclass(notifications.FailedElsewhereError, AirflowFailException), "and is not tried again"


def test_a_failed_dag_run_is_told_of_where_no_task_was(receiver: Receiver) -> None:
    notifications.task_failed(context(error=RuntimeError("told")))
    notifications.run_failed(context(reason="task_failure"))
    assert len(receiver.messages) == 1
    other = context(reason="task_failure")
    other["ti"].run_id = "demo-bliss-s1-round-01"  # its task's callback was lost
    notifications.run_failed(other)
    notifications.run_failed(other)
    assert [message["event"] for message in receiver.messages] == ["task_failed", "run_failed"]


def test_a_failure_whose_telling_was_cut_off_is_told_of_at_the_end_of_the_dag_run(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object) -> bool:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(webhook, "deliver", killed)
        with pytest.raises(Killed):
            notifications.task_failed(context(error=RuntimeError("x")))
    notifications.run_failed(context(reason="task_failure"))
    assert [message["event"] for message in receiver.messages] == ["run_failed"]


def test_a_dag_run_that_timed_out_is_told_of_also_after_a_task_was(receiver: Receiver) -> None:
    notifications.task_failed(context(error=RuntimeError("told")))
    notifications.run_failed(context(reason="timed_out"))
    assert "took longer than it may; the last task was `score`" in receiver.messages[-1]["text"]
    notifications.run_failed({"dag": SimpleNamespace(dag_id="bliss_land"), "run_id": "a", "reason": "timed_out"})  # type: ignore[arg-type]
    assert receiver.messages[-1]["dag_id"] == "bliss_land"


def test_a_missed_schedule_and_stopped_orphans(receiver: Receiver) -> None:
    due = datetime(2026, 5, 1, 2, tzinfo=UTC)
    assert notifications.schedule_missed("bliss_rescore_nightly", due, 3600)
    assert not notifications.schedule_missed("bliss_rescore_nightly", due, 4200)
    assert notifications.orphans_stopped(["job-b", "job-a"])
    assert not notifications.orphans_stopped([])
    missed, orphans = receiver.messages
    assert "was due at 2026-05-01 02:00 UTC and has not begun 60 minutes later" in missed["text"]
    assert (orphans["ray_job_ids"], orphans["severity"]) == (["job-a", "job-b"], "info")


def test_messages_are_signed(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    notifications.task_failed(context("a", error=RuntimeError("x")))
    assert "X-Bliss-Signature" not in receiver.requests[0][1]
    monkeypatch.setenv("BLISS_WEBHOOK_SECRET", "s3cret")
    notifications.task_failed(context("b", error=RuntimeError("x")))
    _, headers, body = receiver.requests[1]
    timestamp = headers["X-Bliss-Timestamp"]
    expected = hmac.new(b"s3cret", timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    assert headers["X-Bliss-Signature"] == f"sha256={expected}"
    assert abs(time.time() - int(timestamp)) < 60


def test_slack_gets_the_text_alone(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLISS_WEBHOOK_FORMAT", "slack")
    notifications.task_failed(context(error=RuntimeError("x")))
    assert set(receiver.messages[0]) == {"text"}
    monkeypatch.delenv("BLISS_WEBHOOK_FORMAT")
    monkeypatch.setenv("BLISS_WEBHOOK_URL", "https://hooks.slack.com/services/T/B/x")
    configured = webhook.configured()
    assert configured is not None
    assert (configured.format, configured.shown) == ("slack", "hooks.slack.com")


@pytest.mark.parametrize(
    ("statuses", "requests", "told"), [([500, 200], 2, True), ([503, 503], 2, False), ([404], 1, False), ([429], 2, True)]
)
def test_attempts_are_few_and_only_where_another_may_help(receiver: Receiver, statuses: list[int], requests: int, told: bool) -> None:
    receiver.statuses = statuses
    notifications.task_failed(context(error=RuntimeError("x")))
    assert len(receiver.requests) == requests
    receiver.statuses = []
    notifications.task_failed(context(map_index=4, error=RuntimeError("x")))  # the next instance tells what the first could not
    assert len(receiver.requests) == requests + (not told)


def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    with Receiver() as elsewhere:
        receiver.statuses, receiver.location = [302], elsewhere.url
        notifications.task_failed(context(error=RuntimeError("x")))
        assert elsewhere.requests == []
    assert len(receiver.requests) == 1


def test_a_webhook_that_is_down_or_hangs_costs_a_few_seconds(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    assert webhook.BUDGET_SECONDS <= 5
    monkeypatch.setattr(webhook, "BUDGET_SECONDS", 1.0)
    receiver.delay_seconds = 60
    begun = time.monotonic()
    notifications.task_failed(context(error=RuntimeError("x")))
    assert time.monotonic() - begun < 2
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("BLISS_WEBHOOK_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
    begun = time.monotonic()
    notifications.task_failed(context(error=RuntimeError("x")))
    assert time.monotonic() - begun < 2


def test_a_name_look_up_that_hangs_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhook, "BUDGET_SECONDS", 0.5)

    def hangs(*_: Any, **__: Any) -> None:
        time.sleep(3)
        raise socket.gaierror("at last")

    monkeypatch.setattr(socket, "getaddrinfo", hangs)
    begun = time.monotonic()
    assert not webhook.deliver(webhook.Webhook("http://nowhere.example/hook"), {"text": ""})
    assert time.monotonic() - begun < 2


def test_nobody_is_told_where_nothing_is_set_or_the_address_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    notifications.task_failed(context(error=RuntimeError("x")))
    for url in ("file:///etc/passwd", "not an address", "https://"):
        monkeypatch.setenv("BLISS_WEBHOOK_URL", url)
        assert webhook.configured() is None


@pytest.mark.parametrize(
    ("connection", "url"),
    [
        ({"host": "alerts.example", "schema": "http", "port": 8000, "extra": {"path": "/hook"}}, "http://alerts.example:8000/hook"),
        ({"host": "alerts.example"}, "https://alerts.example"),
        ({"extra": {"url": "https://alerts.example/a?b=c"}}, "https://alerts.example/a?b=c"),
    ],
)
def test_the_address_is_an_airflow_connection(connection: dict[str, Any], url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_BLISS_WEBHOOK", json.dumps({"conn_type": "http", "password": "s3cret", **connection}))
    configured = webhook.configured()
    assert configured is not None
    assert (configured.url, configured.secret, configured.format) == (url, "s3cret", "generic")
    assert "s3cret" not in repr(configured)


def test_secrets_that_airflow_knows_are_masked(receiver: Receiver) -> None:
    from airflow.sdk.log import mask_secret

    mask_secret("hunter2hunter2")
    notifications.task_failed(context(error=RuntimeError("denied for hunter2hunter2")))
    assert receiver.messages[0]["error"] == ["denied for ***"]


def test_every_task_of_every_dag_tells_of_its_failure() -> None:
    from bliss_ops.airflow.tasks import DAG_ARGS

    assert DAG_ARGS["on_failure_callback"] is notifications.run_failed
    assert DAG_ARGS["default_args"]["on_failure_callback"] is notifications.task_failed
    assert DAG_ARGS["default_args"]["on_retry_callback"] is notifications.task_retried
