"""`bliss up`, `bliss down`: Ray and Airflow on this machine."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bliss_ops.cli.arguments import add_command
from bliss_ops.lake import Lake


def add_commands(commands: Any) -> None:
    """The commands of this file."""
    up = add_command(commands, "up", stack_up, "Start one Ray head and Airflow on this machine (127.0.0.1 only).")
    down = add_command(commands, "down", stack_down, "Stop what `bliss up` started.")
    for command in (up, down):
        command.add_argument("--state", default=".bliss", help="directory of pids, logs and Airflow's home (default: %(default)s)")


def add_airflow_options(command: argparse.ArgumentParser) -> None:
    """`--airflow`, `--start` and `--state` of a command that can go through the DAGs."""
    command.add_argument("--airflow", action="store_true", help="through the Airflow of `bliss up`, with a live display")
    command.add_argument(
        "--start", action="store_true", help="with --airflow: start the stack first when it is not up, and stop it at the end"
    )
    command.add_argument("--state", default=".bliss", help="the stack's directory, with --airflow (default: %(default)s)")


def in_stack(arguments: argparse.Namespace, work: Callable[[Lake, Path], int]) -> int:
    """`work(lake, state directory)`; with `--start`, the stack is up for it."""
    from bliss_ops.stack import down, is_up, up

    lake, state = Lake.open(arguments.lake), Path(arguments.state)
    started_here = arguments.start and not is_up(state)
    try:
        if arguments.start:
            up(lake, state)
        return work(lake, state)
    finally:
        if started_here and not _leave_up():
            down(state)


def _leave_up() -> bool:
    """On a terminal, offer to leave the web UI up; anywhere else it is stopped."""
    if not sys.stdin.isatty():
        return False
    try:
        answer = input("Leave Airflow and Ray up so you can look around? `bliss down` stops them. [y/N] ")
    except (EOFError, KeyboardInterrupt):
        return False
    return answer.strip().lower() in ("y", "yes")


def stack_up(arguments: argparse.Namespace) -> int:
    """`bliss up`."""
    from bliss_ops.stack import up

    up(Lake.open(arguments.lake), Path(arguments.state))
    return 0


def stack_down(arguments: argparse.Namespace) -> int:
    """`bliss down`."""
    from bliss_ops.stack import down

    down(Path(arguments.state))
    return 0
