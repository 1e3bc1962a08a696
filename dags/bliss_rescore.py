"""### Re-score a corpus

Scores of a corpus by score models that exist: `plan >> groups >> rescore >> load`. Starts by itself, once per corpus, when
`bliss_ingest` has finished a corpus; nightly for what has been left (`bliss_rescore_nightly`); and by hand from this form.

`plan` runs `bliss pending`: it finds which shards are missing, so nothing is scored twice and a DAG run with nothing to do is green
in seconds. Each set of scores is loaded as soon as it is complete and gets an event of the asset `bliss_scores`, with its counts.
Leave the corpus empty to score every corpus; name a run and a round to use an older score model.
"""

from airflow.sdk import DAG, chain

from bliss_ops.airflow.rescoring import rescore_params
from bliss_ops.airflow.tasks import DAG_ARGS, on_each_corpus, rescore_tasks

with DAG(
    dag_id="bliss_rescore",
    dag_display_name="Bliss: re-score a corpus",
    schedule=on_each_corpus(),
    params=rescore_params(),
    max_active_runs=4,
    tags=["bliss", "scores"],
    doc_md=__doc__,
    **DAG_ARGS,
):
    chain(*rescore_tasks())
