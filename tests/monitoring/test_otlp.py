"""Airflow's own exporter, with the settings of docker/monitoring.yml, against a receiver: names, labels and kinds as the dashboard asks."""

import os
import subprocess
import sys

import pytest
import yaml

pytest.importorskip("airflow")

from tests.monitoring.boards import DOCKER
from tests.monitoring.otlp import OtlpReceiver

SEND = """
from airflow.observability.metrics import stats_utils
from airflow._shared.observability.metrics import stats
stats.initialize(factory=stats_utils.get_stats_factory(), export_legacy_names=False)
stats.incr("scheduler_heartbeat")
stats.gauge("pool.queued_slots", 3, tags={"pool_name": "score_store"})
stats.timing("task.duration", 1500.0, tags={"dag_id": "bliss_round", "task_id": "load"})
stats.timing("dagrun.duration.failed", 60000.0, tags={"dag_id": "bliss_round"})
"""


def test_airflows_exporter_gives_what_the_dashboard_asks_for(tmp_path: object) -> None:
    override = yaml.safe_load((DOCKER / "monitoring.yml").read_text())
    settings = override["services"]["airflow-scheduler"]["environment"]
    with OtlpReceiver() as receiver:
        environment = os.environ | settings | {"AIRFLOW_HOME": str(tmp_path), "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": receiver.endpoint}
        result = subprocess.run([sys.executable, "-c", SEND], env=environment, capture_output=True, text=True, check=False, timeout=300)
        assert result.returncode == 0, result.stderr
        series, kinds = receiver.series, receiver.kinds
    assert kinds["airflow_scheduler_heartbeat_total"] == "sum"
    assert kinds["airflow_pool_queued_slots"] == "gauge"
    assert kinds["airflow_task_duration_milliseconds"] == kinds["airflow_dagrun_duration_failed_milliseconds"] == "exponential_histogram"
    of_task = series["airflow_task_duration_milliseconds"]
    assert {name: of_task[name] for name in ("job", "dag_id", "task_id")} == {
        "job": "airflow-scheduler", "dag_id": "bliss_round", "task_id": "load",
    }  # fmt: skip
    assert of_task["instance"], "each process is one of its own: their counters do not overwrite each other"
    assert not [name for name in series if "bliss_round" in name], "no names with ids in them"
