"""`bliss gates`: what the gates say about a run or a corpus, and their bounds."""

import argparse
import sys
from typing import Any

from upath import UPath

from bliss_ops.cli.arguments import add_command, round_number
from bliss_ops.lake import Lake


def add_commands(commands: Any) -> None:
    """The commands of this file."""
    gates = add_command(commands, "gates", show_gates, "What the data-quality gates said about a run or a corpus; moves their bounds.")
    gates.add_argument("name", help="a run, or with --corpus a corpus")
    gates.add_argument("--corpus", action="store_true", help="NAME is a corpus")
    gates.add_argument("--round", type=round_number, help="of a run (default: every round that was checked)")
    gates.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="move a bound in its config, such as max_identical_share=0.8, for checks that come; repeatable",
    )


def show_gates(arguments: argparse.Namespace) -> int:
    """`bliss gates`: 0 where every gate passed, else 1."""
    from bliss_ops import gates
    from bliss_ops.cli.arguments import settings
    from bliss_ops.configure import move_bounds

    lake = Lake.open(arguments.lake)
    target = lake.corpus(arguments.name) if arguments.corpus else lake.run(arguments.name)
    bounds = {name.rpartition(".")[2]: value for name, value in settings(arguments.set).items()}  # `gates.max_...` as messages write it
    for change in move_bounds(target, bounds) if bounds else ():
        sys.stdout.write(f"{change}\n")
    has_failed = False
    for title, directory in _checked(lake, arguments):
        verdicts = gates.read_report(directory)
        has_failed |= any(not verdict.passed for verdict in verdicts)
        lines = [f"  {'ok    ' if verdict.passed else 'FAILED'} {verdict.line()}" for verdict in verdicts] or ["  not checked yet"]
        sys.stdout.write("\n".join([title, *lines]) + "\n")
    return 1 if has_failed and not bounds else 0


def _checked(lake: Lake, arguments: argparse.Namespace) -> list[tuple[str, UPath]]:
    """(title, directory of the verdicts) of everything that is to be shown."""
    if arguments.corpus:
        return [(f"corpus {arguments.name}", lake.corpus(arguments.name).gates)]
    run = lake.run(arguments.name)
    rounds = [arguments.round] if arguments.round else range(1, run.config.num_rounds + 1)
    return [
        (f"{run.name} round {number}: {what}", run.round(number) / stage)
        for number in rounds
        for stage, what in (("check_round", "scores"), ("check_target", "target"))
        if arguments.round or (run.round(number) / stage).exists()
    ]
