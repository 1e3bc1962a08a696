"""A run that is ready to be scored, workers that can be stopped in the middle of a shard, and drivers that can be killed."""

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from upath import UPath

from bliss_ops import pipeline, schemas, sharding
from bliss_ops.config import IngestConfig, RunConfig
from bliss_ops.corpus.packing import _sequence_table
from bliss_ops.lake import Lake, Run, shard_file, write_json, write_parquet
from bliss_ops.manifest import Artifact, describe, read_manifest
from bliss_ops.models import language
from bliss_ops.models.score import ScoreModel
from bliss_ops.ray.shards import map_on_ray
from bliss_ops.selectors import bliss
from bliss_ops.sharding import ROWS_PER_SHARD, ShardRecord, Worker

NAME, SHAPE, VOCABULARY, LENGTH = "demo-bliss-s0", "tiny-neox-64", 256, 32
SHARDS, ROWS = range(6), 1500  # a dozen batches each


def make_run(root: Path | str) -> Run:
    """Random tokens and a score model of random weights, with the manifests that `pipeline.score` asks for."""
    lake = Lake.open(root)
    ingest = {"corpus": "random-tokens", "sequence_length": LENGTH, "vocab_size": 512}
    config = RunConfig.model_validate(
        {"name": NAME, "recipe": "demo", "method": "bliss", "ingest": ingest, "proxy": {"shape": SHAPE}, "compute": {"device": "cpu"}}
    )
    run = lake.run(NAME)
    write_json(run.path / "config.json", config.model_dump(mode="json"))
    write_json(run.corpus.path / "config.json", IngestConfig.model_validate(ingest).model_dump(mode="json"))
    packed = Artifact(lake, run.corpus.sequences, stage="pack", identity={})
    packed.begin()
    schema = schemas.sequences(LENGTH, VOCABULARY)
    for shard in SHARDS:
        tokens = np.random.default_rng(shard).integers(0, VOCABULARY, ROWS * LENGTH)
        write_parquet(shard_file(run.corpus.sequences, shard), _sequence_table(tokens, shard * ROWS_PER_SHARD, schema))
    packed.commit([describe(run.corpus.sequences, f"shard-{shard:05d}.parquet", ROWS) for shard in SHARDS], shards=SHARDS)
    model = ScoreModel(language.build(SHAPE, vocab_size=VOCABULARY, sequence_length=LENGTH, seed=0), pooling="next_token")
    torch.nn.init.normal_(model.head.weight, generator=torch.Generator().manual_seed(0))

    def selector(directory: UPath) -> tuple[Sequence[str], dict[str, Any]]:
        language.write_tensors(directory / bliss.MODEL, model.state_dict())
        settings = {"shape": SHAPE, "vocab_size": VOCABULARY, "sequence_length": LENGTH, "device": "cpu"}
        write_json(directory / bliss.SETTINGS, settings | {"head": "linear", "pooling": "next_token", "num_pooling_heads": 4})
        return [bliss.MODEL, bliss.SETTINGS], {}

    Artifact(lake, run.round(1) / "selector", stage="fit", identity={}).produce(selector)
    return run


def hashes(run: Run) -> dict[str, str]:
    """sha256 of every score file; each is what its record in the manifest says."""
    scores = run.round(1) / "scores"
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in scores.glob("*.parquet")}
    manifest = read_manifest(scores, made_by="the test")
    assert found == {output.path: output.sha256 for output in manifest.outputs}
    assert manifest.metrics["num_sequences"] == len(SHARDS) * ROWS
    return found


def on_ray(watched: Path) -> Any:
    """A mapper whose actors leave their process id in `watched` and stop in the middle of a shard while `watched/pause-<shard>` exists."""

    def mapper(make_worker: Callable[[], Worker], shards: Sequence[int], **settings: Any) -> Iterator[ShardRecord]:
        return map_on_ray(partial(watch, make_worker, str(watched)), shards, **settings)

    return mapper


def watch(make_worker: Callable[[], Worker], directory: str) -> Worker:
    watched = Path(directory)
    worker = make_worker()
    (watched / f"pid-{os.getpid()}").touch()

    def work(shard: int) -> ShardRecord:
        pause, outer = watched / f"pause-{shard}", sharding._report.get()
        assert outer is not None

        def report(share: float, num_tokens: int) -> None:
            if pause.exists():
                (watched / f"paused-{shard}-{os.getpid()}").touch()
            while pause.exists():
                time.sleep(0.02)
            outer(share, num_tokens)

        with sharding.reporting_to(report):
            return worker(shard)

    return work


if __name__ == "__main__":  # a driver that may be killed
    from tests.ray import scored  # actors find `watch` under this name

    pipeline.score(Lake.open(sys.argv[1]).run(NAME), 1, pipeline.Work(mapper=scored.on_ray(Path(sys.argv[2]))))
