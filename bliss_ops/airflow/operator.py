"""One task = one stage = one shell command, submitted to Ray as a job (see `ray_job.py`); configuring runs here in Airflow."""

import logging
import os
import shlex
import subprocess
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from bliss_ops import release
from bliss_ops.airflow import forms
from bliss_ops.airflow.ray_job import RayJobOperator
from bliss_ops.names import redacted

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)

FORWARDED = ("BLISS_LAKE",)  # what a job must know and a Ray cluster cannot
HEAD_WAIT = "BLISS_RAY_WAIT_SECONDS"  # how long a Ray head that does not answer is waited for
SILENCE = "BLISS_SILENCE_SECONDS"  # how long a running stage may log nothing


class StageFailed(RuntimeError):  # noqa: N818 - what happened, as the log shows it
    """A light command that runs in Airflow itself ended with an error; the message is the command's own."""


class BlissStageOperator(RayJobOperator):
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
        **kwargs: Any,
    ) -> None:
        super().__init__(
            head_wait_seconds=float(os.environ.get(HEAD_WAIT, "600")),
            silence_seconds=float(os.environ.get(SILENCE, "7200")),
            **kwargs,
        )
        self.subcommand = subcommand
        self.subject = subject
        self.arguments = arguments
        self.round_number = round_number
        self.group = group
        self.trains = trains
        self.num_workers = num_workers
        self.title = title

    @property
    def command(self) -> list[str]:
        """The argument list; every value is one element of it, whatever it contains."""
        command = ["bliss", self.subcommand, str(self.subject), *self.arguments]
        if self.round_number is not None:
            command += ["--round", str(self.round_number)]
        if self.group is not None:
            command += ["--group", self.group]
        return command

    def job_environment(self) -> dict[str, str]:
        """Where the lake is, how it is reached, and which release of this package may."""
        from bliss_ops.object_store import forwarded_environment

        forwarded = {variable: os.environ[variable] for variable in FORWARDED if variable in os.environ}
        return forwarded | forwarded_environment(to_ray=True) | release.required_environment()

    def claims(self) -> tuple[float, float]:
        return training_resources() if self.trains and int(self.num_workers) == 1 else (0.0, 0.0)

    def job_succeeded(self, context: "Context") -> None:
        """The events of the task's assets."""
        for asset in self.outlets:
            event = context["outlet_events"][asset]
            event.add_partitions([self.subject])
            event.extra = self.counts()

    def counts(self) -> dict[str, Any]:
        """What the event of the task's asset says, of a stage that announces one."""
        raise NotImplementedError


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
    from bliss_ops.object_store import forwarded_environment

    shown = shlex.join(map(redacted, command))  # a form may have been filled with a credential, which its setting refuses
    log.info("running %s", shown)
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | forwarded_environment())
    if result.returncode != 0:
        raise StageFailed(f"`{shown}` failed:\n{result.stderr.strip()}")
    for line in result.stderr.splitlines():
        log.info("%s", line)
    return result.stdout


def training_resources() -> tuple[float, float]:
    """CPUs and GPUs that a training job claims; the claim makes jobs wait for each other, it does not limit them."""
    return float(os.environ.get("BLISS_TRAINING_CPUS", "0")), float(os.environ.get("BLISS_TRAINING_GPUS", "0"))
