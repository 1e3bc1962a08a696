"""Which task instance a Ray job belongs to: written into the job's metadata, read back, and asked for in Airflow.

The deployment is there so that several Airflows can share one Ray cluster: it is a random id, kept as a Variable of the one whose it is, so
that it is the same in all its processes and on all its machines, and another one in any other Airflow.
"""

import hashlib
import re
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from airflow.sdk import Variable

if TYPE_CHECKING:
    from airflow.sdk import Context

DEPLOYMENT = "ray_jobs_deployment"  # the Variable's name
PREFIX = "airflow_"  # of the metadata's keys
SETTLE_SECONDS = 2.0  # once in an Airflow's life
GONE = "gone"  # our word for a task instance that Airflow does not know
TO_COME = frozenset({"none", "scheduled", "queued", "restarting", "up_for_retry", "up_for_reschedule"})
UNDER_WAY = frozenset({"running", "deferred", "awaiting_input"})
ACTIVE_RUN = frozenset({"queued", "running"})


@dataclass(frozen=True)
class Owner:
    """A task instance of one Airflow."""

    deployment: str
    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int = 0

    @classmethod
    def of(cls, context: "Context") -> Self:
        """The task that runs in this process."""
        ti = context["ti"]
        map_index = -1 if ti.map_index is None else ti.map_index
        return cls(deployment(), ti.dag_id, ti.run_id, ti.task_id, map_index, ti.try_number)

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, str]) -> Self | None:
        """Who a job belongs to; None where its metadata does not say it."""
        values = {key.removeprefix(PREFIX): value for key, value in metadata.items() if key.startswith(PREFIX)}
        try:
            map_index, try_number = int(values.pop("map_index")), int(values.pop("try_number"))
            return cls(map_index=map_index, try_number=try_number, **values)
        except (KeyError, TypeError, ValueError):  # another tool's, or another version's
            return None

    @property
    def metadata(self) -> dict[str, str]:
        """For the job, as Ray wants it: text by text."""
        return {f"{PREFIX}{name}": str(value) for name, value in vars(self).items()}

    def submission_id(self, generation: int) -> str:
        """Readable, unique for the task, the same at every retry; a digest keeps ids apart that differ in replaced characters only."""
        return submission_id(self.dag_id, self.run_id, self.task_id, self.map_index, generation)

    def state(self) -> str:
        """The task instance's state in Airflow now ("none" before it is scheduled), or GONE. Only within a task or trigger."""
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

        states = RuntimeTaskInstance.get_task_states(
            dag_id=self.dag_id, map_index=self.map_index, task_ids=[self.task_id], run_ids=[self.run_id]
        )
        found = list(states.get(self.run_id, {}).values())
        return str(found[0] or "none") if found else GONE

    def ended_state(self) -> str | None:
        """Its state when it is over; None while it runs, or will: it then follows the job or finds it. Only within a task."""
        state = self.state()
        return None if state in UNDER_WAY or (state in TO_COME and self._run_is_active()) else state

    def _run_is_active(self) -> bool:
        from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

        return RuntimeTaskInstance.get_dagrun_state(dag_id=self.dag_id, run_id=self.run_id) in ACTIVE_RUN

    def __str__(self) -> str:
        return f"{self.dag_id} {self.run_id} {self.task_id}{f' [{self.map_index}]' if self.map_index >= 0 else ''}"


def deployment() -> str:
    """This Airflow's id among those that share a Ray cluster; made when it is first asked for."""
    if not (found := Variable.get(DEPLOYMENT, default=None)):
        Variable.set(DEPLOYMENT, secrets.token_hex(8), description="Marks the Ray jobs of this Airflow. Made by the first of them.")
        time.sleep(SETTLE_SECONDS)  # another first task may make one at the same time: the later one stays
        found = Variable.get(DEPLOYMENT)
    return str(found)


def submission_id(dag_id: str, run_id: str, task_id: str, map_index: int, generation: int) -> str:
    """See `Owner.submission_id`."""
    parts = [run_id, task_id, *([str(map_index)] if map_index >= 0 else [])]
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", ".".join(parts))[:120]
    digest = hashlib.sha256(repr((dag_id, run_id, task_id, map_index)).encode()).hexdigest()[:8]
    return f"{readable}.{digest}.{generation}"


def generation_of(submission_id: str) -> int:
    """The last part of a submission id."""
    return int(submission_id.rsplit(".", 1)[1])
