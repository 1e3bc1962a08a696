"""### Compare selectors

Methods x seeds on the same corpus, target, schedule and token budget, and one report about them:
`configure >> ingest >> corpus >> warm_up >> run >> report >> missing`.

`configure` checks everything and writes the config of every run (`<name>-<method>-s<seed>`). The corpus is ingested where it is not
there; proxy and target are warmed up once per seed; then every run goes through the stages of a round for itself, the runs that are
furthest along first. A run that fails stops none of the others: the report says what is missing and the DAG run ends red.
Runs that are finished are not done again: the same form resumes a killed comparison, and one more method or seed costs its own runs only.
"""

from airflow.sdk import DAG, chain

from bliss_ops.airflow.forms import comparison_params
from bliss_ops.airflow.tasks import DAG_ARGS, comparison_tasks

with DAG(
    dag_id="bliss_compare",
    dag_display_name="Bliss: compare selectors",
    schedule=None,
    params=comparison_params(),
    max_active_runs=2,
    max_active_tasks=64,
    tags=["bliss", "comparison"],
    doc_md=__doc__,
    **DAG_ARGS,
):
    chain(*comparison_tasks())
