"""One sub-command per stage of the pipeline: what Airflow submits to Ray."""

import argparse
from collections.abc import Callable
from typing import Any

from bliss_ops import pipeline
from bliss_ops.cli.arguments import add_command, add_group, round_number, who_works
from bliss_ops.lake import Lake


def add_commands(commands: Any) -> None:
    """The commands of this file."""
    for stage in pipeline.CORPUS_STAGES:
        command = add_command(commands, stage.command, _corpus_stage(stage), _first_line(stage))
        command.add_argument("corpus")
        if stage.sharded:
            add_group(command)
    for stage in pipeline.ROUND_STAGES:
        command = add_command(commands, stage.command, _round_stage(stage), _first_line(stage))
        command.add_argument("run")
        command.add_argument("--round", type=round_number, default=1)
        if stage.sharded:
            add_group(command)


def _corpus_stage(stage: pipeline.Stage) -> Callable[[argparse.Namespace], int]:
    def command(arguments: argparse.Namespace) -> int:
        stage.do(Lake.open(arguments.lake).corpus(arguments.corpus), work=who_works(getattr(arguments, "group", None)))
        return 0

    return command


def _round_stage(stage: pipeline.Stage) -> Callable[[argparse.Namespace], int]:
    def command(arguments: argparse.Namespace) -> int:
        run = Lake.open(arguments.lake).run(arguments.run)
        if arguments.round > run.config.num_rounds:
            raise ValueError(f"round {arguments.round} of {run.name!r} does not exist: num_rounds is {run.config.num_rounds}")
        stage.do(run, arguments.round, who_works(getattr(arguments, "group", None)))
        return 0

    return command


def _first_line(stage: pipeline.Stage) -> str:
    return (stage.function.__doc__ or "").strip().splitlines()[0]
