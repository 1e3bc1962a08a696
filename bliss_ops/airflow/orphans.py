"""Ray jobs whose task instance is gone, found and stopped; for any DAG whose tasks are `RayJobOperator`s.

A task that ends stops its job itself. What is left over is for when it could not: the worker, the triggerer or the Ray head was dead at
that moment. A job is an orphan when its metadata names a task instance of this Airflow that has ended or is not known any more; it is
stopped at the second look that finds it so, a grace period after the first. Jobs of other Airflows, and of nobody, are left alone.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from airflow.sdk import Asset, BaseHook, BaseOperator
from airflow.sdk.exceptions import AirflowSkipException

from bliss_ops.airflow.owner import Owner, deployment
from bliss_ops.airflow.trigger import as_client
from bliss_ops.ray.jobs import ACTIVE, Job, RayJobs, RayUnreachable

if TYPE_CHECKING:
    from airflow.sdk import Context

GRACE_SECONDS = 60.0  # a task that is being stopped has its own way of stopping its job first
STOP_SECONDS = 30.0  # Ray gives a job 3 s between SIGTERM and SIGKILL
POLL_SECONDS = 0.5
SUSPECTS = "suspects"


@dataclass(frozen=True)
class Suspect:
    """A running job whose task instance has ended, and since when that is known."""

    job: Job
    owner: Owner
    state: str
    first_seen: float


def find_suspects(
    jobs: Iterable[Job], deployment_id: str, first_seen: Mapping[str, float], now: float, has_ended: Callable[[Owner], str | None]
) -> list[Suspect]:
    """Those of `jobs` that are under way although their task instances have ended.

    Args:
        jobs: all jobs of the cluster.
        deployment_id: of this Airflow.
        first_seen: what the last look has found, submission id to time.
        now: the time.
        has_ended: the state of a task instance that is over, None for one that runs or will.
    """
    found = []
    for job in jobs:
        owner = Owner.from_metadata(job.metadata)
        if not job.is_active or owner is None or owner.deployment != deployment_id:
            continue
        if (state := has_ended(owner)) is not None:
            found.append(Suspect(job, owner, state, first_seen.get(job.submission_id, now)))
    return found


class FindOrphansOperator(BaseOperator):
    """Looks at every job of the cluster; returns the arguments of one `StopOrphanOperator` per orphan.

    Args:
        memory: an asset, in whose state the jobs are kept that were found for the first time.
        conn_id: the connection to Ray's Jobs API.
        grace_seconds: for how long a job must have been without its task.
    """

    ui_color = "#fef7e0"

    def __init__(self, *, memory: Asset, conn_id: str, grace_seconds: float = GRACE_SECONDS, **kwargs: Any) -> None:
        super().__init__(inlets=[memory], **kwargs)
        self.memory = memory
        self.conn_id = conn_id
        self.grace_seconds = grace_seconds

    def execute(self, context: "Context") -> list[dict[str, str]]:
        store, now = context["asset_state_store"][self.memory], time.time()
        try:
            jobs = as_client(BaseHook.get_connection(self.conn_id)).jobs()
        except RayUnreachable as error:
            raise AirflowSkipException(f"nothing was looked at: {error}") from None
        before = cast("dict[str, Any]", store.get(SUSPECTS, default={}))
        suspects = find_suspects(jobs, deployment(), before, now, Owner.ended_state)
        orphans = [suspect for suspect in suspects if now - suspect.first_seen >= self.grace_seconds]
        num_active = sum(job.is_active for job in jobs)
        self.log.info("%d jobs are under way; %d without their tasks, %d of them to be stopped", num_active, len(suspects), len(orphans))
        for suspect in suspects:
            seconds = now - suspect.first_seen
            self.log.warning("%s: %s is %s, since %.0f s or more", suspect.job.submission_id, suspect.owner, suspect.state, seconds)
        after: dict[str, Any] = {suspect.job.submission_id: suspect.first_seen for suspect in suspects}
        if after != before:
            store.set(SUSPECTS, after)
        return [{"submission_id": orphan.job.submission_id} for orphan in orphans]


class StopOrphanOperator(BaseOperator):
    """Stops one orphan, if it still is one, and says so in the events of its outlets."""

    template_fields = ("submission_id",)
    ui_color = "#fce8e6"

    def __init__(self, *, submission_id: str, conn_id: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.submission_id = submission_id
        self.conn_id = conn_id

    def execute(self, context: "Context") -> None:
        jobs = as_client(BaseHook.get_connection(self.conn_id))
        job = jobs.details(self.submission_id)
        owner = Owner.from_metadata(job.metadata) if job else None
        if job is None or owner is None or not job.is_active:
            raise AirflowSkipException(f"{self.submission_id} has ended by itself")
        if (state := owner.ended_state()) is None:
            raise AirflowSkipException(f"{self.submission_id} has its task again: {owner}")
        self.log.warning("stopping Ray job %s: its task %s is %s", self.submission_id, owner, state)
        jobs.stop(self.submission_id)
        status = self._wait(jobs)
        for asset in self.outlets:
            about: dict[str, Any] = {"submission_id": self.submission_id, "task": str(owner), "task_state": state, "job_status": status}
            context["outlet_events"][asset].extra = about

    def _wait(self, jobs: RayJobs) -> str:
        """What has become of the job; one that waits for room on the cluster stops when it gets some."""
        deadline = time.monotonic() + STOP_SECONDS
        while (status := jobs.status(self.submission_id)) in ACTIVE and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        self.log.info("Ray job %s is %s", self.submission_id, status)
        return status
