"""`bliss`: one sub-command per stage, and the few that put stages together.

Errors a user can fix are one paragraph on stderr and exit code 1; anything else is ours and shows its traceback.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from bliss_ops import __version__, pipeline
from bliss_ops.config import EMBEDDED, Recipe
from bliss_ops.configure import configure_corpus, configure_run
from bliss_ops.lake import Lake, Run
from bliss_ops.recipes import load_recipe
from bliss_ops.selectors import check_method

log = logging.getLogger("bliss")

ADDRESSES = ("ingest.source", "ingest.tokenizer", "ingest.validation.source")  # settings that may be local paths
METHODS = ("random", "bliss")  # what `bliss run` runs when no method is named: the baseline first


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr, force=True)
    try:
        return arguments.command(arguments) or 0
    except (ValueError, OSError) as error:
        if arguments.traceback:
            raise
        sys.stderr.write(f"bliss {arguments.name}: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"bliss {arguments.name}: interrupted; the same command resumes\n")
        return 130


def build_parser() -> argparse.ArgumentParser:
    """Every sub-command with its arguments."""
    parser = argparse.ArgumentParser(prog="bliss", description="Learn which pretraining sequences help, keep the best, train on them.")
    parser.add_argument("--version", action="version", version=f"bliss {__version__}")
    commands = parser.add_subparsers(dest="name", required=True, metavar="COMMAND")

    ingest = _command(commands, "ingest", ingest_corpus, "Source shards to documents, tokenizer, sequences and validation set.")
    ingest.add_argument("source", nargs="*", help="shards: paths, globs or URIs; none takes the recipe's source")
    ingest.add_argument("--recipe", default="demo")
    ingest.add_argument("--corpus", help="name of the corpus in the lake")
    ingest.add_argument("--validation", help="JSON lines with the text that defines 'good'")
    ingest.add_argument("--tokenizer", help="a Hugging Face tokenizer.json; none trains one on the corpus")
    _add_settings(ingest)

    run = _command(commands, "run", run_recipe, "A recipe from source to report, each method beside the random baseline.")
    run.add_argument("recipe", nargs="?", default="demo")
    run.add_argument("--source", help="C4-format shards instead of the recipe's")
    run.add_argument("--validation", help="JSON lines with the text that defines 'good'")
    run.add_argument("--corpus", help="name of the corpus in the lake")
    run.add_argument("--methods", default=",".join(METHODS), help="selectors or variants, comma-separated; one run each (%(default)s)")
    run.add_argument("--seed", type=int, default=0)
    run.add_argument("--airflow", action="store_true", help="through the Airflow of `bliss up`, with a live display")
    run.add_argument("--start", action="store_true", help="with --airflow: start the stack first when it is not up, and stop it at the end")
    _add_settings(run)

    configure_corpus = _command(commands, "configure-corpus", configure_corpus_only, "Write a corpus's config.json and print its name.")
    configure_corpus.add_argument("recipe")
    _add_settings(configure_corpus)

    configure = _command(commands, "configure", configure_run_only, "Write a run's config.json and print its name.")
    configure.add_argument("recipe")
    configure.add_argument("--method", default="bliss")
    configure.add_argument("--seed", type=int, default=0)
    configure.add_argument("--run-name", "--name", dest="run_name", help="default: <recipe>-<method>-s<seed>")
    configure.add_argument("--compare-with", action="append", default=[], metavar="RUN", help="a run drawn beside this one in its report")
    _add_settings(configure)

    sql = _command(commands, "sql", query, "Ask the published score store, read-only.")
    sql.add_argument("statement", help='for example "select * from domain_scores limit 10"')
    sql.add_argument("--format", choices=("table", "csv", "json", "parquet"), default="table")
    sql.add_argument("--output", help="file to write instead of the terminal")

    up = _command(commands, "up", stack_up, "Start one Ray head and Airflow on this machine (127.0.0.1 only).")
    down = _command(commands, "down", stack_down, "Stop what `bliss up` started.")
    for command in (up, down):
        command.add_argument("--state", default=".bliss", help="directory of pids, logs and Airflow's home (default: %(default)s)")
    run.add_argument("--state", default=".bliss", help="the stack's directory, with --airflow (default: %(default)s)")

    for stage in pipeline.CORPUS_STAGES:
        command = _command(commands, stage.command, _corpus_stage(stage), _first_line(stage))
        command.add_argument("corpus")
        _add_group(command, stage)
    for stage in pipeline.ROUND_STAGES:
        command = _command(commands, stage.command, _round_stage(stage), _first_line(stage))
        command.add_argument("run")
        command.add_argument("--round", type=_round_number, default=1)
        _add_group(command, stage)
    return parser


# ---- commands --------------------------------------------------------------------------------------------------------


def ingest_corpus(arguments: argparse.Namespace) -> int:
    """`bliss ingest`."""
    if len(arguments.source) > 1:
        raise ValueError("give one source: quote a glob so that the shell does not expand it, for example 'data/*.json.gz'")
    lake = Lake.open(arguments.lake)
    source = arguments.source[0] if arguments.source else None
    recipe = _recipe(arguments.recipe, arguments, source=source)
    corpus = configure_corpus(lake, recipe)
    pipeline.ingest(lake, corpus.name, _work())
    return 0


def run_recipe(arguments: argparse.Namespace) -> int:
    """`bliss run`."""
    methods = [method.strip() for method in arguments.methods.split(",") if method.strip()]
    overrides = _overrides(arguments, source=arguments.source)
    if arguments.airflow:
        return _run_in_airflow(arguments, methods, overrides)
    from bliss_ops import report

    lake = Lake.open(arguments.lake)
    for method in methods:  # before hours of work
        check_method(method)
    recipe = load_recipe(arguments.recipe, overrides)
    corpus = configure_corpus(lake, recipe)
    pipeline.ingest(lake, corpus.name, _work())
    runs: list[Run] = []
    for method in methods:
        others = [run.name for run in runs]
        runs.append(configure_run(lake, arguments.recipe, method, arguments.seed, overrides=overrides, compare_with=others))
        for round_number in range(1, recipe.num_rounds + 1):
            pipeline.run_round(lake, runs[-1].name, round_number, _work())
    for run in runs:
        sys.stdout.write(report.headline(run))
    return 0


def _run_in_airflow(arguments: argparse.Namespace, methods: list[str], overrides: dict[str, Any]) -> int:
    from bliss_ops.stack import down, is_up, run_in_airflow, up

    lake, state = Lake.open(arguments.lake), Path(arguments.state)
    started_here = arguments.start and not is_up(state)
    try:
        if started_here:
            up(lake, state)
        return run_in_airflow(arguments.recipe, methods, arguments.seed, overrides, lake, state)
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


def configure_corpus_only(arguments: argparse.Namespace) -> int:
    """`bliss configure-corpus`."""
    corpus = configure_corpus(Lake.open(arguments.lake), _recipe(arguments.recipe, arguments))
    sys.stdout.write(f"{corpus.name}\n")
    return 0


def configure_run_only(arguments: argparse.Namespace) -> int:
    """`bliss configure`."""
    run = configure_run(
        Lake.open(arguments.lake),
        arguments.recipe,
        arguments.method,
        arguments.seed,
        overrides=_overrides(arguments),
        name=arguments.run_name,
        compare_with=arguments.compare_with,
    )
    sys.stdout.write(f"{run.name}\n")
    return 0


def query(arguments: argparse.Namespace) -> int:
    """`bliss sql`."""
    from bliss_ops.sql import run_query

    run_query(Lake.open(arguments.lake), arguments.statement, format=arguments.format, output=arguments.output)
    return 0


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


def _corpus_stage(stage: pipeline.Stage) -> Callable[[argparse.Namespace], int]:
    def command(arguments: argparse.Namespace) -> int:
        stage.do(Lake.open(arguments.lake).corpus(arguments.corpus), work=_work(getattr(arguments, "group", None)))
        return 0

    return command


def _round_stage(stage: pipeline.Stage) -> Callable[[argparse.Namespace], int]:
    def command(arguments: argparse.Namespace) -> int:
        run = Lake.open(arguments.lake).run(arguments.run)
        if arguments.round > run.config.num_rounds:
            raise ValueError(f"round {arguments.round} of {run.name!r} does not exist: num_rounds is {run.config.num_rounds}")
        stage.do(run, arguments.round, _work(getattr(arguments, "group", None)))
        return 0

    return command


# ---- arguments -------------------------------------------------------------------------------------------------------


def _command(commands: Any, name: str, function: Callable[[argparse.Namespace], int], help_text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=help_text, description=help_text)
    command.set_defaults(command=function)
    command.add_argument("--lake", help="root of the lake: a path or s3://... (default: $BLISS_LAKE, else ./lake)")
    command.add_argument("--traceback", action="store_true", help="show the Python traceback of an error")
    return command


def _add_settings(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="override one setting of the recipe; repeatable"
    )


def _add_group(command: argparse.ArgumentParser, stage: pipeline.Stage) -> None:
    if stage.sharded:
        command.add_argument("--group", type=_group, metavar="K/N", help="only group K (from 0) of N groups of shards")


def _group(text: str) -> tuple[int, int]:
    number, _, total = text.partition("/")
    if not (number.isdecimal() and total.isdecimal() and int(number) < int(total)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a group: write K/N with K from 0 to N-1, for example 0/4")
    return int(number), int(total)


def _round_number(text: str) -> int:
    if not (text.isdecimal() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not a round: rounds count from 1")
    return int(text)


def settings(items: Iterable[str]) -> dict[str, Any]:
    """`--set SECTION.FIELD=VALUE`, repeated, as dotted settings; a value is JSON, or else text."""
    values: dict[str, Any] = {}
    for item in items:
        key, separator, value = item.partition("=")
        if not separator:
            raise ValueError(f"--set {item!r}: write SECTION.FIELD=VALUE, for example bilevel.num_steps=300")
        values[key.strip()] = _value(value)
    return values


def _overrides(arguments: argparse.Namespace, source: str | None = None) -> dict[str, Any]:
    """`--set` and the named shortcuts as dotted settings."""
    overrides = settings(arguments.set)
    shortcuts = {"ingest.source": source}
    shortcuts |= {f"ingest.{name}": getattr(arguments, name, None) for name in ("corpus", "tokenizer")}
    validation = getattr(arguments, "validation", None)
    if validation is not None:
        shortcuts |= {"ingest.validation.source": validation, "ingest.validation.name": _label(validation)}
    if source is not None and shortcuts["ingest.corpus"] is None and "ingest.corpus" not in overrides:
        shortcuts["ingest.corpus"] = _label(source)
    overrides = {key: value for key, value in shortcuts.items() if value is not None} | overrides
    for other in overrides.get("ingest.validation.others") or ():
        if isinstance(other, dict) and "source" in other:
            other["source"] = _absolute(other["source"])
    return overrides | {key: _absolute(overrides[key]) for key in ADDRESSES if key in overrides}


def _recipe(name: str, arguments: argparse.Namespace, source: str | None = None) -> Recipe:
    return load_recipe(name, _overrides(arguments, source))


def _absolute(address: Any) -> Any:
    """A local path as seen from everywhere: a Ray job or a task of Airflow has another working directory."""
    is_local = isinstance(address, str) and address and address != EMBEDDED and "://" not in address
    return str(Path(address).absolute()) if is_local else address


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _label(source: str) -> str:
    """A name for a corpus or validation set from its address: the last directory or file without wildcards and endings."""
    parts = [part for part in source.rstrip("/").split("/") if part and not any(c in part for c in "*?[")]
    last = (parts or ["corpus"])[-1].split(".")[0].lower()
    return "".join(c if c.isalnum() else "-" for c in last).strip("-") or "corpus"


def _work(group: tuple[int, int] | None = None) -> pipeline.Work:
    """Inside a Ray job the cluster takes the shards and the training workers; elsewhere this process and its children do."""
    if os.environ.get("RAY_ADDRESS"):
        from bliss_ops.ray.shards import map_on_ray
        from bliss_ops.ray.training import launch_on_ray

        return pipeline.Work(group, map_on_ray, launch_on_ray)
    return pipeline.Work(group)


def _first_line(stage: pipeline.Stage) -> str:
    return (stage.function.__doc__ or "").strip().splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
