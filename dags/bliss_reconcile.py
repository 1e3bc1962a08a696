"""### Stop Ray jobs without a task

Every few minutes (`BLISS_RECONCILE_CRON`) all jobs of the Ray cluster are looked at: `look >> stop >> tell`. A task that ends stops its Ray
job itself; where it could not, because a worker, the triggerer or the Ray head was dead at that moment, the job would run on. It is stopped
here, at the second look that finds its task ended or unknown, at least a minute after the first.

Jobs say in their metadata which Airflow and which task they belong to; those of other Airflows and of nobody are left alone.
Each stopped job is an event of the asset `bliss_orphans`; `tell` tells the webhook of them, and of a nightly re-scoring that was due and
has not begun. Nothing to stop, or no Ray cluster there: green, in a second.
"""

from airflow.sdk import DAG, chain

from bliss_ops.airflow.tasks import reconciling, reconciling_tasks

with DAG(
    dag_id="bliss_reconcile",
    dag_display_name="Bliss: stop Ray jobs without a task",
    max_active_runs=1,
    tags=["bliss", "operations"],
    doc_md=__doc__,
    **reconciling(),
):
    chain(*reconciling_tasks())
