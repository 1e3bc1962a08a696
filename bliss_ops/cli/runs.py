"""`bliss ingest`, `run`, `configure-corpus`, `configure`, `extend`: stages put together."""

import argparse
import sys
from typing import Any

from bliss_ops import pipeline, rounds
from bliss_ops.cli.arguments import add_command, add_settings, overrides, recipe_of, round_number, who_works
from bliss_ops.cli.stack import add_airflow_options, in_stack
from bliss_ops.configure import configure_corpus, configure_run
from bliss_ops.lake import Lake, Run
from bliss_ops.recipes import load_recipe
from bliss_ops.selectors import check_method

METHODS = ("random", "bliss")  # what `bliss run` runs when no method is named: the baseline first


def add_commands(commands: Any) -> None:
    """The commands of this file."""
    ingest = add_command(commands, "ingest", ingest_corpus, "Source shards to documents, tokenizer, sequences and validation set.")
    ingest.add_argument("source", nargs="*", help="shards: paths, globs or URIs; none takes the recipe's source")
    ingest.add_argument("--recipe", default="demo")
    ingest.add_argument("--corpus", help="name of the corpus in the lake")
    ingest.add_argument("--validation", help="JSON lines with the text that defines 'good'")
    ingest.add_argument("--tokenizer", help="a Hugging Face tokenizer.json; none trains one on the corpus")
    add_settings(ingest)

    run = add_command(commands, "run", run_recipe, "A recipe from source to report, each method beside the random baseline.")
    run.add_argument("recipe", nargs="?", default="demo")
    run.add_argument("--source", help="C4-format shards instead of the recipe's")
    run.add_argument("--validation", help="JSON lines with the text that defines 'good'")
    run.add_argument("--corpus", help="name of the corpus in the lake")
    run.add_argument("--methods", default=",".join(METHODS), help="selectors or variants, comma-separated; one run each (%(default)s)")
    run.add_argument("--seed", type=int, default=0)
    add_airflow_options(run)
    add_settings(run)

    configure_corpus = add_command(commands, "configure-corpus", configure_corpus_only, "Write a corpus's config.json and print its name.")
    configure_corpus.add_argument("recipe")
    add_settings(configure_corpus)

    configure = add_command(commands, "configure", configure_run_only, "Write a run's config.json and print its name.")
    configure.add_argument("recipe")
    configure.add_argument("--method", default="bliss")
    configure.add_argument("--seed", type=int, default=0)
    configure.add_argument("--run-name", "--name", dest="run_name", help="default: <recipe>-<method>-s<seed>")
    configure.add_argument("--compare-with", action="append", default=[], metavar="RUN", help="a run drawn beside this one in its report")
    add_settings(configure)

    extend = add_command(commands, "extend", extend_run, "More rounds for a run that is there; what is finished stays as it is.")
    extend.add_argument("run", metavar="RUN")
    extend.add_argument("--rounds", type=round_number, required=True, metavar="N", help="how many it is to have in all")
    extend.add_argument("--run", dest="runs_now", action="store_true", help="do them now, in this process")


def ingest_corpus(arguments: argparse.Namespace) -> int:
    """`bliss ingest`."""
    if len(arguments.source) > 1:
        raise ValueError("give one source: quote a glob so that the shell does not expand it, for example 'data/*.json.gz'")
    lake = Lake.open(arguments.lake)
    source = arguments.source[0] if arguments.source else None
    recipe = recipe_of(arguments.recipe, arguments, source=source)
    corpus = configure_corpus(lake, recipe)
    pipeline.ingest(lake, corpus.name, who_works())
    return 0


def run_recipe(arguments: argparse.Namespace) -> int:
    """`bliss run`."""
    methods = [method.strip() for method in arguments.methods.split(",") if method.strip()]
    settings = overrides(arguments, source=arguments.source)
    if arguments.airflow:
        return _run_in_airflow(arguments, methods, settings)
    from bliss_ops import report

    lake = Lake.open(arguments.lake)
    for method in methods:  # before hours of work
        check_method(method)
    recipe = load_recipe(arguments.recipe, settings)
    corpus = configure_corpus(lake, recipe)
    pipeline.ingest(lake, corpus.name, who_works())
    runs: list[Run] = []
    for method in methods:
        others = [run.name for run in runs]
        runs.append(configure_run(lake, arguments.recipe, method, arguments.seed, overrides=settings, compare_with=others))
        for number in range(1, recipe.num_rounds + 1):
            pipeline.run_round(lake, runs[-1].name, number, who_works())
    for run in runs:
        sys.stdout.write(report.headline(run))
    return 0


def _run_in_airflow(arguments: argparse.Namespace, methods: list[str], settings: dict[str, Any]) -> int:
    from bliss_ops.stack import run_in_airflow

    return in_stack(arguments, lambda lake, state: run_in_airflow(arguments.recipe, methods, arguments.seed, settings, lake, state))


def configure_corpus_only(arguments: argparse.Namespace) -> int:
    """`bliss configure-corpus`."""
    corpus = configure_corpus(Lake.open(arguments.lake), recipe_of(arguments.recipe, arguments))
    sys.stdout.write(f"{corpus.name}\n")
    return 0


def configure_run_only(arguments: argparse.Namespace) -> int:
    """`bliss configure`."""
    run = configure_run(
        Lake.open(arguments.lake),
        arguments.recipe,
        arguments.method,
        arguments.seed,
        overrides=overrides(arguments),
        name=arguments.run_name,
        compare_with=arguments.compare_with,
    )
    sys.stdout.write(f"{run.name}\n")
    return 0


def extend_run(arguments: argparse.Namespace) -> int:
    """`bliss extend`."""
    lake = Lake.open(arguments.lake)
    before = lake.run(arguments.run).config.num_rounds
    config = rounds.extend(lake.run(arguments.run), arguments.rounds)
    sys.stdout.write(f"{config.name}: {config.num_rounds} rounds (it had {before})\n")
    if arguments.runs_now:
        for number in range(1, config.num_rounds + 1):
            pipeline.run_round(lake, config.name, number, who_works())
    return 0
