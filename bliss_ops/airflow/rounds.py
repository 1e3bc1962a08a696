"""Round after round: the last task of a round's DAG run triggers the next round's DAG run.

How many rounds there are is read from the run's config at that moment, so a run that was extended meanwhile goes on.
"""

import re
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk.exceptions import AirflowSkipException

if TYPE_CHECKING:
    from airflow.sdk import Context


class NextRoundOperator(TriggerDagRunOperator):
    """Triggers the same DAG for the next round; skips itself after the last one."""

    template_fields = ("run_name",)

    def __init__(self, *, run_name: str, **kwargs: Any) -> None:
        super().__init__(trigger_dag_id="", logical_date=None, skip_when_already_exists=True, **kwargs)
        self.run_name = run_name

    def execute(self, context: "Context") -> None:
        from bliss_ops.lake import Lake

        number, num_rounds = int(context["params"]["round"]), Lake.open().run(self.run_name).config.num_rounds
        if number >= num_rounds:
            raise AirflowSkipException(f"round {number} of {num_rounds} was the last one")
        ti = context["ti"]
        self.trigger_dag_id = ti.dag_id
        self.trigger_run_id = next_run_id(self.run_name, number, ti.run_id)
        self.conf = {**context["params"], "round": number + 1}
        super().execute(context)


def round_run_id(run_name: str, number: int, suffix: str = "") -> str:
    """`demo-bliss-s0-round-01`; a repetition has a suffix, which its later rounds keep."""
    return f"{run_name}-round-{number:02d}{suffix}"


def next_run_id(run_name: str, number: int, run_id: str) -> str:
    """The id of the DAG run after `run_id`, which need not be one of ours: the UI makes `manual__2026-...`."""
    this_round = round_run_id(run_name, number)
    suffix = run_id.removeprefix(this_round) if run_id.startswith(this_round) else f".{slug(run_id)}"
    return round_run_id(run_name, number + 1, suffix)


def slug(run_id: str) -> str:
    """A DAG run's id as part of another one's."""
    return re.sub(r"[^A-Za-z0-9_-]+", "-", run_id)
