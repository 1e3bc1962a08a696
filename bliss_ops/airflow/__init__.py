"""Airflow's side of the pipeline: trigger forms, the operator, the DAGs' tasks. Only this package and dags/ import airflow."""

from bliss_ops import object_store
from bliss_ops.airflow import store_connection

SCORE_STORE_POOL = "score_store"  # one slot: the score store has one writer at a time
GPU_POOL = "gpu"  # as many slots as the cluster has GPUs, else CPUs: scoring tasks beyond that wait in Airflow, not in Ray
TRAINING_POOL = "training"  # as many slots as training jobs fit on the cluster: those beyond that wait in Airflow, where they hold no slot

object_store.use_connections(store_connection.variables_of)
