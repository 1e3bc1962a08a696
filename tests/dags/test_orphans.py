"""Which Ray jobs are stopped because their tasks are gone, and which are not."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("airflow")

from airflow.sdk import Asset
from airflow.sdk.exceptions import AirflowSkipException

from bliss_ops.airflow import owner as owners
from bliss_ops.airflow.orphans import SUSPECTS, FindOrphansOperator, StopOrphanOperator, find_suspects
from bliss_ops.airflow.owner import Owner
from bliss_ops.ray.jobs import Job
from tests.dags.test_ray_job import connect
from tests.ray.jobs_api import FakeJob, JobsApi, jobs_api
from tests.ray.tasks import StateStore

MEMORY = Asset(name="memory", uri="bliss://memory")


def owner(task_id: str = "fit", deployment: str = "ours", map_index: int = -1) -> Owner:
    return Owner(deployment, "bliss_round", "demo-round-01", task_id, map_index, 1)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[JobsApi]:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("AIRFLOW_VAR_RAY_JOBS_DEPLOYMENT", "ours")
    with jobs_api() as api:
        connect(api, monkeypatch)
        yield api


@pytest.fixture
def states(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Task instances that Airflow knows, by task id."""
    states: dict[str, str] = {}
    monkeypatch.setattr(Owner, "state", lambda self: states.get(self.task_id, owners.GONE))
    monkeypatch.setattr(Owner, "_run_is_active", lambda self: self.run_id == "demo-round-01")
    return states


def test_two_first_tasks_agree_on_a_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have found none before either makes one; the later one's is written when the earlier one could already read its own."""
    kept: list[str] = []
    both_looked, waits = threading.Barrier(2), iter([0.0, 0.3])

    class Variables:
        @staticmethod
        def get(key: str, default: str | None = None) -> str | None:
            if default is None and not kept:
                both_looked.wait(timeout=10)
                return None
            return kept[-1]

        @staticmethod
        def set(key: str, value: str, description: str) -> None:
            time.sleep(next(waits))
            kept.append(value)

    monkeypatch.setattr(owners, "Variable", Variables)
    monkeypatch.setattr(owners, "SETTLE_SECONDS", 1.0)
    with ThreadPoolExecutor(2) as tasks:
        first, second = tasks.map(lambda _: owners.deployment(), range(2))
    assert first == second == kept[-1]
    assert len(kept) == 2


def look(store: StateStore, grace_seconds: float = 0.0) -> list[str]:
    operator = FindOrphansOperator(task_id="look", memory=MEMORY, conn_id="ray_default", grace_seconds=grace_seconds)
    return [found["submission_id"] for found in operator.execute({"asset_state_store": {MEMORY: store}})]


def run_job(api: JobsApi, name: str, metadata: dict[str, str]) -> None:
    api.jobs[name] = FakeJob({"entrypoint": "x", "metadata": metadata})


@pytest.mark.parametrize(
    ("state", "is_over"),
    [
        *[(state, False) for state in ("none", "scheduled", "queued", "running", "restarting", "deferred", "up_for_retry")],
        *[(state, True) for state in ("success", "failed", "skipped", "upstream_failed", "removed", "gone")],
    ],
)  # fmt: skip
def test_which_states_are_the_end(states: dict[str, str], state: str, is_over: bool) -> None:
    states["fit"] = state
    assert owner().ended_state() == (state if is_over else None)


def test_a_task_that_waits_in_a_dag_run_that_has_ended_is_over(states: dict[str, str]) -> None:
    states["fit"] = "none"
    assert Owner("ours", "bliss_round", "another run", "fit", -1).ended_state() == "none"


def test_only_our_own_running_jobs_without_a_task_are_suspects() -> None:
    jobs = [
        Job("ended", "SUCCEEDED", metadata=owner("a").metadata),
        Job("lost", "RUNNING", metadata=owner("b", map_index=3).metadata),
        Job("waiting", "PENDING", metadata=owner("c").metadata),
        Job("alive", "RUNNING", metadata=owner("alive").metadata),
        Job("another Airflow's", "RUNNING", metadata=owner("d", deployment="theirs").metadata),
        Job("nobody's", "RUNNING"),
        Job("damaged", "RUNNING", metadata=owner("e").metadata | {"airflow_map_index": "x"}),
        Job("of a later version", "RUNNING", metadata=owner("f").metadata | {"airflow_colour": "red"}),
    ]
    found = find_suspects(jobs, "ours", {"lost": 5.0}, 9.0, lambda owner: None if owner.task_id == "alive" else "failed")
    assert [(suspect.job.submission_id, suspect.first_seen) for suspect in found] == [("lost", 5.0), ("waiting", 9.0)]
    assert str(found[0].owner) == "bliss_round demo-round-01 b [3]"


def test_an_orphan_is_stopped_at_the_second_look(api: JobsApi, states: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("bliss_ops.airflow.orphans.time.time", lambda: now)
    run_job(api, "lost", owner("a").metadata)
    run_job(api, "back", owner("b").metadata)
    store = StateStore()
    assert look(store, grace_seconds=60) == []
    assert store.values == {SUSPECTS: {"lost": 1000.0, "back": 1000.0}}
    now, states["b"] = 1030.0, "running"
    assert look(store, grace_seconds=60) == []
    now = 1061.0
    assert look(store, grace_seconds=60) == ["lost"]
    api.end("lost")
    assert look(store, grace_seconds=60) == []
    assert store.values == {SUSPECTS: {}}


def test_without_ray_nothing_is_looked_at(api: JobsApi) -> None:
    api.answers = [503]
    with pytest.raises(AirflowSkipException, match="nothing was looked at"):
        look(StateStore())


class Event:
    extra: Any = None


def stop(name: str) -> dict[str, Any]:
    event = Event()
    StopOrphanOperator(task_id="stop", submission_id=name, conn_id="ray_default", outlets=[MEMORY]).execute(
        {"outlet_events": {MEMORY: event}}
    )
    return dict(event.extra)


def test_stopping_says_what_was_stopped_and_why(api: JobsApi, states: dict[str, str]) -> None:
    run_job(api, "lost", owner().metadata)
    states["fit"] = "failed"
    assert stop("lost") == {
        "submission_id": "lost",
        "task": "bliss_round demo-round-01 fit",
        "task_state": "failed",
        "job_status": "STOPPED",
    }
    assert api.jobs["lost"].status == "STOPPED"


def test_what_is_no_orphan_any_more_is_left_alone(api: JobsApi, states: dict[str, str]) -> None:
    run_job(api, "back", owner().metadata)
    states["fit"] = "running"
    with pytest.raises(AirflowSkipException, match="has its task again"):
        stop("back")
    api.end("back")
    for name in ("back", "never there"):
        with pytest.raises(AirflowSkipException, match="by itself"):
            stop(name)
    assert api.requests["stop"] == 0
