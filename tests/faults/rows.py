"""One row of the matrix: an empty lake, one kind of blow, the whole path, and what is left of it in the end.

The path is ingestion, one round, re-scoring. What one undisturbed process writes from the same seed is the measure of what was lost,
doubled or changed.
"""

import contextlib
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from bliss_ops.lake import Lake
from bliss_ops.manifest import find_manifest
from bliss_ops.pipeline import CORPUS_STAGES, ROUND_STAGES
from bliss_ops.stack.airflow_api import FINISHED, TaskInstance
from tests.artifacts import manifests, stored_scores
from tests.faults.blows import Fault, Scene
from tests.faults.striking import UNREACHABLE, Blow, Striker
from tests.s3.faulty_proxy import FaultyProxy
from tests.stack.cluster import Cluster

RECIPE, RUN = "smoke", "smoke-bliss-s0"
WINDOW_SHARDS = 5  # half of them, so that re-scoring has the other half to do
ROUND = {"recipe": RECIPE, "num_rounds": 1, "window_shards": WINDOW_SHARDS}
PATH: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("bliss_ingest", "ingest", {"recipe": RECIPE}),
    ("bliss_round", f"{RUN}-round-01", ROUND | {"method": "bliss", "seed": 0, "round": 1, "name": RUN}),
    ("bliss_rescore", "rescore", {"corpus": RECIPE, "runs": [RUN], "round": 1}),
)
DAG_RUN_SECONDS = 2400.0  # later it counts as stuck
POLL_SECONDS = 2.0
ORPHAN_SECONDS = 660.0  # within which the reconciliation has stopped what nobody waits for
STAGE_SECONDS = 150.0  # what a struck stage itself takes on a busy machine, its retries and what it waits for in a pool included


@dataclass
class Outcome:
    """How one stage came through its blow."""

    stage: str
    hit: str
    was_running: bool
    state: str
    tries: int
    seconds: float | None  # from the blow to the end of the stage's last task


@dataclass
class Row:
    """One finished row, as it is kept in the results file."""

    fault: str
    words: str
    date: str
    seconds: float
    stages: list[Outcome] = field(default_factory=list)
    dag_runs: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)  # lost, doubled, changed, orphaned or stuck
    restarts: dict[str, int] = field(default_factory=dict)


JOBS = {stage.command for stage in (*CORPUS_STAGES, *ROUND_STAGES) if not stage.is_light} | {"rescore", "load-scores"}
LIGHT = {stage.command for stage in (*CORPUS_STAGES, *ROUND_STAGES) if stage.is_light}  # done in a task's process, without a job


@contextmanager
def scene_for(fault: Fault) -> Iterator[Scene]:
    """A cluster as this fault wants it, its S3 server behind the proxy; others of the same `needs` may be struck there, too."""
    with contextlib.ExitStack() as stack:
        stack.callback(signal.pthread_sigmask, signal.SIG_UNBLOCK, {signal.SIGTERM})
        proxies: list[FaultyProxy] = []

        def endpoint(upstream: str) -> str:
            if not proxies:
                proxies.append(stack.enter_context(FaultyProxy(upstream)))
            return proxies[0].endpoint

        cluster = Cluster(fault.variables, s3_endpoint=endpoint)
        if fault.setting is not None:
            stack.enter_context(fault.setting(cluster))
        stack.enter_context(cluster)
        if fault.is_doubled:
            cluster.add("airflow-scheduler-2", like="airflow-scheduler")
        stack.callback(signal.pthread_sigmask, signal.SIG_BLOCK, {signal.SIGTERM})  # whoever ends this, all of it is taken down first
        yield Scene(cluster, proxies[0])


def needs(fault: Fault) -> tuple[Any, ...]:
    """What a fault wants its cluster to be like."""
    return fault.setting, tuple(sorted(fault.variables.items())), fault.is_doubled


def run(fault: Fault, reference: Lake, scene: Scene, *, seed: int) -> Row:
    """Run one row; what went wrong with the product is in its `problems`, nothing is raised for it."""
    begun = time.monotonic()
    row = Row(fault.name, fault.words, datetime.now().astimezone().date().isoformat(), 0.0)
    cluster = scene.cluster
    with _lake_of(cluster) as lake:
        if find_manifest(lake.corpus(RECIPE).source) is not None:  # of the row before
            lake.root.fs.rm(lake.root.path, recursive=True)
            shutil.rmtree(cluster.directory / "volumes" / "ray" / "bliss-store", ignore_errors=True)
    starts = {name: cluster.num_starts(name) for name in cluster.names}
    striker = Striker(fault, scene, JOBS, LIGHT, seed)
    striker.start()
    tasks = _walk(cluster, row, num_triggers=2 if fault.is_doubled else 1)
    row.problems += [f"{stage} was not struck" for stage in sorted(striker.end())]
    scene.proxy.clear()
    row.stages = _outcomes(striker.blows, tasks)
    row.problems += _late(row, fault)
    row.restarts = {name: cluster.num_starts(name) - before for name, before in starts.items() if cluster.num_starts(name) > before}
    try:
        cluster.wait_until_healthy()
    except RuntimeError as error:
        row.problems.append(str(error).splitlines()[0])
    row.problems += _orphans(cluster)
    row.problems += _differences(cluster, reference)
    row.seconds = round(time.monotonic() - begun, 1)
    return row


def as_json(row: Row) -> dict[str, Any]:
    return asdict(row)


def from_json(values: dict[str, Any]) -> Row:
    return Row(**values | {"stages": [Outcome(**outcome) for outcome in values["stages"]]})


def _walk(cluster: Cluster, row: Row, *, num_triggers: int) -> list[tuple[str, TaskInstance]]:
    """Every DAG run to its end; returns all task instances with their DAG's id."""
    tasks: list[tuple[str, TaskInstance]] = []
    for dag_id, run_id, conf in PATH:
        run_ids = [_patiently(lambda: cluster.api.trigger(dag_id, run_id, conf)) for _ in range(num_triggers)]  # noqa: B023
        for each in run_ids:
            state = _wait(cluster, dag_id, each)
            row.dag_runs[f"{dag_id} {each}"] = state
            found = _patiently(lambda: cluster.api.task_instances(dag_id, each))  # noqa: B023
            tasks += [(dag_id, task) for task in found]
            if state != "success":
                unfinished = ", ".join(f"{task.label} {task.state}" for task in found if task.state not in GOOD)
                row.problems.append(f"{dag_id} {each} is {state}: {unfinished}")
    return tasks


GOOD = ("success", "skipped")


def _wait(cluster: Cluster, dag_id: str, run_id: str) -> str:
    deadline = time.monotonic() + DAG_RUN_SECONDS
    state = "unknown"
    while state not in FINISHED:
        if time.monotonic() > deadline:
            return f"stuck as {state}"
        time.sleep(POLL_SECONDS)
        with contextlib.suppress(*UNREACHABLE):  # the API server, or what it needs, is being struck
            state = cluster.api.dag_run_state(dag_id, run_id)
    return state


def _patiently(ask: Any, seconds: float = 120.0) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        try:
            return ask()
        except UNREACHABLE:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_SECONDS)


def _outcomes(blows: Sequence[Blow], tasks: Sequence[tuple[str, TaskInstance]]) -> list[Outcome]:
    """The last task instance of each stage beside the blow that struck it."""
    found = []
    for blow in blows:
        names = {blow.stage.replace("-", "_"), "load" if blow.stage == "load-scores" else blow.stage}
        dag_id = "bliss_rescore" if blow.stage in ("rescore", "load-scores") else None
        of_stage = [task for dag, task in tasks if task.task_id in names and (dag == dag_id if dag_id else dag != "bliss_rescore")]
        worst = max(of_stage, key=lambda task: (task.state not in GOOD, task.ended_at or ""), default=None)
        if worst is None:
            found.append(Outcome(blow.stage, blow.hit, blow.was_running, "missing", 0, None))
            continue
        ended = datetime.fromisoformat(worst.ended_at).timestamp() if worst.ended_at else None
        seconds = None if ended is None else round(max(0.0, ended - blow.at), 1)
        found.append(Outcome(blow.stage, blow.hit, blow.was_running, worst.state, max(task.try_number for task in of_stage), seconds))
    return found


def _late(row: Row, fault: Fault) -> list[str]:
    """Stages that went on later than what broke them is stated to be noticed."""
    bound = fault.noticed_within + STAGE_SECONDS
    late = [outcome for outcome in row.stages if outcome.hit and (outcome.seconds or 0.0) > bound]
    return [f"late: {outcome.stage} ended {outcome.seconds:.0f} s after the blow, {bound:.0f} are stated" for outcome in late]


def _orphans(cluster: Cluster) -> list[str]:
    """Ray jobs that are still at work although every DAG run has ended."""
    from bliss_ops.ray.jobs import RayJobs

    jobs = RayJobs(cluster.ray_address, token=cluster.variables["RAY_AUTH_TOKEN"])
    deadline = time.monotonic() + ORPHAN_SECONDS
    while active := [job for job in jobs.jobs() if job.is_active]:
        if time.monotonic() > deadline:
            return [f"orphan: Ray job {job.submission_id} is {job.status}" for job in active]
        time.sleep(POLL_SECONDS)
    return []


def _differences(cluster: Cluster, reference: Lake) -> list[str]:
    """What the lake and its store have less, more, or other than one undisturbed process makes."""
    with _lake_of(cluster) as lake:
        here, there = manifests(reference), manifests(lake)
        problems = [f"lost: {address}" for address in sorted(here.keys() - there.keys())]
        problems += [f"doubled: {address}" for address in sorted(there.keys() - here.keys())]
        for address in sorted(here.keys() & there.keys()):
            if (here[address].fingerprint, here[address].outputs) != (there[address].fingerprint, there[address].outputs):
                problems.append(f"changed: {address}")
        try:
            return problems + _score_differences(reference, lake, cluster.directory)
        except FileNotFoundError as error:
            return [*problems, f"lost: {error}"]


@contextmanager
def _lake_of(cluster: Cluster) -> Iterator[Lake]:
    """The cluster's lake, as a person would open it: by the same variables."""
    import pytest
    import s3fs

    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.environment.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        try:
            yield Lake.open(cluster.lake)
        finally:
            s3fs.S3FileSystem.clear_instance_cache()


def _score_differences(reference: Lake, lake: Lake, scratch: Path) -> list[str]:
    here, there = (Counter(stored_scores(each, scratch / name)) for name, each in (("here", reference), ("there", lake)))
    lost, more = (here - there).total(), (there - here).total()
    return [f"lost: {lost} scores of the store"] * bool(lost) + [f"doubled or changed: {more} scores of the store"] * bool(more)
