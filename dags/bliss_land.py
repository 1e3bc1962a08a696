"""### Take in new files

Files dropped into `<folder>/<corpus>/` become corpora: `look >> ingest >> problems`. The folder or bucket prefix in `BLISS_LANDING` is
watched (an asset watcher in the triggerer, every `BLISS_LANDING_SECONDS`); without that setting this DAG runs only from its form.

`look` runs `bliss land`, which fixes the list of files of each new corpus; files that arrive later become a corpus
`<corpus>-part-02` of their own. `ingest` starts one DAG run of `bliss_ingest` for each; when that is green, its corpus asset starts
`bliss_rescore`. `problems` is red when a folder could not be taken in, or a file was written anew after it had been.
"""

from airflow.sdk import DAG, chain

from bliss_ops.airflow.landing import landing_params
from bliss_ops.airflow.tasks import DAG_ARGS, landing_tasks
from bliss_ops.airflow.watcher import landing_schedule

with DAG(
    dag_id="bliss_land",
    dag_display_name="Bliss: take in new files",
    schedule=landing_schedule(),
    params=landing_params(),
    max_active_runs=1,
    tags=["bliss", "corpus"],
    doc_md=__doc__,
    **DAG_ARGS,
):
    chain(*landing_tasks())
