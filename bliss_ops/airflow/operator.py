"""One task = one stage = one shell command, submitted to Ray as a job.

The job's name is made from the task's own (DAG, run, task, map index) and a generation. A retry looks for a generation that is
still running and follows it, instead of submitting the work twice; after a job that ended, in whatever way, it submits the next
generation, because a finished stage costs a second and a cleared task is meant to run again. No state is stored anywhere: the names are
enough, also when a worker dies between submitting and writing something down.
"""

import hashlib
import logging
import os
import re
import subprocess
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseHook, BaseOperator

from bliss_ops.airflow import forms

if TYPE_CHECKING:
    from airflow.sdk import Context

    from bliss_ops.ray.jobs import RayJobs

log = logging.getLogger(__name__)

RAY_CONNECTION = "ray_default"
NUM_LINES_IN_ERROR = 30
MAX_GENERATIONS = 1000
FORWARDED = ("BLISS_LAKE",)  # what a job must know and a Ray cluster cannot


class StageFailed(RuntimeError):  # noqa: N818 - what happened, as the log shows it
    """A stage's command ended with an error; the message carries its last lines."""


class BlissStageOperator(BaseOperator):
    """Runs `bliss <subcommand> <subject> [arguments] [--round N] [--group K/N]` as a Ray job and shows its log.

    Args:
        subcommand: the stage's command, such as `train-tokenizer`.
        subject: the corpus or run it is for.
        arguments: what else the command takes, one element each.
        round_number: of a round's stage.
        group: `K/N` for one group of shards.
        trains: whether the stage claims a GPU (or BLISS_TRAINING_CPUS), so that more runs than there is room for take turns.
        num_workers: with more than one, the stage's training workers make that claim and the job that starts them claims nothing.
        title: what a mapped task is called.
    """

    template_fields: Sequence[str] = ("subject", "arguments", "round_number", "group", "num_workers", "title")
    ui_color = "#e8f0fe"

    def __init__(
        self,
        *,
        subcommand: str,
        subject: str,
        arguments: Sequence[str] = (),
        round_number: str | None = None,
        group: str | None = None,
        trains: bool = False,
        num_workers: str = "1",
        title: str = "",
        conn_id: str = RAY_CONNECTION,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.subcommand = subcommand
        self.subject = subject
        self.arguments = arguments
        self.round_number = round_number
        self.group = group
        self.trains = trains
        self.num_workers = num_workers
        self.title = title
        self.conn_id = conn_id
        self._submission_id: str | None = None

    @property
    def command(self) -> list[str]:
        """The argument list; every value is one element of it, whatever it contains."""
        command = ["bliss", self.subcommand, str(self.subject), *self.arguments]
        if self.round_number is not None:
            command += ["--round", str(self.round_number)]
        if self.group is not None:
            command += ["--group", self.group]
        return command

    def execute(self, context: "Context") -> None:
        from bliss_ops.ray.jobs import SUCCEEDED

        jobs = self._connect()
        submission_id = self._attach_or_submit(jobs, context)
        self._submission_id = submission_id
        last_lines: deque[str] = deque(maxlen=NUM_LINES_IN_ERROR)
        for line in jobs.follow(submission_id):
            self.log.info("%s", line)
            if line.strip():
                last_lines.append(line)
        status = jobs.status(submission_id)
        if status != SUCCEEDED:
            lines = "\n".join(f"  {line}" for line in last_lines) or f"  {jobs.message(submission_id)}"
            raise StageFailed(f"`{' '.join(self.command)}` ended as {status} (Ray job {submission_id}):\n{lines}")
        for asset in self.outlets:
            event = context["outlet_events"][asset]
            event.add_partitions([self.subject])
            event.extra = self.counts()

    def counts(self) -> dict[str, Any]:
        """What the event of the task's asset says: here, what the corpus holds."""
        from bliss_ops.lake import Lake
        from bliss_ops.manifest import find_manifest

        sequences = find_manifest(Lake.open().corpus(self.subject).sequences)
        return {"corpus": self.subject} | ({"num_shards": len(sequences.shards), **sequences.metrics} if sequences else {})

    def on_kill(self) -> None:
        """Stop the Ray job: called when the task is cancelled, marked or timed out."""
        if self._submission_id is not None:
            self.log.info("stopping Ray job %s", self._submission_id)
            self._connect().stop(self._submission_id)

    def _attach_or_submit(self, jobs: "RayJobs", context: "Context") -> str:
        from bliss_ops.ray.jobs import ACTIVE, MISSING

        ti = context["ti"]
        map_index = -1 if ti.map_index is None else ti.map_index
        for generation in range(1, MAX_GENERATIONS):
            name = submission_id(ti.dag_id, ti.run_id, ti.task_id, map_index, generation)
            status = jobs.status(name)
            if status in ACTIVE:
                self.log.info("Ray job %s is %s: following it", name, status)
                return name
            if status == MISSING:
                self.log.info("submitting Ray job %s: %s", name, " ".join(self.command))
                env_vars = {variable: os.environ[variable] for variable in FORWARDED if variable in os.environ}
                num_cpus, num_gpus = training_resources() if self.trains and int(self.num_workers) == 1 else (0.0, 0.0)
                jobs.submit(name, self.command, env_vars=env_vars, num_cpus=num_cpus, num_gpus=num_gpus)
                return name
        raise StageFailed(f"{ti.task_id}: {MAX_GENERATIONS} Ray jobs of this task have ended; clear the DAG run and trigger a new one")

    def _connect(self) -> "RayJobs":
        from bliss_ops.ray.jobs import RayJobs

        connection = BaseHook.get_connection(self.conn_id)
        scheme = connection.schema or ("https" if connection.conn_type == "https" else "http")
        return RayJobs(f"{scheme}://{connection.host}:{connection.port or 8265}")


class ConfigureOperator(BaseOperator):
    """Writes the `config.json` of a corpus or run from the trigger form, here in Airflow: it is small and needs no cluster.

    Returns the groups (`K/N`) that sharded stages are mapped over; pushes `name` and `num_workers` beside them.
    """

    ui_color = "#fef7e0"

    def __init__(self, *, subcommand: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.subcommand = subcommand

    def execute(self, context: "Context") -> list[str]:
        params = dict(context["params"])
        command = ["bliss", *forms.configure_arguments(self.subcommand, params)]
        name = run_here(command).strip().splitlines()[-1]
        recipe = forms.recipe(params)
        num_groups = (recipe.scoring if self.subcommand == "configure" else recipe.ingest).num_groups
        context["ti"].xcom_push(key="name", value=name)
        context["ti"].xcom_push(key="num_workers", value=recipe.compute.num_workers)
        return [f"{group}/{num_groups}" for group in range(num_groups)]


def run_here(command: Sequence[str]) -> str:
    """Run a light `bliss` command in Airflow itself, which needs no cluster; returns what it printed.

    Raises:
        StageFailed: it ended with an error; the message is the command's own.
    """
    log.info("running %s", " ".join(command))
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise StageFailed(f"`{' '.join(command)}` failed:\n{result.stderr.strip()}")
    for line in result.stderr.splitlines():
        log.info("%s", line)
    return result.stdout


def submission_id(dag_id: str, run_id: str, task_id: str, map_index: int, generation: int) -> str:
    """Readable, unique for the task, the same at every retry; a digest keeps ids apart that differ in replaced characters only."""
    parts = [run_id, task_id, *([str(map_index)] if map_index >= 0 else [])]
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", ".".join(parts))[:120]
    digest = hashlib.sha256(repr((dag_id, run_id, task_id, map_index)).encode()).hexdigest()[:8]
    return f"{readable}.{digest}.{generation}"


def training_resources() -> tuple[float, float]:
    """CPUs and GPUs that a training job claims; the claim makes jobs wait for each other, it does not limit them."""
    return float(os.environ.get("BLISS_TRAINING_CPUS", "0")), float(os.environ.get("BLISS_TRAINING_GPUS", "0"))
