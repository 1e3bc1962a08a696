"""### Re-score what has been left

Every night (`BLISS_RESCORE_CRON`) `bliss pending` looks at all corpora; each with something to score gets a DAG run of `bliss_rescore` of
its own, so that one that fails does not hold up the others. This catches what no event told of: a new score model, a corpus
ingested from the command line, scoring that was interrupted. Nothing to do: green in seconds.
"""

from airflow.sdk import DAG, chain

from bliss_ops.airflow.tasks import nightly, rescore_all_tasks

with DAG(
    dag_id="bliss_rescore_nightly",
    dag_display_name="Bliss: re-score what has been left",
    max_active_runs=1,
    tags=["bliss", "scores"],
    doc_md=__doc__,
    **nightly(),
):
    chain(*rescore_all_tasks())
