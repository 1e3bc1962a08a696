"""`bliss compare`: several runs on one page."""

import argparse
import sys
from pathlib import Path
from typing import Any

from upath import UPath

from bliss_ops.cli.arguments import add_command, round_number
from bliss_ops.lake import Lake, is_local


def add_commands(commands: Any) -> None:
    """The commands of this file."""
    compare = add_command(commands, "compare", compare_runs, "One report of several runs: losses, scores, and what each keeps.")
    compare.add_argument("runs", nargs="+", metavar="RUN")
    compare.add_argument("--round", type=round_number, help="default: the last round that all of them have evaluated")
    compare.add_argument("--output", help="directory to write (default: comparisons/<runs> of the lake)")


def compare_runs(arguments: argparse.Namespace) -> int:
    """`bliss compare`."""
    from bliss_ops.report.comparison import compare

    output = UPath(arguments.output) if arguments.output else None
    if output is not None and is_local(output):
        output = UPath(Path(arguments.output).absolute())
    page = compare(Lake.open(arguments.lake), arguments.runs, arguments.round, output)
    sys.stdout.write(f"{page}\n")
    return 0
