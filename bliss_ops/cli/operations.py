"""`bliss doctor`, `gc`, `remake`, `backup`, `restore`: what is wrong, what may go, what comes back, and copies of it all."""

import argparse
import json
import logging
import re
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bliss_ops.cli.arguments import add_command, who_works
from bliss_ops.lake import Lake

if TYPE_CHECKING:
    from bliss_ops.operations.findings import Finding
    from bliss_ops.operations.retention import Plan

STATE_DIR = ".bliss"
COLOURS = {"ok": "green", "warning": "yellow", "error": "bold red"}
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)([smhdw])")


def add_commands(commands: Any) -> None:
    """The commands of this file."""
    doctor = add_command(
        commands, "doctor", examine, "Machine, servers and lake: what was found, and the fix beside it; exit code 1 on errors."
    )
    doctor.add_argument("--state", default=STATE_DIR, help="the directory of `bliss up` (default: %(default)s)")
    doctor.add_argument("--run", metavar="RUN", help="hold the plan of this run against the free disk")
    doctor.add_argument(
        "--ray", metavar="URL", help="Ray's Jobs API (default: that of the stack, RAY_ADDRESS, or the connection ray_default)"
    )
    doctor.add_argument("--airflow", metavar="URL", help="Airflow's API; BLISS_AIRFLOW_USER and BLISS_AIRFLOW_PASSWORD log in")
    doctor.add_argument("--only", action="append", metavar="CHECK", help="only this check, repeatable")
    doctor.add_argument("--seconds", type=float, default=60.0, help="for all checks together, which run side by side (%(default)s)")
    doctor.add_argument("--json", action="store_true", help="for programs")

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

    backup = add_command(commands, "backup", copy_lake, "A consistent copy of the lake in use; a later one copies what is new.")
    backup.add_argument("target", metavar="DIRECTORY|s3://...", help="where backups are kept, beside the lake and best on another disk")
    backup.add_argument("--airflow", action="store_true", help="Airflow's database, too")
    backup.add_argument("--state", default=STATE_DIR, help="the stack's directory, with --airflow (default: %(default)s)")
    backup.add_argument("--without-store", action="store_true", help="leave out scores.duckdb, which `bliss store rebuild` makes again")
    backup.add_argument("--verify", action="store_true", help="copy nothing: read every file of a snapshot and compare its hash")
    backup.add_argument("--snapshot", metavar="NAME", help="with --verify: another one than the newest")

    restore = add_command(commands, "restore", restore_lake, "A snapshot of a backup as a lake again; --lake names it, and is empty.")
    restore.add_argument("source", metavar="DIRECTORY|s3://...", help="where `bliss backup` has put it")
    restore.add_argument("--snapshot", metavar="NAME", help="another one than the newest")
    restore.add_argument("--airflow", metavar="DIRECTORY", help="put the copy of Airflow's database there, too")
    restore.add_argument("--list", action="store_true", help="list the snapshots and restore nothing")


def examine(arguments: argparse.Namespace) -> int:
    """`bliss doctor`."""
    from bliss_ops.operations import doctor

    places = doctor.Places(arguments.lake, Path(arguments.state), arguments.run, arguments.ray, arguments.airflow)
    logging.getLogger().setLevel(logging.ERROR)  # what clients log about a server that does not answer is in the findings
    findings = list(doctor.examine(places, only=arguments.only, seconds=arguments.seconds))
    counts = {level: sum(finding.level == level for finding in findings) for level in ("ok", "warning", "error")}
    if arguments.json:
        sys.stdout.write(json.dumps({"counts": counts, "findings": [asdict(finding) for finding in findings]}, indent=2) + "\n")
    else:
        _show_findings(findings)
        sys.stdout.write(f"doctor: {counts['error']} errors, {counts['warning']} warnings, {counts['ok']} ok\n")
    return 1 if counts["error"] else 0


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
        items = [collecting.described(item) for item in found.items]
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


def copy_lake(arguments: argparse.Namespace) -> int:
    """`bliss backup`."""
    from bliss_ops.operations import backup, metadata
    from bliss_ops.operations.snapshots import Target

    target = Target.at(arguments.target)
    if arguments.verify:
        snapshot, problems = backup.verify(target, arguments.snapshot)
        verdict = f"{len(problems)} problems: run `bliss backup` again, or take another snapshot" if problems else "whole"
        sys.stdout.write("".join(f"{problem}\n" for problem in problems))
        sys.stdout.write(f"snapshot {snapshot.name}: {len(snapshot.entries):,} files, {_bytes(snapshot.num_bytes)}: {verdict}\n")
        return 1 if problems else 0
    with tempfile.TemporaryDirectory(prefix="bliss-backup-") as scratch:
        files = [metadata.dump(Path(arguments.state), Path(scratch))] if arguments.airflow else []
        report = backup.backup(Lake.open(arguments.lake), target, metadata=files, with_store=not arguments.without_store)
    snapshot = report.snapshot
    sys.stdout.write(
        f"snapshot {snapshot.name}: {len(snapshot.entries):,} files, {_bytes(snapshot.num_bytes)}; "
        f"{report.num_copied:,} were new, {_bytes(report.num_bytes_copied)}\n"
    )
    if snapshot.problems:
        raise ValueError("\n".join(["not everything could be copied:", *snapshot.problems]))
    return 0


def restore_lake(arguments: argparse.Namespace) -> int:
    """`bliss restore`."""
    from bliss_ops.operations.restoring import restore
    from bliss_ops.operations.snapshots import Target

    source = Target.at(arguments.source)
    if arguments.list:
        sys.stdout.write("".join(f"{name}\n" for name in source.names()))
        return 0
    lake = Lake.open(arguments.lake)
    snapshot = restore(source, lake, arguments.snapshot, metadata=Path(arguments.airflow) if arguments.airflow else None)
    sys.stdout.write(
        f"{lake.root} is snapshot {snapshot.name} of {snapshot.lake}: {len(snapshot.entries):,} files, every hash as recorded\n"
        "  now `bliss store rebuild`, then `bliss store check`\n"
    )
    return 0


def duration(text: str) -> float:
    """`36h` in seconds."""
    match = _DURATION.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not an age: write a number and s, m, h, d or w, such as 36h or 7d")
    return float(match[1]) * _UNITS[match[2]]


def _show_findings(findings: "Sequence[Finding]") -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("check", "", "found", "fix"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        table.add_row(finding.check, Text(finding.level, style=COLOURS[finding.level]), Text(finding.found), Text(finding.fix))
    Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160).print(table)


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
