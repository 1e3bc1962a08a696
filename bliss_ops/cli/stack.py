"""`bliss up`, `bliss down`: Ray and Airflow on this machine."""

import argparse
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
