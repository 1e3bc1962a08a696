"""Airflow's side of the pipeline: trigger forms, the operator, the DAGs' tasks. Only this package and dags/ import airflow."""

SCORE_STORE_POOL = "score_store"  # one slot: the score store has one writer at a time
