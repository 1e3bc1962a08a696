"""Landing as DAG tasks: fix what the new corpora are made of, start the ingestion of each, say what could not be taken.

Every ingestion is a DAG run of its own with a name made from the corpus, so it is started once, whatever is repeated here, and a
broken folder fails alone.
"""

import json
import os
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator, Param
from airflow.sdk.exceptions import AirflowFailException

from bliss_ops.airflow.operator import run_here
from bliss_ops.airflow.watcher import LANDING

if TYPE_CHECKING:
    from airflow.sdk import Context

PROBLEMS = "problems"


def landing_params() -> dict[str, Param]:
    """The form of `bliss_land`."""
    return {
        "prefix": Param(
            os.environ.get(LANDING),
            type=["null", "string"],
            title="Folder",
            description="A folder that Airflow can read, or s3://bucket/prefix, with one folder per corpus; by default the watched one.",
        ),
        "settle_seconds": Param(
            5, type="number", minimum=0, maximum=600, title="Settle seconds", description="A folder that changes within this time waits."
        ),
    }


class LandOperator(BaseOperator):
    """Runs `bliss land --list-only`; returns the arguments of one triggered `bliss_ingest` per corpus that is not finished."""

    ui_color = "#fef7e0"

    def execute(self, context: "Context") -> list[dict[str, Any]]:
        params = context["params"]
        if not params["prefix"]:
            raise AirflowFailException(f"no folder: fill in the form, or set {LANDING} for Airflow to watch one")
        options = ["--list-only", "--format=json", f"--settle-seconds={params['settle_seconds']}"]
        command = ["bliss", "land", *options, "--", params["prefix"]]  # after `--` it cannot become an option of its own
        found = json.loads(run_here(command))
        context["ti"].xcom_push(key=PROBLEMS, value=found["problems"])
        return [trigger(part) for part in found["parts"]]


class ProblemsOperator(BaseOperator):
    """Ends red when a folder or file could not be taken in, after everything else has been."""

    def execute(self, context: "Context") -> None:
        if problems := context["ti"].xcom_pull(task_ids="look", key=PROBLEMS):
            raise AirflowFailException("\n\n".join(problems))


def trigger(part: dict[str, Any]) -> dict[str, Any]:
    """The DAG run that ingests a part: always of the same name, so that there is one."""
    return {"trigger_run_id": f"landed-{part['corpus']}", "conf": {"recipe": part["recipe"], **part["settings"]}}
