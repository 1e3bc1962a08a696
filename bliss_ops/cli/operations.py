"""`bliss doctor`, `gc`, `remake`, `backup`, `restore`: what is wrong, what may go, what comes back, and copies of it all."""

import argparse
import json
import re
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bliss_ops.cli.arguments import add_command, who_works
from bliss_ops.lake import Lake

if TYPE_CHECKING:
    from bliss_ops.operations.retention import Plan

STATE_DIR = ".bliss"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")


def add_commands(commands: Any) -> None:
    """The commands of this file."""
    gc = add_command(commands, "gc", collect, "What may go of finished runs, with its bytes and why; with --delete, it goes.")
    gc.add_argument("--delete", action="store_true", help="delete what is listed; without it nothing is touched")
    gc.add_argument("--run", action="append", metavar="RUN", help="only of this run; repeatable (default: the whole lake)")
    gc.add_argument("--keep-rounds", type=_count, default=1, metavar="N", help="newest finished rounds that keep everything (%(default)s)")
    gc.add_argument("--only", action="append", metavar="KIND", help="only this kind, repeatable: see docs/operations.md (default: all)")
    gc.add_argument(
        "--older-than", type=duration, default="1d", metavar="AGE", help="leave what is younger, such as 36h or 7d (%(default)s)"
    )
    gc.add_argument("--logs-older-than", type=duration, default="30d", metavar="AGE", help="the same of logs (%(default)s)")
    gc.add_argument("--state", default=STATE_DIR, help="the stack's directory, for its logs and history (default: %(default)s)")
    gc.add_argument("--airflow-history", type=duration, metavar="AGE", help="Airflow's records of DAG runs older than this, too")
    gc.add_argument("--json", action="store_true", help="for programs")

    remake = add_command(commands, "remake", make_again, "Make again, byte for byte, what `bliss gc` took out of an artifact.")
    remake.add_argument("address", metavar="ADDRESS", help="as `bliss gc` lists it, such as runs/RUN/round-01/subset")


def collect(arguments: argparse.Namespace) -> int:
    """`bliss gc`."""
    from bliss_ops.operations import collecting, retention
    from bliss_ops.operations.airflow_history import clean

    lake = Lake.open(arguments.lake)
    policy = retention.Policy(
        runs=tuple(arguments.run) if arguments.run else None,
        kinds=tuple(arguments.only or retention.KINDS),
        keep_rounds=arguments.keep_rounds,
        older_than_seconds=arguments.older_than,
        logs_older_than_seconds=arguments.logs_older_than,
        state_dir=Path(arguments.state),
    )
    found = retention.plan(lake, policy)
    outcome = collecting.collect(lake, found.items) if arguments.delete else None
    if arguments.json:
        items = [asdict(item) | {"root": str(item.root)} for item in found.items]
        kept = [{"address": address, "reason": reason} for address, reason in found.kept]
        values = {"deleted": outcome is not None, "num_bytes": found.num_bytes, "items": items, "kept": kept}
        sys.stdout.write(json.dumps(values | ({"outcome": asdict(outcome)} if outcome else {}), indent=2) + "\n")
    else:
        _show_plan(found)
        if outcome is None:
            sys.stdout.write(f"{_bytes(found.num_bytes)} may go; nothing was deleted: add --delete\n")
        else:
            sys.stdout.write(f"{outcome.num_files:,} files, {_bytes(outcome.num_bytes)} deleted{_written_down(outcome.journal)}\n")
    if arguments.airflow_history is not None:
        clean(Path(arguments.state), arguments.airflow_history, delete=arguments.delete)
    if outcome and outcome.problems:
        raise ValueError("\n".join(["not everything could be deleted:", *outcome.problems]))
    return 0


def make_again(arguments: argparse.Namespace) -> int:
    """`bliss remake`."""
    from bliss_ops.operations.remaking import remake

    made = remake(Lake.open(arguments.lake), arguments.address, who_works())
    sys.stdout.write("".join(f"{address} is whole again\n" for address in made) or f"{arguments.address}: nothing was taken out of it\n")
    return 0


def duration(text: str) -> float:
    """`36h` in seconds."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not an age: write a number and s, m, h, d or w, such as 36h or 7d")
    return float(match[1]) * _UNITS[match[2]]


def _show_plan(found: "Plan") -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160)
    table = Table(title="what may go", title_justify="left", box=box.SIMPLE_HEAD)
    for heading, justify in (("kind", "left"), ("what", "left"), ("files", "right"), ("bytes", "right"), ("why", "left")):
        table.add_column(heading, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for item in found.items:
        table.add_row(item.kind, item.address, f"{len(item.files) or 1:,}", _bytes(item.num_bytes), item.reason)
    if found.items:
        console.print(table, markup=False)
    for address, reason in found.kept:
        console.print(f"stays: {address}: {reason}", markup=False, highlight=False, soft_wrap=True)


def _written_down(journal: str) -> str:
    return f", written down in {journal}" if journal else ""


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of rounds: they count from 0")
    return int(text)


def _bytes(value: int) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value} B"
