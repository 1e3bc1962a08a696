"""`bliss store check`, `bliss store rebuild`: is the score store what Parquet says, and making it again."""

import argparse
import sys
from typing import Any

from bliss_ops.cli.arguments import add_command
from bliss_ops.lake import Lake


def add_commands(commands: Any) -> None:
    """The commands of this file."""
    store = commands.add_parser("store", help="Check the score store against Parquet, or rebuild it.")
    actions = store.add_subparsers(dest="action", required=True, metavar="ACTION")
    add_command(
        actions, "check", check, "Compare Parquet, ledger, tables and snapshot; a line for each problem, exit code 1 if there is one."
    )
    add_command(actions, "rebuild", rebuild, "Make the score store again from Parquet; readers keep the old snapshot meanwhile.")


def check(arguments: argparse.Namespace) -> int:
    """`bliss store check`."""
    from bliss_ops.store.check import Checked
    from bliss_ops.store.check import check as problems_of

    lake, checked, num_problems = Lake.open(arguments.lake), Checked(), 0
    for problem in problems_of(lake, checked):
        sys.stdout.write(f"{problem}\n")
        num_problems += 1
    verdict = f"{num_problems} problem{'s' * (num_problems != 1)}" if num_problems else "all is well"
    sys.stdout.write(f"store check: {verdict}: {checked}\n")
    return 1 if num_problems else 0


def rebuild(arguments: argparse.Namespace) -> int:
    """`bliss store rebuild`."""
    from bliss_ops import store

    counts = store.rebuild(Lake.open(arguments.lake))
    sys.stdout.write(f"store rebuild: {counts['num_loaded']:,} shards, {counts['num_rows']:,} rows, snapshot published\n")
    return 0
