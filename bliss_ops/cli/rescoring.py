"""`bliss rescore`, `pending`, `load-scores`, `land`: corpora scored by models that exist, and new files taken in."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bliss_ops import pipeline
from bliss_ops.cli.arguments import add_command, add_group, add_settings, overrides, round_number, who_works
from bliss_ops.lake import Lake
from bliss_ops.rescoring import Pair

SETTLE_SECONDS = 5.0


def add_commands(commands: Any) -> None:
    """The commands of this file."""
    rescore = add_command(commands, "rescore", rescore_corpus, "Scores of a whole corpus by the score model of a finished round.")
    rescore.add_argument("run")
    rescore.add_argument("--round", type=round_number, help="default: the latest one with a finished fit")
    rescore.add_argument("--corpus", required=True, help="an ingested corpus with the tokenizer and sequence length of the run's own")
    add_group(rescore)

    pending = add_command(commands, "pending", list_pending, "Which corpora have yet to be scored by which score models.")
    pending.add_argument("--corpus", action="append", metavar="CORPUS", help="only this corpus; repeatable (default: all)")
    pending.add_argument(
        "--run", action="append", metavar="RUN", help="by this run's score model; repeatable (default: the newest that fits each corpus)"
    )
    pending.add_argument("--round", type=round_number, help="by an older round's score model instead of the latest")
    pending.add_argument("--format", choices=("table", "json"), default="table")

    load = add_command(commands, "load-scores", load_scores, "Load re-scored or imported scores into the score store.")
    load.add_argument("corpus")
    load.add_argument("name", help="the directory below scores/CORPUS")

    land = add_command(commands, "land", land_files, "Take in what was dropped into a folder or bucket prefix: new files are new corpora.")
    land.add_argument("prefix", help="a folder or s3://bucket/prefix with one folder per corpus")
    land.add_argument("--recipe", help="how new corpora are ingested (default: that of PREFIX/landing.toml, else demo)")
    land.add_argument("--settle-seconds", type=float, default=SETTLE_SECONDS, help="between the two looks (default: %(default)s)")
    land.add_argument("--list-only", action="store_true", help="fix what the new corpora are made of, and ingest nothing")
    land.add_argument("--format", choices=("text", "json"), default="text")
    add_settings(land)


def rescore_corpus(arguments: argparse.Namespace) -> int:
    """`bliss rescore`."""
    from bliss_ops.rescoring import score_model

    lake = Lake.open(arguments.lake)
    run = lake.run(arguments.run)
    number = arguments.round or score_model(run).round_number
    pipeline.rescore(run, number, lake.corpus(arguments.corpus), who_works(arguments.group))
    return 0


def list_pending(arguments: argparse.Namespace) -> int:
    """`bliss pending`."""
    from bliss_ops import rescoring

    pairs = rescoring.pending(Lake.open(arguments.lake), corpora=arguments.corpus, runs=arguments.run, round_number=arguments.round)
    if arguments.format == "json":
        sys.stdout.write(json.dumps([asdict(pair) for pair in pairs]) + "\n")
    else:
        sys.stdout.write(_table(pairs))
    return 0


def load_scores(arguments: argparse.Namespace) -> int:
    """`bliss load-scores`."""
    pipeline.load_scores(Lake.open(arguments.lake).corpus(arguments.corpus), arguments.name)
    return 0


def land_files(arguments: argparse.Namespace) -> int:
    """`bliss land`."""
    from bliss_ops import landing

    lake = Lake.open(arguments.lake)
    found = landing.land(
        lake, arguments.prefix, recipe=arguments.recipe, settings=overrides(arguments), settle_seconds=arguments.settle_seconds
    )
    for part in [] if arguments.list_only else found.parts:
        try:
            landing.ingest(lake, part, who_works())
        except (ValueError, OSError) as error:  # one folder's trouble is not the others'
            found.problems.append(f"corpus {part.corpus}: {error}")
    if arguments.format == "json":
        sys.stdout.write(json.dumps(asdict(found)) + "\n")
        return 0
    for part in found.parts:
        sys.stdout.write(f"{part.corpus}: {part.num_files} files, {part.list_file}\n")
    if found.problems:
        raise ValueError("\n\n".join(["not everything has landed", *found.problems]))
    return 0


def _table(pairs: Sequence[Pair]) -> str:
    lines = [f"{pair.corpus}  {pair.run} round {pair.round}: {_state(pair)}\n" for pair in pairs]
    return "".join(lines) or "nothing to score\n"


def _state(pair: Pair) -> str:
    if pair.reason:
        return f"does not fit: {pair.reason}"
    return f"{pair.num_missing} of {pair.num_shards} shards to score (scores/{pair.corpus}/{pair.name})"
