"""### Ingest a corpus

Source shards become documents, packed sequences and a validation set, once per corpus:
`discover >> extract >> train_tokenizer >> pack >> prepare_validation >> check_corpus`. Every task runs the stage's own `bliss` command
as a Ray job; `check_corpus` holds what came out against the corpus's gates, here in Airflow.

A finished stage is skipped, a killed one resumes, and a changed setting on a finished one fails with the difference. When the
corpus is complete and passes its gates, the asset `bliss_corpus` gets an event with the corpus's name as partition key.
"""

from airflow.sdk import DAG, PartitionedAtRuntime, chain

from bliss_ops.airflow.forms import corpus_params
from bliss_ops.airflow.tasks import DAG_ARGS, configure_task, corpus_tasks

with DAG(
    dag_id="bliss_ingest",
    dag_display_name="Bliss: ingest a corpus",
    schedule=PartitionedAtRuntime(),
    params=corpus_params(),
    max_active_runs=2,
    tags=["bliss", "corpus"],
    doc_md=__doc__,
    **DAG_ARGS,
):
    configure = configure_task("configure-corpus")
    chain(configure, *corpus_tasks(configure))
