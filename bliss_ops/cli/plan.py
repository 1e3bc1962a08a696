"""`bliss plan`: what a recipe will take, before anything runs; and plan against actual of a run."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bliss_ops.cli.arguments import add_command, add_settings, overrides
from bliss_ops.lake import Lake
from bliss_ops.selectors import check_method, known_methods

if TYPE_CHECKING:
    from rich.table import Table

    from bliss_ops.planning import Plan, StagePlan
    from bliss_ops.speeds import Speeds

EVERY = "all"


def add_commands(commands: Any) -> None:
    """The commands of this file."""
    plan = add_command(commands, "plan", plan_recipe, "Tokens, disk, FLOPs and hours of every stage, before anything runs or beside it.")
    plan.add_argument("recipe", nargs="?", help="a recipe by name or path (default: demo)")
    plan.add_argument("--run", metavar="RUN", help="a run of the lake instead: its plan against what its finished stages took")
    plan.add_argument("--method", default="bliss", help="selector or variant (%(default)s)")
    plan.add_argument("--methods", nargs="?", const=EVERY, help="several side by side, comma-separated; all without a value")
    plan.add_argument("--seed", type=int, default=0)
    plan.add_argument("--corpus", help="a corpus of the lake, for exact sizes (default: the recipe's own, when it is there)")
    plan.add_argument("--num-sequences", type=int, metavar="N", help="candidate sequences of a round, for a corpus that is not there")
    plan.add_argument(
        "--device", help="hours on this kind of device: as measured in the lake, or with --mfu by its peak (h100, h200, a100)"
    )
    plan.add_argument("--mfu", type=float, metavar="SHARE", help="model FLOPs utilisation of the device, such as 0.4")
    plan.add_argument("--flops-per-second", type=float, metavar="F", help="model FLOP/s of one device, instead")
    plan.add_argument("--format", choices=("table", "json"), default="table")
    add_settings(plan)


def plan_recipe(arguments: argparse.Namespace) -> int:
    """`bliss plan`."""
    from bliss_ops import planning

    lake = Lake.open(arguments.lake)
    speeds = _speeds(lake, arguments)
    if arguments.run is not None:
        if arguments.recipe is not None or arguments.methods is not None:
            raise ValueError("give a recipe or --run RUN, not both")
        planned, took = planning.against_actual(lake.run(arguments.run), speeds)
        shown: dict[str, Any] = {"plan": _values(planned), "actual": _values(took), "rate": speeds.described}
        _show(arguments.format, shown, [_against(planned, took)], _notes(planned, speeds))
        return 0
    plans = [_plan(lake, arguments, method, speeds) for method in _methods(arguments)]
    if arguments.methods is None:
        _show(arguments.format, _values(plans[0]) | {"rate": speeds.described}, [_stages(plans[0])], _notes(plans[0], speeds))
    else:
        shown = {"plans": [_values(plan) for plan in plans], "rate": speeds.described}
        _show(arguments.format, shown, [_side_by_side(plans)], _notes(plans[0], speeds)[:2] + _assumed(plans[0]))
    return 0


def _plan(lake: Lake, arguments: argparse.Namespace, method: str, speeds: "Speeds") -> "Plan":
    from bliss_ops import planning
    from bliss_ops.configure import run_config

    config = run_config(lake, arguments.recipe or "demo", method, arguments.seed, overrides=overrides(arguments))
    return planning.plan_of(lake, config, speeds, arguments.num_sequences, is_named=arguments.corpus is not None)


def _methods(arguments: argparse.Namespace) -> list[str]:
    if arguments.methods is None:
        return [check_method(arguments.method)]
    if arguments.methods == EVERY:
        return known_methods()
    return [check_method(method.strip()) for method in arguments.methods.split(",") if method.strip()]


def _speeds(lake: Lake, arguments: argparse.Namespace) -> "Speeds":
    from dataclasses import replace

    from bliss_ops.speeds import given_speed, measured_speeds

    given, described = arguments.flops_per_second, f"{_count(arguments.flops_per_second)}FLOP/s, given"
    if arguments.mfu is not None:
        if given is not None or arguments.device is None or not 0 < arguments.mfu <= 1:
            raise ValueError(
                "--mfu is a share of a device's peak, above 0 and at most 1: give it with --device and without --flops-per-second"
            )
        given = given_speed(arguments.device, arguments.mfu)
        described = f"{arguments.device} at {arguments.mfu:.0%} of its peak, {_count(given)}FLOP/s"
    if given is not None and given <= 0:
        raise ValueError(f"--flops-per-second is {given:g}: give the model FLOP/s of one device, such as 4e14")
    if given is not None:
        return replace(measured_speeds(lake, arguments.device), flops_per_second=given, described=described)
    return measured_speeds(lake, arguments.device, without=arguments.run)


def _show(style: str, values: dict[str, Any], tables: "Sequence[Table]", notes: Sequence[str]) -> None:
    if style == "json":
        sys.stdout.write(json.dumps(values, indent=2) + "\n")
        return
    from rich.console import Console

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 140)
    for table in tables:
        console.print(table)
    for note in notes:
        console.print(note, markup=False, highlight=False, soft_wrap=True)


def _values(plan: "Plan") -> dict[str, Any]:
    return asdict(plan) | {
        "total": asdict(plan.total),
        "selection": asdict(plan.selection),
        "selection_share": plan.selection_share,
    }


def _stages(plan: "Plan") -> "Table":
    """One plan, a line per stage."""
    table = _table(f"{plan.run}: {_rounds(plan)}", ["stage", "sequences", "tokens", "disk", "model FLOPs", "device time"])
    for stage in plan.stages:
        table.add_row(stage.stage, *_cells(stage))
    table.add_section()
    for stage in (plan.selection, plan.total):
        table.add_row(stage.stage, "", "", *_cells(stage)[2:], style="bold")
    return table


def _side_by_side(plans: "Sequence[Plan]") -> "Table":
    """Several methods, a line each."""
    headings = ["method", "selection FLOPs", "of all", "selection time", "training FLOPs", "training time", "all", "disk"]
    table = _table(f"{_rounds(plans[0])} each", headings)
    for plan in plans:
        training = next(stage for stage in plan.stages if stage.stage == "pretrain")
        total, selection = plan.total, plan.selection
        table.add_row(
            plan.method, _count(selection.flops), f"{plan.selection_share:.1%}", _hours(selection.device_seconds), _count(training.flops),
            _hours(training.device_seconds), _hours(total.device_seconds), _bytes(total.num_bytes),
        )  # fmt: skip
    return table


def _against(planned: "Plan", took: "Plan") -> "Table":
    """Plan, actual and their ratio for each stage. The tokens of one stage are those of another, so they are not added up."""
    headings = ["stage", "tokens", "actual", "disk", "actual", "model FLOPs", "actual", "ratio", "device time", "actual", "ratio"]
    table = _table(f"{took.run}: {_rounds(took)}, plan against actual", headings)
    for plan in planned.stages:
        actual = next(stage for stage in took.stages if stage.stage == plan.stage)
        table.add_row(plan.stage, _count(plan.num_tokens), _count(actual.num_tokens), *_beside(plan, actual))
    table.add_section()
    table.add_row("total", "", "", *_beside(planned.total, took.total), style="bold")
    return table


def _beside(plan: "StagePlan", actual: "StagePlan") -> list[str]:
    return [
        _bytes(plan.num_bytes), _bytes(actual.num_bytes), _count(plan.flops), _count(actual.flops), _ratio(plan.flops, actual.flops),
        _hours(plan.device_seconds), _hours(actual.device_seconds), _ratio(plan.device_seconds, actual.device_seconds),
    ]  # fmt: skip


def _notes(plan: "Plan", speeds: "Speeds") -> list[str]:
    lines = [f"device time: {speeds.described}"]
    if plan.num_epochs is not None:
        lines.append(f"the pretraining of a round goes over its subset {plan.num_epochs:.2f} times")
    if plan.total.flops:
        lines.append(f"selection takes {plan.selection_share:.1%} of the model FLOPs")
    unknown = [stage.stage for stage in plan.stages if stage.device_seconds is None]
    if unknown:
        lines.append(f"no rate is known for {', '.join(unknown)}: not in the device time")
    return lines + _assumed(plan)


def _assumed(plan: "Plan") -> list[str]:
    return [f"assumed: {text}" for text in plan.assumptions]


def _rounds(plan: "Plan") -> str:
    return f"{len(plan.rounds)} round{'s' * (len(plan.rounds) != 1)}"


def _table(title: str, headings: Sequence[str]) -> "Table":
    from rich import box
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="left" if number == 0 else "right", no_wrap=True)
    return table


def _cells(stage: "StagePlan") -> list[str]:
    return [
        _count(stage.num_sequences), _count(stage.num_tokens), _bytes(stage.num_bytes), _count(stage.flops), _hours(stage.device_seconds),
    ]  # fmt: skip


def _count(value: float | None) -> str:
    """`5.24B`; FLOPs beyond that as powers of ten."""
    if not value:
        return "-"
    if value >= 1e15:
        return f"{value:.3g}".replace("e+", "e")
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def _bytes(value: int | None) -> str:
    if not value:
        return "-"
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value} B"


def _hours(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"


def _ratio(plan: float | None, actual: float | None) -> str:
    return f"{actual / plan:.2f}" if plan and actual else "-"
