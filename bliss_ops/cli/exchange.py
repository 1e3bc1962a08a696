"""`bliss export`, `bliss import-scores`: selections out, scores in."""

import argparse
import sys
from typing import Any

from bliss_ops.cli.arguments import add_command, round_number
from bliss_ops.lake import Lake


def add_commands(commands: Any) -> None:
    """The commands of this file."""
    export = add_command(commands, "export", export_selection, "Write what a round selected in a form other trainers read.")
    export.add_argument("run")
    export.add_argument("--round", type=round_number, default=1)
    export.add_argument("--format", choices=("jsonl", "parquet", "nanogpt", "megatron"), default="parquet")
    export.add_argument("--output", required=True, help="directory to write: a path or s3://...")
    export.add_argument(
        "--min-share",
        type=float,
        default=0.5,
        help="jsonl, parquet: a document counts when this share of its tokens is selected (%(default)s)",
    )
    export.add_argument("--compression", choices=("zstd", "gzip", "none"), help="of documents (default: zstd for parquet, gzip for jsonl)")
    export.add_argument(
        "--end-pieces", action="store_true", help="nanogpt, megatron: end documents that the selection cuts with end-of-text"
    )
    export.add_argument("--validation-fraction", type=float, default=0.0, help="nanogpt: share of the documents whose tokens go to val.bin")

    scores = add_command(commands, "import-scores", import_scores, "Take in scores made elsewhere as a score run of their own.")
    scores.add_argument(
        "file", help="Parquet with a column of ids and one of scores: a file, a quoted glob or a directory; local or remote"
    )
    scores.add_argument("--corpus", required=True, help="the corpus the ids belong to")
    scores.add_argument("--name", required=True, help="name of the score run")
    scores.add_argument("--id", choices=("sequence_id", "document_id"), default="sequence_id", help="what the ids are of (%(default)s)")
    scores.add_argument("--id-column", help="the column with the ids (default: called as --id says)")
    scores.add_argument("--score-column", default="score", help="the column with the scores; higher is better (%(default)s)")


def export_selection(arguments: argparse.Namespace) -> int:
    """`bliss export`."""
    from bliss_ops.exchange import export

    manifest = export(
        Lake.open(arguments.lake).run(arguments.run),
        arguments.round,
        arguments.output,
        arguments.format,
        min_share=arguments.min_share,
        compression=arguments.compression,
        end_pieces=arguments.end_pieces,
        validation_fraction=arguments.validation_fraction,
    )
    counts = ", ".join(f"{value:,} {name.removeprefix('num_').replace('_', ' ')}" for name, value in sorted(manifest.metrics.items()))
    sys.stdout.write(f"{arguments.output}: {counts}\n")
    return 0


def import_scores(arguments: argparse.Namespace) -> int:
    """`bliss import-scores`."""
    from bliss_ops.exchange import imported

    manifest = imported.import_scores(
        Lake.open(arguments.lake).corpus(arguments.corpus),
        arguments.name,
        arguments.file,
        id_name=arguments.id,
        id_column=arguments.id_column,
        score_column=arguments.score_column,
    )
    metrics = manifest.metrics
    scored, all_of_them = metrics["num_sequences"], metrics["num_candidates"]
    sys.stdout.write(
        f"{manifest.artifact}: {scored:,} of {all_of_them:,} sequences scored ({scored / all_of_them:.1%}), mean {metrics['mean']:.4g}, "
        f"standard deviation {metrics['standard_deviation']:.4g}\n"
    )
    return 0
