"""The last task of `bliss_reconcile`: tells of Ray jobs that were stopped, and of a schedule that was missed."""

import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator, Variable

from bliss_ops.airflow import notifications

if TYPE_CHECKING:
    from airflow.sdk import Context

WATCHED_SINCE = "bliss_schedules_watched_since"  # Variable: what was due before is not missed
GRACE = "BLISS_SCHEDULE_GRACE_MINUTES"
BEGUN = ["running", "success", "failed"]


class WatchOperator(BaseOperator):
    """Tells of the orphans that the tasks before have stopped, and of DAGs whose DAG run is overdue.

    Args:
        schedules: DAG ids and their cron expressions, in UTC.
    """

    ui_color = "#fef7e0"

    def __init__(self, *, schedules: Mapping[str, str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.schedules = dict(schedules)

    def execute(self, context: "Context") -> None:
        ti, now = context["ti"], datetime.now(UTC)
        found = ti.xcom_pull(task_ids="look") or []
        states = ti.get_task_states(dag_id=ti.dag_id, task_ids=["stop"], run_ids=[ti.run_id]).get(ti.run_id, {}) if found else {}
        stopped = [job["submission_id"] for index, job in enumerate(found) if states.get(f"stop_{index}") == "success"]
        notifications.orphans_stopped(stopped)
        since = Variable.get(WATCHED_SINCE, default=None)
        if since is None:
            Variable.set(WATCHED_SINCE, now.isoformat(), description="Since when bliss_reconcile looks for missed schedules.")
            return
        for dag_id, cron in self.schedules.items():
            due = last_due(cron, now - timedelta(minutes=float(os.environ.get(GRACE, "60"))))
            if due > datetime.fromisoformat(since) and not ti.get_dr_count(dag_id=dag_id, logical_dates=[due], states=BEGUN):
                self.log.warning("%s was due at %s and has not begun", dag_id, due)
                notifications.schedule_missed(dag_id, due, (now - due).total_seconds())


def last_due(cron: str, before: datetime) -> datetime:
    """The last time that a cron expression names, not after `before`."""
    from croniter import croniter  # type: ignore[import-untyped]

    due: datetime = croniter(cron, before + timedelta(microseconds=1)).get_prev(datetime)
    return due
