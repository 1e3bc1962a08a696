"""`bliss compare`: several runs on one page; with `--recipe`, methods x seeds are run for it first."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from upath import UPath

from bliss_ops.cli.arguments import add_command, add_settings, overrides, round_number, who_works
from bliss_ops.cli.stack import add_airflow_options, in_stack
from bliss_ops.lake import Lake, is_local

METHODS = ("random", "dsir", "bliss")
SEEDS = ("0", "1", "2")


def add_commands(commands: Any) -> None:
    """The commands of this file."""
    compare = add_command(
        commands, "compare", compare_runs, "One report of several runs: losses, speed-up, costs, scores; with --recipe, of methods x seeds."
    )
    compare.add_argument("runs", nargs="*", metavar="RUN", help="runs that are there; none with --recipe")
    compare.add_argument("--round", type=round_number, help="default: the last round that all of them have evaluated")
    compare.add_argument("--output", help="directory to write (default: comparisons/<runs> of the lake)")
    compare.add_argument("--recipe", help="run this recipe with every method and seed first; what is finished is not done again")
    _add_choice(compare)
    compare.add_argument("--source", help="C4-format shards instead of the recipe's")
    compare.add_argument("--validation", help="JSON lines with the text that defines 'good'")
    compare.add_argument("--corpus", help="name of the corpus in the lake")
    add_airflow_options(compare)
    add_settings(compare)

    configure = add_command(
        commands, "configure-comparison", configure_comparison, "Write the configs of a comparison's runs and print what there is to do."
    )
    configure.add_argument("recipe")
    _add_choice(configure)
    add_settings(configure)

    report = add_command(commands, "report-comparison", report_comparison, "Write the report of a comparison about the runs that are done.")
    report.add_argument("comparison")


def _add_choice(command: argparse.ArgumentParser) -> None:
    command.add_argument("--methods", default=",".join(METHODS), help="selectors or variants, comma-separated (%(default)s)")
    command.add_argument("--seeds", default=",".join(SEEDS), help="comma-separated; every method runs with each (%(default)s)")
    command.add_argument(
        "--name", dest="comparison_name", help="of the comparison; its runs are <name>-<method>-s<seed> (default: the recipe's)"
    )
    command.add_argument("--baseline", default="random", help="the method that the others are held against (%(default)s)")


def compare_runs(arguments: argparse.Namespace) -> int:
    """`bliss compare`."""
    if arguments.recipe is not None:
        return _compare_methods(arguments)
    _refuse_without_recipe(arguments)
    from bliss_ops.report.comparison import compare

    output = UPath(arguments.output) if arguments.output else None
    if output is not None and is_local(output):
        output = UPath(Path(arguments.output).absolute())
    page = compare(Lake.open(arguments.lake), arguments.runs, arguments.round, output, baseline=arguments.baseline)
    sys.stdout.write(f"{page}\n")
    return 0


def _compare_methods(arguments: argparse.Namespace) -> int:
    from bliss_ops import comparisons

    if given := [name for name in ("runs", "round", "output") if getattr(arguments, name)]:
        raise ValueError(f"--recipe makes the runs itself: leave out {', '.join(given)}, or name runs without --recipe")
    settings = overrides(arguments, source=arguments.source)
    methods, seeds = _methods(arguments), _seeds(arguments)
    if arguments.airflow:
        from bliss_ops.stack import compare_in_airflow

        choice = {"methods": methods, "seeds": seeds, "name": arguments.comparison_name, "baseline": arguments.baseline}
        return in_stack(arguments, lambda lake, state: compare_in_airflow(arguments.recipe, choice, settings, lake, state))
    lake = Lake.open(arguments.lake)
    comparison = comparisons.configure(
        lake, arguments.recipe, methods, seeds, name=arguments.comparison_name, baseline=arguments.baseline, overrides=settings
    )
    page = comparisons.run(lake, comparison, who_works())
    sys.stdout.write(f"{(page.parent / 'table.md').read_text()}\n{page}\n")
    return _say_what_is_missing(lake, comparison)


def configure_comparison(arguments: argparse.Namespace) -> int:
    """`bliss configure-comparison`: prints the comparison as JSON, with the runs that are not finished."""
    from bliss_ops import comparisons

    lake = Lake.open(arguments.lake)
    comparison = comparisons.configure(
        lake,
        arguments.recipe,
        _methods(arguments),
        _seeds(arguments),
        name=arguments.comparison_name,
        baseline=arguments.baseline,
        overrides=overrides(arguments),
    )
    unfinished = [member.model_dump() | {"label": member.label} for member in comparisons.unfinished(lake, comparison)]
    sys.stdout.write(json.dumps(comparison.model_dump(mode="json") | {"unfinished": unfinished}) + "\n")
    return 0


def report_comparison(arguments: argparse.Namespace) -> int:
    """`bliss report-comparison`: green also where runs are missing, which the page says."""
    from bliss_ops import comparisons

    lake = Lake.open(arguments.lake)
    sys.stdout.write(f"{comparisons.report(lake, comparisons.read(lake, arguments.comparison))}\n")
    return 0


def _say_what_is_missing(lake: Lake, comparison: Any) -> int:
    from bliss_ops import comparisons

    missing = comparisons.unfinished(lake, comparison)
    for member in missing:
        sys.stderr.write(f"missing: {member.run} ({comparisons.how_far(lake.run(member.run), comparison.num_rounds)})\n")
    return 1 if missing else 0


def _methods(arguments: argparse.Namespace) -> list[str]:
    return [method.strip() for method in arguments.methods.split(",") if method.strip()]


def _seeds(arguments: argparse.Namespace) -> list[int]:
    items = [item.strip() for item in arguments.seeds.split(",") if item.strip()]
    if wrong := [item for item in items if not item.isdecimal()]:
        raise ValueError(f"--seeds {arguments.seeds}: {', '.join(wrong)} is not a seed; write whole numbers with commas, for example 0,1,2")
    return [int(item) for item in items]


def _refuse_without_recipe(arguments: argparse.Namespace) -> None:
    """Options that run something are of no effect on runs that are there."""
    given = [name for name in ("source", "validation", "corpus", "airflow", "start", "set") if getattr(arguments, name)]
    given += ["name"] if arguments.comparison_name else []
    if given:
        raise ValueError(f"{', '.join(f'--{name}' for name in given)}: only with --recipe; runs that are there are compared as they are")
