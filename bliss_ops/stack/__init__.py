"""One Ray head and one Airflow on this machine, for people without a cluster: `bliss up`, `run --airflow`, `compare --airflow`, `down`."""

from bliss_ops.stack.demo import compare_in_airflow, run_in_airflow
from bliss_ops.stack.local import down, is_up, status, up

__all__ = ["compare_in_airflow", "down", "is_up", "run_in_airflow", "status", "up"]
