"""The DAGs' tasks, made from the pipeline's own lists of stages, so that order and names cannot drift apart."""

import os
from datetime import datetime, timedelta
from typing import Any

from airflow.sdk import Asset, timezone

from bliss_ops.airflow import SCORE_STORE_POOL
from bliss_ops.airflow.operator import BlissStageOperator, ConfigureOperator
from bliss_ops.airflow.rounds import NextRoundOperator
from bliss_ops.pipeline import CORPUS_STAGES, ROUND_STAGES, Stage

CORPUS = Asset(name="bliss_corpus", uri="bliss://corpora", group="bliss")  # one partition per corpus, keyed by its name

STORE_WRITERS = ("load", "report")
MAPPED = ("extract", "pack", "score")  # over groups of shards; other sharded stages are light enough for one job

DAG_ARGS: dict[str, Any] = {
    "start_date": datetime(2026, 1, 1, tzinfo=timezone.utc),
    "catchup": False,
    "default_args": {
        "owner": "bliss",
        "retries": 2,
        "retry_delay": timedelta(seconds=float(os.environ.get("BLISS_RETRY_SECONDS", "30"))),
        "retry_exponential_backoff": 2.0,
        "max_retry_delay": timedelta(minutes=10),
    },
}


def configure_task(subcommand: str) -> ConfigureOperator:
    """The first task of a DAG: `configure` or `configure-corpus`."""
    return ConfigureOperator(task_id="configure", subcommand=subcommand)


def corpus_tasks(configure: ConfigureOperator) -> list[Any]:
    """One task per corpus stage, in order; the last one announces the corpus."""
    tasks = [_stage_task(stage, configure) for stage in CORPUS_STAGES[:-1]]
    return [*tasks, _stage_task(CORPUS_STAGES[-1], configure, outlets=[CORPUS])]


def round_tasks(configure: ConfigureOperator) -> list[Any]:
    """One task per round stage, in order."""
    return [_stage_task(stage, configure, round_number="{{ params.round }}") for stage in ROUND_STAGES]


def next_round_task() -> NextRoundOperator:
    return NextRoundOperator(task_id="next_round", run_name=_from_configure("name"), num_rounds=_from_configure("num_rounds"))


def _stage_task(stage: Stage, configure: ConfigureOperator, **kwargs: Any) -> Any:
    if stage.name in STORE_WRITERS:
        kwargs["pool"] = SCORE_STORE_POOL
    kwargs |= {
        "task_id": stage.name,
        "subcommand": stage.command,
        "subject": _from_configure("name"),
        "doc_md": stage.function.__doc__,
        "trains": stage.trains,
    }
    if stage.launches:
        kwargs["num_workers"] = _from_configure("num_workers")
    if stage.name not in MAPPED:
        return BlissStageOperator(**kwargs)
    return BlissStageOperator.partial(map_index_template="{{ task.group }}", **kwargs).expand(group=configure.output)


def _from_configure(key: str) -> str:
    """A template, not an XComArg: that would draw an edge from `configure` to every task."""
    return f"{{{{ ti.xcom_pull(task_ids='configure', key='{key}') }}}}"
