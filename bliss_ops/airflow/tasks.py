"""The DAGs' tasks, made from the pipeline's own lists of stages, so that order and names cannot drift apart."""

import os
from datetime import datetime, timedelta
from typing import Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import Asset, CronTriggerTimetable, PartitionedAssetTimetable, chain, task_group, timezone

from bliss_ops import pipeline
from bliss_ops.airflow import GPU_POOL, SCORE_STORE_POOL, TRAINING_POOL, notifications
from bliss_ops.airflow.checks import CheckOperator
from bliss_ops.airflow.comparing import (
    ConfigureComparisonOperator,
    CorpusSensor,
    IngestOperator,
    LaterRoundsSensor,
    MissingOperator,
    NextRoundsOperator,
    ReportComparisonOperator,
    WarmedUpOperator,
)
from bliss_ops.airflow.landing import LandOperator, ProblemsOperator
from bliss_ops.airflow.operator import BlissStageOperator, ConfigureOperator
from bliss_ops.airflow.orphans import FindOrphansOperator, StopOrphanOperator
from bliss_ops.airflow.ray_job import RAY_CONNECTION
from bliss_ops.airflow.rescoring import FindCorporaOperator, GroupsOperator, LoadScoresOperator, PlanOperator
from bliss_ops.airflow.rounds import NextRoundOperator
from bliss_ops.airflow.watching import WatchOperator
from bliss_ops.pipeline import CORPUS_STAGES, ROUND_STAGES, Stage

CORPUS = Asset(name="bliss_corpus", uri="bliss://corpora", group="bliss")  # one partition per corpus, keyed by its name
SCORES = Asset(name="bliss_scores", uri="bliss://scores", group="bliss")  # one event per loaded set of scores, keyed by its corpus
ORPHANS = Asset(name="bliss_orphans", uri="bliss://orphans", group="bliss")  # one event per stopped Ray job that had lost its task

STORE_WRITERS = ("load", "report")
MAPPED = ("extract", "pack", "score")  # over groups of shards; other sharded stages are light enough for one job

ON_GPU = ("score",)

RESCORE_CRON = ("BLISS_RESCORE_CRON", "0 2 * * *")

WARM_UP = ROUND_STAGES[0]
TITLE = "{{ task.title }}"  # of a mapped task of a comparison: `dsir s1`

DAG_ARGS: dict[str, Any] = {
    "start_date": datetime(2026, 1, 1, tzinfo=timezone.utc),
    "catchup": False,
    "on_failure_callback": notifications.run_failed,
    "default_args": {
        **notifications.callbacks(),
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
    return NextRoundOperator(task_id="next_round", run_name=_from_configure("name"))


def comparison_tasks() -> list[Any]:
    """Configure, see to the corpus, warm up once per seed, every run for itself, report, and red where a run is missing."""
    configure = ConfigureComparisonOperator(task_id="configure")
    corpus = CorpusSensor(task_id="corpus", corpus=_from_configure("corpus"), trigger_rule="none_failed")
    warm_up = BlissStageOperator.partial(
        **_stage_arguments(WARM_UP),
        map_index_template=TITLE,
    ).expand_kwargs(corpus.output)
    return [
        configure,
        IngestOperator(task_id="ingest", corpus=_from_configure("corpus")),
        corpus,
        warm_up,
        _each_run().expand_kwargs(configure.output),
        ReportComparisonOperator(
            task_id="report", subcommand="report-comparison", subject=_from_configure("name"), trigger_rule="all_done"
        ),
        MissingOperator(task_id="missing"),
    ]


def _each_run() -> Any:
    """A mapped group: the round's stages after the warm-up, in order, then the later rounds. What is begun goes before what is not."""

    @task_group(group_id="run", default_args={"map_index_template": TITLE, "weight_rule": "upstream"})
    def run(subject: str, title: str) -> None:
        name: dict[str, Any] = {"subject": subject, "title": title}
        stages = [stage for stage in ROUND_STAGES if stage is not WARM_UP]
        tasks: list[Any] = [WarmedUpOperator(**_stage_arguments(stages[0]), **name, round_number="1", trigger_rule="all_done")]
        tasks += [_operator(stage)(**_stage_arguments(stage), **name, round_number="1") for stage in stages[1:]]
        num_rounds = _from_configure("num_rounds")
        tasks.append(NextRoundsOperator(task_id="next_rounds", num_rounds=num_rounds, **name))
        tasks.append(LaterRoundsSensor(task_id="later_rounds", num_rounds=num_rounds, **name))
        chain(*tasks)

    return run


def on_each_corpus() -> PartitionedAssetTimetable:
    """One DAG run for each corpus whose ingestion has finished."""
    return PartitionedAssetTimetable(assets=CORPUS)


def nightly() -> dict[str, Any]:
    """The schedule `BLISS_RESCORE_CRON`, in UTC. Its first DAG run is at the next such time: with a start date it would be at once, and
    tasks that start together with Airflow itself have been seen to lock its SQLite database for a minute."""
    return _at(*RESCORE_CRON)


def reconciling() -> dict[str, Any]:
    """The schedule `BLISS_RECONCILE_CRON`, in UTC."""
    return _at("BLISS_RECONCILE_CRON", "*/5 * * * *")


def reconciling_tasks() -> list[Any]:
    """Find the Ray jobs whose tasks are gone, stop each, tell of that and of a missed schedule."""
    look = FindOrphansOperator(task_id="look", memory=ORPHANS, conn_id=RAY_CONNECTION)
    stop = StopOrphanOperator.partial(
        task_id="stop", conn_id=RAY_CONNECTION, outlets=[ORPHANS], map_index_template="{{ task.submission_id }}"
    ).expand_kwargs(look.output)
    schedules = {"bliss_rescore_nightly": os.environ.get(*RESCORE_CRON)}
    return [look, stop, WatchOperator(task_id="tell", schedules=schedules, trigger_rule="all_done")]


def rescore_tasks() -> list[Any]:
    """Find the pairs, score them in groups of shards, load each pair that is complete."""
    plan = PlanOperator(task_id="plan")
    groups = GroupsOperator(task_id="groups")
    rescore = BlissStageOperator.partial(
        task_id="rescore",
        subcommand="rescore",
        doc_md=pipeline.rescore.__doc__,
        pool=GPU_POOL,
        map_index_template="{{ task.arguments[0][9:] }} by {{ task.subject }} {{ task.group }}",  # [9:]: after `--corpus=`
    ).expand_kwargs(groups.output)
    load = LoadScoresOperator.partial(
        task_id="load",
        doc_md=pipeline.load_scores.__doc__,
        pool=SCORE_STORE_POOL,
        trigger_rule="all_done",
        outlets=[SCORES],
        map_index_template="{{ task.subject }}: {{ task.arguments[0] }}",
    ).expand_kwargs(plan.output)
    return [plan, groups, rescore, load]


def rescore_all_tasks() -> list[Any]:
    """Find the corpora with something to score, trigger `bliss_rescore` for each."""
    find = FindCorporaOperator(task_id="find")
    trigger = TriggerDagRunOperator.partial(
        task_id="trigger",
        trigger_dag_id="bliss_rescore",
        logical_date=None,
        skip_when_already_exists=True,
        map_index_template="{{ task.conf['corpus'] }}",
    ).expand_kwargs(find.output)
    return [find, trigger]


def landing_tasks() -> list[Any]:
    """Take in new files, trigger `bliss_ingest` for each new corpus, then say what could not be taken in."""
    look = LandOperator(task_id="look")
    ingest = TriggerDagRunOperator.partial(
        task_id="ingest",
        trigger_dag_id="bliss_ingest",
        logical_date=None,
        skip_when_already_exists=True,
        map_index_template="{{ task.conf['ingest.corpus'] }}",
    ).expand_kwargs(look.output)
    return [look, ingest, ProblemsOperator(task_id="problems", trigger_rule="none_failed")]


def _at(variable: str, default_cron: str) -> dict[str, Any]:
    cron = os.environ.get(variable, default_cron)
    return DAG_ARGS | {"start_date": None, "schedule": CronTriggerTimetable(cron, timezone="UTC", run_immediately=timedelta(0))}


def _stage_task(stage: Stage, configure: ConfigureOperator, **kwargs: Any) -> Any:
    kwargs |= _stage_arguments(stage) | {"subject": _from_configure("name")}
    if stage.name not in MAPPED:
        return _operator(stage)(**kwargs)
    return BlissStageOperator.partial(map_index_template="{{ task.group }}", **kwargs).expand(group=configure.output)


def _operator(stage: Stage) -> Any:
    return CheckOperator if stage.is_light else BlissStageOperator


def _stage_arguments(stage: Stage) -> dict[str, Any]:
    """What a stage's task is made of, whichever run or corpus it is for."""
    arguments: dict[str, Any] = {"task_id": stage.name, "subcommand": stage.command, "doc_md": stage.function.__doc__}
    if stage.is_light:
        return arguments
    arguments["trains"] = stage.trains
    if stage.name in STORE_WRITERS:
        arguments["pool"] = SCORE_STORE_POOL
    elif stage.name in ON_GPU:
        arguments["pool"] = GPU_POOL
    elif stage.trains:
        arguments["pool"] = TRAINING_POOL
    if stage.launches:
        arguments["num_workers"] = _from_configure("num_workers")
    return arguments


def _from_configure(key: str) -> str:
    """A template, not an XComArg: that would draw an edge from `configure` to every task."""
    return f"{{{{ ti.xcom_pull(task_ids='configure', key='{key}') }}}}"
