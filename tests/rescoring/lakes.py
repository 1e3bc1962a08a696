"""A real lake of tiny corpora and real, quick score models: hashed n-grams, no neural network."""

import shutil
from pathlib import Path
from typing import Any

from bliss_ops import pipeline
from bliss_ops.cli import main
from bliss_ops.configure import configure_run
from bliss_ops.lake import Lake, Run
from tests.corpus.corpora import rows, write_gz
from tests.lakes import produce

T = 32
RUN = "smoke-dsir-s0"
SMALL = {"ingest.sequence_length": T, "ingest.vocab_size": 512, "dsir.num_buckets": 64, "dsir.sampling": "top_k"}


def write_shards(directory: Path, num_shards: int = 3, *, start: int = 0, documents: int = 8) -> Path:
    for shard in range(num_shards):
        write_gz(directory / f"part-{shard:05d}.json.gz", rows(documents, start=start + shard * documents))
    return directory


def ingest(lake: Lake, name: str, source: Path, *arguments: str, validation: Path | None = None) -> None:
    """`bliss ingest`, with a validation set where one is given."""
    chosen = ["--validation", str(validation)] if validation else ["--set", "ingest.validation.source=none"]
    command = ["ingest", str(source), "--recipe", "smoke", "--corpus", name, "--lake", str(lake.root), *chosen, *arguments]
    assert main(command) == 0


def fit(lake: Lake, method: str = "dsir", *, seed: int = 0, corpus: str = "own", num_rounds: int = 1, **settings: Any) -> Run:
    """A run of `corpus` whose rounds have a fitted selector; what a model would have learnt before is a file of bytes."""
    overrides = {"ingest.corpus": corpus, "num_rounds": num_rounds, "window_shards": 1, **SMALL, **settings}
    run = configure_run(lake, "smoke", method, seed, overrides=overrides)
    produce(lake, run.warmup, "warm_up", lambda directory: ([], {}))
    for number in range(1, num_rounds + 1):
        pipeline.fit(run, number)
        produce(lake, run.round(number) / "pretrain", "pretrain", lambda directory: ([], {}))
    return run


def forget(lake: Lake, name: str) -> None:
    """Delete a corpus and its validation set."""
    shutil.rmtree(lake.corpus(name).validation)
    shutil.rmtree(lake.corpus(name).path)


def tokenizer_of(lake: Lake, corpus: str = "own") -> list[str]:
    """The arguments of `bliss ingest` that make a corpus fit."""
    return ["--tokenizer", str(lake.corpus(corpus).tokenizer / "tokenizer.json"), "--set", f"ingest.sequence_length={T}"]
