"""What a trivial stage costs on the embedded stack: from the trigger to a green DAG run, and where those seconds go.

The stage is `bliss discover` on a corpus that has been discovered: a second of Python that finds nothing to do. All else is
orchestration. Times come from what Airflow, Ray and the task's log write down themselves, so that measuring costs nothing.

    python benchmarks/orchestration.py [--repeats 8]
"""

import argparse
import statistics
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest import mock

from bliss_ops.cli import main as bliss
from bliss_ops.lake import Lake
from bliss_ops.stack import local, services
from bliss_ops.stack.airflow_api import FINISHED, AirflowApi
from bliss_ops.stack.local import State

MOST_SECONDS = 6.0  # what a trivial stage may cost
CORPUS = "smoke"
TOTAL, BEGUN = "trigger to green", "triggered at"
DAG = """
from airflow.sdk import DAG
from bliss_ops.airflow.operator import BlissStageOperator
from bliss_ops.airflow.tasks import DAG_ARGS

with DAG(dag_id="trivial", schedule=None, **DAG_ARGS):
    BlissStageOperator(task_id="discover", subcommand="discover", subject="smoke")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=8, help="DAG runs that are timed, after one that is not")
    parser.add_argument("--log", action="store_true", help="print the log of the last task, with times")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        lake = Lake.open(f"{temporary}/lake")
        for command in ("configure-corpus", "discover"):
            assert bliss([command, CORPUS, "--lake", str(lake.root)]) == 0
        dags = Path(temporary, "dags")
        dags.mkdir()
        (dags / "trivial.py").write_text(DAG)
        state = _up(lake, Path(temporary, "state"), dags)
        try:
            _measure(state, args.repeats, with_log=args.log)
        finally:
            local.down(state.layout.state_dir)


def _up(lake: Lake, state_dir: Path, dags: Path) -> State:
    environment = services.airflow_environment

    def with_our_dags(layout: services.Layout) -> dict[str, str]:
        return environment(layout) | {"AIRFLOW__CORE__DAGS_FOLDER": str(dags)}

    with mock.patch.object(services, "airflow_environment", with_our_dags), mock.patch.object(local, "DAG_IDS", {"trivial"}):
        return local.up(lake, state_dir)


def _measure(state: State, repeats: int, *, with_log: bool) -> None:
    api = state.api
    measured = [_one_run(api, number) for number in range(repeats + 1)][1:]
    for name in measured[0]:
        seconds = [run[name] for run in measured]
        if name != BEGUN:
            print(f"{name:<50} median {statistics.median(seconds):5.2f} s   {min(seconds):5.2f} to {max(seconds):5.2f}")
    if with_log:
        for when, text in _log(api, f"run-{repeats}"):
            print(f"{when - measured[-1][BEGUN]:8.2f}  {text}")
    total = statistics.median(run[TOTAL] for run in measured)
    print(f"{'within' if total <= MOST_SECONDS else 'MORE THAN'} {MOST_SECONDS:.0f} s")


def _one_run(api: AirflowApi, number: int) -> dict[str, float]:
    triggered = time.time()
    run_id = api.trigger("trivial", f"run-{number}", {})
    while (state := api.dag_run_state("trivial", run_id)) not in FINISHED:
        time.sleep(0.5)
    assert state == "success", api.task_log("trivial", run_id, api.task_instances("trivial", run_id)[0])
    run = _get(api, run_id)
    (task,) = _get(api, f"{run_id}/taskInstances")["task_instances"]
    log = _log(api, run_id)
    times = {
        "Airflow: trigger to task queued": _seconds(task["queued_when"]),
        "Airflow: task process starts": _seconds(task["start_date"]),
        "Airflow: task process to our operator": _when(log, "submitting Ray job"),
        "Ray: submission": _when(log, "is submitted"),
        "Ray: supervisor actor starts": _when(log, "is running"),
        "bliss: Python, imports, nothing to do; Ray: end": _when(log, "ended as SUCCEEDED"),
        "Airflow: end of the task": _seconds(task["end_date"]),
        "Airflow: end of the DAG run": _seconds(run["end_date"]),
    }
    before = [triggered, *times.values()]
    parts = {name: when - begin for (name, when), begin in zip(times.items(), before, strict=False)}
    return parts | {TOTAL: before[-1] - triggered, BEGUN: triggered}


def _get(api: AirflowApi, path: str) -> Any:
    return api.call("GET", f"/api/v2/dags/trivial/dagRuns/{path}")


def _when(log: list[tuple[float, str]], words: str) -> float:
    return next(when for when, text in log if words in text)


def _log(api: AirflowApi, run_id: str) -> list[tuple[float, str]]:
    content: list[dict[str, Any]] = _get(api, f"{run_id}/taskInstances/discover/logs/1?full_content=true")["content"]
    return [(_seconds(item["timestamp"]), str(item["event"])) for item in content if item.get("timestamp")]


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


if __name__ == "__main__":
    main()
