"""### One round of one run

Fit a selector, score every candidate sequence, keep the best, train the target on them and measure it:
`warm_up >> fit >> score >> fidelity >> load >> check_contamination >> check_round >> select >> materialize >> pretrain >> evaluate
>> report >> check_target >> next_round`.

One DAG run is one round (run id `<run>-round-01`); its last task triggers the next round until the recipe's `num_rounds`.
Every task runs the stage's own `bliss` command as a Ray job; a finished stage is skipped, a killed one resumes. The two checks are
data-quality gates and run here in Airflow: one that fails is red with the number, the bound and the setting, and is not tried again.
"""

from airflow.sdk import DAG, chain

from bliss_ops.airflow.forms import round_params
from bliss_ops.airflow.tasks import DAG_ARGS, configure_task, next_round_task, round_tasks

with DAG(
    dag_id="bliss_round",
    dag_display_name="Bliss: one round of a run",
    schedule=None,
    params=round_params(),
    max_active_runs=8,
    tags=["bliss", "round"],
    doc_md=__doc__,
    **DAG_ARGS,
):
    configure = configure_task("configure")
    chain(configure, *round_tasks(configure), next_round_task())
