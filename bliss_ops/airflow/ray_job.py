"""A task that is a Ray job: submitted once, followed, found again after whatever died in between, stopped when the task is.

A job's id is made from the task's own (DAG, run, task, map index) and a generation. The id of the job under way is kept in the task's
state store, so a retry goes on with it: one that still runs is followed, one that has succeeded is not run again, and after one that
failed, or of which a restarted Ray head has no record, the next generation is submitted. Where somebody has cleared the task meanwhile,
a job that still runs is stopped and the next generation submitted. A worker that dies between submitting and writing the id down does
no harm: ids are the same at every try, so the job is found by its name.

Synchronous, the task's process follows the job; deferrable, Airflow's triggerer does (`RayJobTrigger`), and no worker is held meanwhile.
"""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.sdk import BaseHook, BaseOperator, BaseOperatorLink, ResumableJobMixin, conf
from airflow.sdk.exceptions import TaskDeferralTimeout

from bliss_ops.airflow.owner import Owner, generation_of
from bliss_ops.airflow.trigger import UNREACHABLE, Outcome, RayJobTrigger, as_client, outcome_of, short
from bliss_ops.ray.following import follow
from bliss_ops.ray.jobs import HEAD_WAIT_SECONDS, MISSING, STOPPED, SUCCEEDED, Job, RayUnreachable, entrypoint, patiently

if TYPE_CHECKING:
    from airflow.sdk import Context
    from airflow.sdk.types import TaskInstanceKey

    from bliss_ops.ray.jobs import RayJobs

RAY_CONNECTION = "ray_default"
NUM_LINES_IN_ERROR = 30
MAX_GENERATIONS = 1000
MAX_RESUBMITTED = 3  # within one try, of jobs that were lost; retries are Airflow's
ENTRYPOINT_FAILED = "Job entrypoint command failed"  # Ray's words
KILL_SECONDS = 4.0  # Airflow ends a task's process five seconds after it has told it to

T = TypeVar("T")


class RayJobFailed(RuntimeError):  # noqa: N818 - what happened, as the log shows it
    """A Ray job did not succeed; the message carries its last lines."""


class RayJobLink(BaseOperatorLink):
    """The job's page in Ray's dashboard; where browsers see that elsewhere, the connection's extra says `dashboard_url`."""

    name = "Ray dashboard"

    @property
    def xcom_key(self) -> str:
        return "ray_job_link"

    def get_link(self, operator: BaseOperator, *, ti_key: "TaskInstanceKey") -> str:  # noqa: ARG002 - Airflow's signature
        """Asked for in the task's own process, at its end."""
        return getattr(operator, "job_url", "")


LINK = RayJobLink()


class RayJobOperator(ResumableJobMixin, BaseOperator):
    """Runs a command as a Ray job and shows its log.

    Args:
        entrypoint: the command as an argument list; each element reaches the process as it is.
        env_vars: environment variables for the job. Airflow logs none of their values, Ray's nodes log all of them: no place for secrets.
        num_cpus: CPUs that the job claims on the cluster.
        num_gpus: GPUs that it claims.
        conn_id: an HTTP connection to Ray's Jobs API. Its password is the cluster's token; in its extra, `dashboard_url` is where browsers
            see Ray's dashboard, and `entrypoint_resources` what every job claims of the cluster's own resources, such as {"stage": 1}.
        head_wait_seconds: how long a Ray head that does not answer is waited for.
        silence_seconds: how long the running job may log nothing before it is stopped, as its process may be frozen; None: for ever.
        deferrable: wait in Airflow's triggerer, not in a worker.
    """

    template_fields: Sequence[str] = ("entrypoint", "env_vars")
    external_id_key = "ray_submission_id"
    operator_extra_links = (LINK,)

    def __init__(
        self,
        *,
        entrypoint: Sequence[str] = (),
        env_vars: Mapping[str, str] | None = None,
        num_cpus: float = 0,
        num_gpus: float = 0,
        conn_id: str = RAY_CONNECTION,
        head_wait_seconds: float = HEAD_WAIT_SECONDS,
        silence_seconds: float | None = None,
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.entrypoint = entrypoint
        self.env_vars = env_vars
        self.num_cpus = num_cpus
        self.num_gpus = num_gpus
        self.conn_id = conn_id
        self.head_wait_seconds = head_wait_seconds
        self.silence_seconds = silence_seconds
        self.deferrable = deferrable
        self.job_url = ""
        self._jobs: RayJobs | None = None
        self._dashboard_url: str | None = None
        self._resources: dict[str, float] = {}
        self._submission_id: str | None = None
        self._submitted_id: str | None = None
        self._previous_id: str | None = None
        self._is_killed = False
        self._num_resubmitted = 0
        self._deadline: float | None = None

    # What a subclass may decide later than its constructor.

    @property
    def command(self) -> list[str]:
        """The argument list."""
        return list(self.entrypoint)

    def job_environment(self) -> dict[str, str]:
        """Environment variables for the job."""
        return dict(self.env_vars or {})

    def claims(self) -> tuple[float, float]:
        """CPUs and GPUs that the job claims."""
        return self.num_cpus, self.num_gpus

    def job_succeeded(self, context: "Context") -> Any:  # noqa: ARG002 - for subclasses
        """Called once the job has succeeded; what it returns is the task's result."""
        return None

    # Airflow's side.

    def execute(self, context: "Context") -> Any:
        self._connect()
        self.execute_resumable(context)
        return self._done(context)

    def execute_complete(
        self,
        context: "Context",
        event: dict[str, Any],
        *,
        num_resubmitted: int = 0,  # `airflow dags test` hands on the event alone
        deadline: float | None = None,
        submitted_id: str | None = None,
    ) -> Any:
        """Goes on where the trigger ended."""
        self._connect()
        self._num_resubmitted, self._deadline, self._submitted_id = num_resubmitted, deadline, submitted_id
        self._conclude(Outcome(**event), context)
        return self._done(context)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: "Context") -> Any:
        """As any operator; where the time for the job was up, the job is stopped."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            self._connect()
            submission_id = str(context["task_state_store"].get(self.external_id_key))
            self._ask(lambda jobs: jobs.stop(submission_id))
            raise TaskDeferralTimeout(f"Ray job {submission_id} ran for longer than {self.execution_timeout}: it was stopped") from None

    def on_kill(self) -> None:
        """Stop the Ray job: called when the task is cancelled, marked, or timed out, in whatever it is doing, so it asks nobody else."""
        self._is_killed = True
        if self._jobs is None or self._submission_id is None:
            return
        try:
            self._jobs.stop(self._submission_id, timeout_seconds=KILL_SECONDS)
        except ConnectionError as error:
            self.log.warning("Ray job %s could not be stopped, the reconciliation will: %s", self._submission_id, error)
        else:
            self.log.info("stopping Ray job %s", self._submission_id)

    # What ResumableJobMixin asks for.

    def submit_job(self, context: "Context") -> str:
        """Submit the next generation; or find that the try before has, and died before it could write that down."""
        owner = Owner.of(context)
        first = generation_of(self._previous_id) + 1 if self._previous_id else 1
        for generation in range(first, MAX_GENERATIONS):
            submission_id = owner.submission_id(generation)
            job = self._ask(lambda jobs, name=submission_id: jobs.details(name))  # type: ignore[misc]
            if job is None:
                self._submit(submission_id, owner)
                return submission_id
            if job.is_active and self._goes_on_with(job, context):
                self.log.info("Ray job %s is %s: following it", submission_id, job.status)
                return submission_id
        raise RayJobFailed(f"{owner}: {MAX_GENERATIONS} Ray jobs of this task have ended; trigger a new DAG run")

    def get_job_status(self, external_id: Any, context: "Context") -> str:
        self._previous_id = str(external_id)
        job = self._ask(lambda jobs: jobs.details(str(external_id)))
        if job is None:
            return MISSING
        return STOPPED if job.is_active and not self._goes_on_with(job, context) else job.status

    def is_job_active(self, status: str) -> bool:
        return status in ("PENDING", "RUNNING")

    def is_job_succeeded(self, status: str) -> bool:
        return status == SUCCEEDED

    def poll_until_complete(self, external_id: Any, context: "Context") -> None:
        """Follow the job to its end, or leave that to the trigger."""
        self._submission_id = str(external_id)
        self._link(self._submission_id, context)
        if self.deferrable:
            self._defer(context)
        self._conclude(self._follow(), context)

    def get_job_result(self, external_id: Any, context: "Context") -> None:
        """Nothing: a job's result is what it wrote."""

    # Our side.

    def _connect(self) -> None:
        connection = BaseHook.get_connection(self.conn_id)
        self._jobs = as_client(connection)
        self._dashboard_url = connection.extra_dejson.get("dashboard_url")
        self._resources = connection.extra_dejson.get("entrypoint_resources") or {}

    def _ask(self, call: "Callable[[RayJobs], T]") -> T:
        jobs = self._jobs
        assert jobs is not None, "connected at the beginning"
        return patiently(lambda: call(jobs), self.head_wait_seconds)

    def _goes_on_with(self, job: Job, context: "Context") -> bool:
        """Whether this try follows an active job of the task; else the job is stopped.

        Clearing a task sets its `max_tries` to the tries so far plus `retries`.
        """
        first_try = context["ti"].max_tries - (self.retries or 0) + 1  # since the task was last cleared
        owner = Owner.from_metadata(job.metadata)
        if job.entrypoint != entrypoint(self.command):
            why = f"runs another command, {job.entrypoint}"
        elif owner is not None and owner.try_number < first_try:
            why = "was submitted before the task was cleared"
        else:
            return True
        self.log.warning("Ray job %s %s: stopping it", job.submission_id, why)
        self._ask(lambda jobs: jobs.stop(job.submission_id))
        return False

    def _submit(self, submission_id: str, owner: Owner) -> None:
        self.log.info("submitting Ray job %s: %s", submission_id, entrypoint(self.command))
        self._submission_id = self._submitted_id = submission_id  # before: a kill in between stops it
        num_cpus, num_gpus = self.claims()
        self._ask(
            lambda jobs: jobs.submit(
                submission_id,
                self.command,
                env_vars=self.job_environment(),
                metadata=owner.metadata,
                num_cpus=num_cpus,
                num_gpus=num_gpus,
                resources=self._resources,
            )
        )
        self.log.info("Ray job %s is submitted", submission_id)
        if self._is_killed:  # it was told to stop before it was there
            self._ask(lambda jobs: jobs.stop(submission_id))

    def _link(self, submission_id: str, context: "Context") -> None:
        """The link is there while the job runs, not only at the task's end."""
        assert self._jobs is not None
        self.job_url = self._jobs.dashboard_url(submission_id, self._dashboard_url)
        context["ti"].xcom_push(key=LINK.xcom_key, value=self.job_url)

    def _follow(self) -> Outcome:
        assert self._jobs is not None
        assert self._submission_id is not None
        last_lines: deque[str] = deque(maxlen=NUM_LINES_IN_ERROR)
        for line in follow(self._jobs, self._submission_id, head_wait_seconds=self.head_wait_seconds, silence_seconds=self.silence_seconds):
            self.log.info("%s", line)
            if line.strip():
                last_lines.append(short(line))
        return outcome_of(self._submission_id, self._ask(lambda jobs: jobs.details(str(self._submission_id))), last_lines)

    def _defer(self, context: "Context") -> None:
        assert self._submission_id is not None
        if self._deadline is None and self.execution_timeout is not None:
            self._deadline = time.time() + self.execution_timeout.total_seconds()
        self.defer(
            trigger=RayJobTrigger(
                self._submission_id,
                self.conn_id,
                self.head_wait_seconds,
                NUM_LINES_IN_ERROR,
                vars(Owner.of(context)),
                self.silence_seconds,
            ),
            method_name="execute_complete",
            kwargs={"num_resubmitted": self._num_resubmitted, "deadline": self._deadline, "submitted_id": self._submitted_id},
            timeout=None if self._deadline is None else timedelta(seconds=max(1.0, self._deadline - time.time())),
        )

    def _conclude(self, outcome: Outcome, context: "Context") -> None:
        """Return when the job has succeeded; go on with its next generation when it was lost; raise otherwise."""
        self._submission_id = outcome.submission_id
        self.log.info("Ray job %s ended as %s", outcome.submission_id, outcome.status)
        if outcome.status == SUCCEEDED:
            return
        was_taken = outcome.status == STOPPED and self._submitted_id != outcome.submission_id  # by the try before, which was killed
        if (outcome.status == MISSING or was_taken) and not self._is_killed and self._num_resubmitted < MAX_RESUBMITTED:
            self._num_resubmitted += 1
            why = "Ray has no record of it, its head was restarted" if outcome.status == MISSING else "it was stopped, not by this try"
            self.log.warning("Ray job %s is lost (%s): submitting its next generation", outcome.submission_id, why)
            self._previous_id = outcome.submission_id
            submission_id = self.submit_job(context)
            if (store := context.get("task_state_store")) is not None:
                store.set(self.external_id_key, submission_id)
            self.poll_until_complete(submission_id, context)
            return
        if outcome.status == UNREACHABLE:
            raise RayUnreachable(f"{outcome.message}. Ray job {outcome.submission_id} may still run: the next try looks for it")
        lines = list(outcome.last_lines)
        if not lines or not outcome.message.startswith(ENTRYPOINT_FAILED):  # else the message is the same lines once more
            lines += outcome.message.splitlines()
        text = "\n".join(f"  {line}" for line in lines)
        raise RayJobFailed(f"`{entrypoint(self.command)}` ended as {outcome.status} (Ray job {outcome.submission_id}):\n{text}")

    def _done(self, context: "Context") -> Any:
        """The job's id is forgotten, so that a task that is cleared later runs again."""
        if not self.job_url:  # this process has not followed it
            self._link(str(self._submission_id or self._previous_id), context)
        result = self.job_succeeded(context)
        if (store := context.get("task_state_store")) is not None:
            store.delete(self.external_id_key)
        return result
