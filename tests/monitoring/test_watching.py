"""What the last task of `bliss_reconcile` tells: orphans that were stopped, and a schedule that was missed, once each."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("airflow")

from bliss_ops.airflow import watching
from bliss_ops.airflow.watching import WatchOperator, last_due
from tests.monitoring.receiver import Receiver

NIGHTLY = "bliss_rescore_nightly"


class TaskInstance:
    dag_id, run_id = "bliss_reconcile", "now"

    def __init__(self, found: list[dict[str, str]], states: dict[str, str], begun: set[datetime]) -> None:
        self.found, self.states, self.begun = found, states, begun

    def xcom_pull(self, task_ids: str) -> list[dict[str, str]]:
        return self.found

    def get_task_states(self, **_: Any) -> dict[str, Any]:
        return {self.run_id: self.states}

    def get_dr_count(self, *, dag_id: str, logical_dates: list[datetime], states: list[str]) -> int:
        assert (dag_id, states) == (NIGHTLY, ["running", "success", "failed"])
        return sum(date in self.begun for date in logical_dates)


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    values: dict[str, str] = {}

    class Variable:
        get = staticmethod(lambda key, default: values.get(key, default))
        set = staticmethod(lambda key, value, description: values.update({key: value}))

    monkeypatch.setattr(watching, "Variable", Variable)
    monkeypatch.setenv("AIRFLOW__LOGGING__BASE_LOG_FOLDER", str(tmp_path / "logs"))
    return values


def look(begun: set[datetime] | None = None, found: Any = (), states: dict[str, str] | None = None) -> None:
    operator = WatchOperator(task_id="tell", schedules={NIGHTLY: "0 2 * * *"})
    operator.execute({"ti": TaskInstance(list(found), states or {}, begun or set())})  # type: ignore[arg-type]


def test_a_missed_schedule_is_told_of_once(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    due = last_due("0 2 * * *", datetime.now(UTC) - timedelta(hours=1))
    with Receiver() as receiver:
        monkeypatch.setenv("BLISS_WEBHOOK_URL", receiver.url)
        look()
        assert receiver.messages == [], "what was due before this was watched is not missed"
        variables[watching.WATCHED_SINCE] = (due - timedelta(days=3)).isoformat()
        look(begun={due})
        assert receiver.messages == []
        look()
        look()
        (message,) = receiver.messages
    assert (message["dag_id"], message["due"], message["event"]) == (NIGHTLY, due.isoformat(), "schedule_missed")


def test_only_what_was_really_stopped_is_told_of(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    with Receiver() as receiver:
        monkeypatch.setenv("BLISS_WEBHOOK_URL", receiver.url)
        jobs = [{"submission_id": name} for name in ("a", "b", "c")]
        look(found=jobs, states={"stop_0": "success", "stop_1": "skipped", "stop_2": "success"})
        look(found=jobs, states={"stop_0": "skipped", "stop_1": "skipped", "stop_2": "skipped"})
        (message,) = receiver.messages
    assert message["ray_job_ids"] == ["a", "c"]


@pytest.mark.parametrize(
    ("cron", "now", "due"),
    [
        ("0 2 * * *", datetime(2026, 5, 1, 2, 0, tzinfo=UTC), datetime(2026, 5, 1, 2, tzinfo=UTC)),
        ("0 2 * * *", datetime(2026, 5, 1, 1, 59, tzinfo=UTC), datetime(2026, 4, 30, 2, tzinfo=UTC)),
        ("*/5 * * * *", datetime(2026, 5, 1, 1, 59, 3, tzinfo=UTC), datetime(2026, 5, 1, 1, 55, tzinfo=UTC)),
    ],
)
def test_when_something_was_due_last(cron: str, now: datetime, due: datetime) -> None:
    assert last_due(cron, now) == due
