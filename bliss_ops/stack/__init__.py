"""One Ray head and one Airflow on this machine, for people without a cluster: `bliss up`, `bliss run --airflow`, `bliss down`."""

from bliss_ops.stack.demo import run_in_airflow
from bliss_ops.stack.local import down, is_up, status, up

__all__ = ["down", "is_up", "run_in_airflow", "status", "up"]
