"""Does the score follow the validation set? The same candidates, two validation sets that ask for opposite things.

    .venv/bin/python benchmarks/opposite_validation.py --source 'corpora/*.json.gz' --validation lambada.jsonl \\
        --opposite corpora/pile-dm-mathematics.json.gz --near books,speeches --far pile-dm-mathematics

One fit and one scoring for each set, from the same initial weights; nothing is pretrained. Where the opposite set is a shard of C4
format, its last documents become the validation set and leave the candidates. Ends with one line of JSON: the Spearman correlation of
the two score vectors, and the AUC of near over far sources under either set, which should lie on two sides of one half.
"""

import argparse
import gzip
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from selection_quality import auc, names, spearman

from bliss_ops import pipeline
from bliss_ops.cli.arguments import settings
from bliss_ops.configure import configure_corpus, configure_run
from bliss_ops.corpus.source import expand
from bliss_ops.lake import Lake, Run, shard_file
from bliss_ops.manifest import read_manifest
from bliss_ops.rank_correlation import midranks
from bliss_ops.recipes import load_recipe
from bliss_ops.sharding import ROWS_PER_SHARD


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="small")
    parser.add_argument("--method", default="bliss")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--source", required=True, help="C4-format shards: the candidates")
    parser.add_argument("--validation", required=True, help="JSON lines with a `text` key")
    parser.add_argument("--opposite", required=True, help="JSON lines that ask for the opposite, or a .json.gz shard to take some from")
    parser.add_argument("--held-out", type=int, default=300, help="documents taken from an opposite shard (default: %(default)s)")
    parser.add_argument("--near", default="books,speeches,movie-reviews,openwebtext", help="sources like the first set")
    parser.add_argument("--far", default="pile-dm-mathematics", help="sources like the opposite set")
    parser.add_argument("--lake", help="a lake to keep; none uses a temporary one")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="a setting of both fits; repeatable")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bliss-opposite-") as scratch:
        root = Path(arguments.lake or scratch).absolute()
        source, opposite = arguments.source, arguments.opposite
        if opposite.endswith(".json.gz"):
            source, opposite = hold_out(opposite, source, arguments.held_out, root / "opposite-validation")
        sets = {"first": arguments.validation, "opposite": opposite}
        runs = {name: score(Lake.open(root), arguments, source, name, validation) for name, validation in sets.items()}
        scores = {name: read_scores(run) for name, run in runs.items()}
        source_of = read_sources(runs["first"])
    ids_N = np.array(sorted(scores["first"].keys() & scores["opposite"].keys()))
    source_N = np.array([source_of[number] for number in (ids_N // ROWS_PER_SHARD).tolist()])
    vectors = {name: np.array([values[i] for i in ids_N.tolist()]) for name, values in scores.items()}
    near_N, far_N = (np.isin(source_N, names(listed)) for listed in (arguments.near, arguments.far))
    separation = {name: auc(score_N[near_N], score_N[far_N]) for name, score_N in vectors.items()}
    ranks = {name: midranks(score_N) / len(ids_N) for name, score_N in vectors.items()}
    mean_rank = {label: {name: float(ranks[name][source_N == label].mean()) for name in ranks} for label in sorted(set(source_N.tolist()))}
    print(f"\n{'mean rank of the scores (1 is best)':40s}{'first':>10s}{'opposite':>10s}")
    for label, values in sorted(mean_rank.items(), key=lambda item: -item[1]["first"]):
        print(f"{label:40s}{values['first']:10.3f}{values['opposite']:10.3f}")
    result = {
        "method": arguments.method,
        "seed": arguments.seed,
        "num_sequences": len(ids_N),
        "spearman": spearman(vectors["first"], vectors["opposite"]),
        "auc": separation,
        "mean_rank": mean_rank,
    }
    print(f"\nAUC of {arguments.near} over {arguments.far}: {separation['first']:.3f} and {separation['opposite']:.3f}\n")
    print(json.dumps(result))
    return 0


def hold_out(shard: str, source: str, num_documents: int, directory: Path) -> tuple[str, str]:
    """Split the last documents off `shard`: (a glob of the candidates without them, JSON lines with them).

    Raises:
        ValueError: the shard does not have that many documents and some to spare.
    """
    with gzip.open(shard, "rt", encoding="utf-8") as stream:
        lines = stream.readlines()
    if len(lines) <= num_documents:
        raise ValueError(f"{shard} has {len(lines)} documents, so --held-out {num_documents} leaves no candidate: lower it")
    candidates = directory / "candidates"
    candidates.mkdir(parents=True, exist_ok=True)
    for file in map(Path, expand(source)):
        link = candidates / file.name
        link.unlink(missing_ok=True)
        if file.resolve() == Path(shard).resolve():
            link.write_bytes(gzip.compress("".join(lines[:-num_documents]).encode(), mtime=0))
        else:
            link.symlink_to(file.resolve())
    validation = directory / f"{Path(shard).name.removesuffix('.json.gz')}.jsonl"
    validation.write_text("".join(lines[-num_documents:]), encoding="utf-8")
    return str(candidates / "*"), str(validation)


def score(lake: Lake, arguments: argparse.Namespace, source: str, name: str, validation: str) -> Run:
    """Ingest, warm up, fit and score with one validation set; each has a corpus of its own, made of the same shards."""
    addresses = {"ingest.source": source, "ingest.validation.source": str(Path(validation).absolute())}
    labels = {"ingest.corpus": f"with-{name}-validation", "ingest.validation.name": name, "num_rounds": 1}
    overrides = settings(arguments.set) | addresses | labels
    corpus = configure_corpus(lake, load_recipe(arguments.recipe, overrides))
    pipeline.ingest(lake, corpus.name)
    run_name = f"{name}-{arguments.method}-s{arguments.seed}"
    run = configure_run(lake, arguments.recipe, arguments.method, arguments.seed, overrides=overrides, name=run_name)
    pipeline.warm_up(run)
    pipeline.fit(run, 1)
    pipeline.score(run, 1)
    return run


def read_scores(run: Run) -> dict[int, float]:
    """Score of every candidate sequence by its id."""
    directory = run.round(1) / "scores"
    shards: Sequence[int] = read_manifest(directory, made_by="bliss score").shards
    tables = [pq.read_table(shard_file(directory, shard).path) for shard in shards]
    return {i: value for table in tables for i, value in zip(*(table[name].to_pylist() for name in ("sequence_id", "score")), strict=True)}


def read_sources(run: Run) -> dict[int, str]:
    """The source label of every shard."""
    return {entry["shard"]: entry["source"] for entry in json.loads((run.corpus.source / "shards.json").read_text())}


if __name__ == "__main__":
    sys.exit(main())
