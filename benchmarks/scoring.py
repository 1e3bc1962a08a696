"""What scoring costs beside the bare forward pass, and beside the loop that most people would write.

    .venv/bin/python benchmarks/scoring.py                                                             # half a minute
    .venv/bin/python benchmarks/scoring.py --shape pythia-31m --sequence-length 1024 --sequences 64    # two minutes on one CPU core

Three ways over the same sequences, in turn in one process:
    forward     the score model on batches that are in memory already, results thrown away: what the device gives
    pipeline    `pipeline.score`, Parquet to Parquet with hashes, records and manifest; the time to load the model is told apart
    map_style   a torch data set and DataLoader over rows in memory, batches of 512, scores to Parquet at the end. Kinder than usual:
                it reads each file at once and makes no row through Python objects. In a process of its own, since the C library's
                memory is set up for our scorer in this one
On a CPU the process is pinned to one core and the clock is its CPU time, which a neighbour on the machine does not disturb; so nothing
that the pipeline does beside the forward pass is hidden by another core. On a GPU the clock is wall time. Model FLOPs are those of the
matrix products and of the causal half of attention; the rate of a square float32 matrix product is measured in between. Ends with one
line of JSON.
"""

import argparse
import json
import logging
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # a bare machine has a copy of the repository, not an installation

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from bliss_ops import pipeline, schemas
from bliss_ops.config import IngestConfig, RunConfig
from bliss_ops.corpus.packing import _TOKENS, _sequence_table
from bliss_ops.corpus.parquet import parquet_file
from bliss_ops.corpus.reading import iter_shard
from bliss_ops.lake import Corpus, Lake, Run, shard_file, write_json
from bliss_ops.manifest import Artifact, describe
from bliss_ops.models import language
from bliss_ops.models.score import ScoreModel
from bliss_ops.models.scorer import ModelScorer
from bliss_ops.models.shapes import shape
from bliss_ops.selectors import bliss
from bliss_ops.sharding import ROWS_PER_SHARD, ShardRecord, map_locally
from bliss_ops.training.device import autocast

MAP_STYLE_BATCH = 512
MATRIX = 2048
VOCABULARY = 2048  # of tiny shapes
NUM_SHARDS = 4


def main() -> None:
    arguments = parse_arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        torch.set_num_threads(1)
    logging.getLogger("bliss_ops").setLevel(logging.WARNING)
    if arguments.map_style_of:
        run = Lake.open(arguments.map_style_of).run("benchmark")
        scorer, files = load_scorer(run), [shard_file(run.corpus.sequences, shard) for shard in range(NUM_SHARDS)]
        map_style(scorer, files[:1], Path(arguments.map_style_of) / "map-style.parquet")  # once for nothing
        print(json.dumps(timed(device, lambda: map_style(scorer, files, Path(arguments.map_style_of) / "map-style.parquet"))))
        return
    with tempfile.TemporaryDirectory(prefix="bliss-benchmark-") as directory:
        run = make_run(Path(directory), arguments)
        scorer = load_scorer(run)
        batch_sequences = scorer.prepare(arguments.batch_sequences, arguments.sequence_length, run.config.compute)
        files = [shard_file(run.corpus.sequences, shard) for shard in range(NUM_SHARDS)]
        batches = [torch.from_numpy(tokens) for file in files for _, tokens in iter_shard(file, batch_sequences)]
        num_tokens = sum(batch.numel() for batch in batches)

        ways: dict[str, Callable[[], dict[str, float]]] = {
            "forward": lambda: timed(device, lambda: forward(scorer, batches)),
            "pipeline": lambda: end_to_end(device, run),
            "map_style": lambda: in_own_process(run),
        }
        for name in ("forward", "pipeline"):
            ways[name]()  # once for nothing: imports, allocations, kernels
        found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
        gigaflops = []
        for repetition in range(arguments.repetitions):
            for name, way in ways.items():
                found[name].append(way())
                print(f"{repetition} {name:10} {num_tokens / found[name][-1]['seconds']:12,.0f} tok/s")
            gigaflops.append(matmul_gigaflops(device))
        assert_same_scores(run, scorer, batches, device)

    seconds = {name: [one["seconds"] for one in runs] for name, runs in found.items()}
    rate = {name: num_tokens / statistics.median(values) for name, values in seconds.items()}
    flops = flops_per_token(arguments.shape, arguments.sequence_length)
    loading = statistics.median(one["loading_seconds"] for one in found["pipeline"])
    matmul = statistics.median(gigaflops)
    result = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu, one core",
        "shape": arguments.shape,
        "sequence_length": arguments.sequence_length,
        "num_tokens": num_tokens,
        "batch_sequences": batch_sequences,
        "fraction_of_forward": round(paired(seconds["forward"], seconds["pipeline"]), 3),
        "speedup_vs_map_style": round(paired(seconds["map_style"], seconds["pipeline"]), 2),
        **{f"{name}_tokens_per_second": round(value) for name, value in rate.items()},
        "loading_seconds": round(loading, 2),
        "model_gigaflops": round(rate["pipeline"] * flops / 1e9, 1),
        "matmul_gigaflops": round(matmul, 1),
        "share_of_matmul_rate": round(rate["pipeline"] * flops / 1e9 / matmul, 3),
    }
    print(json.dumps(result))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="tiny-neox-64")
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--sequences", type=int, default=4096, help="in all, over four shards")
    parser.add_argument("--batch-sequences", type=int, help="found automatically unless given")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="torch.compile the score model")
    parser.add_argument("--map-style-of", metavar="LAKE", help=argparse.SUPPRESS)
    return parser.parse_args()


def make_run(root: Path, arguments: argparse.Namespace) -> Run:
    """A lake with random sequences and a score model whose head is not zero."""
    lake = Lake.open(root / "lake")
    vocab_size = shape(arguments.shape).vocab_size or VOCABULARY
    ingest = {"corpus": "random-tokens", "sequence_length": arguments.sequence_length, "vocab_size": VOCABULARY}
    config = RunConfig.model_validate(
        {"name": "benchmark", "recipe": "benchmark", "method": "bliss", "ingest": ingest, "proxy": {"shape": arguments.shape}}
        | {"scoring": {"batch_sequences": arguments.batch_sequences}, "compute": {"compile": arguments.compile}}
    )
    run = lake.run(config.name)
    write_json(run.path / "config.json", config.model_dump(mode="json"))
    write_json(run.corpus.path / "config.json", IngestConfig.model_validate(ingest).model_dump(mode="json"))
    make_sequences(run.corpus, vocab_size, arguments.sequences // NUM_SHARDS)
    model = ScoreModel(
        language.build(arguments.shape, vocab_size=vocab_size, sequence_length=arguments.sequence_length, seed=0),
        config.bilevel.score_head,
        pooling=config.bilevel.score_pooling,
        num_heads=config.bilevel.num_pooling_heads,
    )
    torch.nn.init.normal_(model.head.weight, std=0.1, generator=torch.Generator().manual_seed(0))

    def selector(directory: Any) -> tuple[Sequence[str], dict[str, Any]]:
        language.write_tensors(directory / bliss.MODEL, model.state_dict())
        settings = {"shape": arguments.shape, "vocab_size": vocab_size, "sequence_length": arguments.sequence_length, "device": "auto"}
        settings |= {"head": config.bilevel.score_head, "pooling": config.bilevel.score_pooling}
        write_json(directory / bliss.SETTINGS, settings | {"num_pooling_heads": config.bilevel.num_pooling_heads})
        return [bliss.MODEL, bliss.SETTINGS], {}

    Artifact(lake, run.round(1) / "selector", stage="fit", identity={}).produce(selector)
    return run


def make_sequences(corpus: Corpus, vocab_size: int, num_sequences: int) -> None:
    """Parquet as `pack` writes it."""
    length, group = corpus.config.sequence_length, schemas.SEQUENCES_PER_ROW_GROUP
    schema = schemas.sequences(length, vocab_size)
    artifact = Artifact(corpus.lake, corpus.sequences, stage="pack", identity={})
    artifact.begin()
    for shard in range(NUM_SHARDS):
        tokens = np.random.default_rng(shard).integers(0, vocab_size, num_sequences * length)
        with parquet_file(shard_file(corpus.sequences, shard), schema, tokens=_TOKENS) as file:
            for first in range(0, num_sequences, group):
                rows = tokens[first * length : (first + group) * length]
                file.write_table(_sequence_table(rows, shard * ROWS_PER_SHARD + first, schema))
    names = [shard_file(corpus.sequences, shard).name for shard in range(NUM_SHARDS)]
    artifact.commit([describe(corpus.sequences, name, num_sequences) for name in names], shards=range(NUM_SHARDS))


def forward(scorer: ModelScorer, batches: list[torch.Tensor]) -> None:
    with torch.inference_mode(), autocast(scorer.device):
        for batch in batches:
            scorer.model(batch.to(scorer.device))


def end_to_end(device: torch.device, run: Run) -> dict[str, float]:
    """The real stage; what it takes to make the worker is measured apart."""
    shutil.rmtree(run.round(1) / "scores", ignore_errors=True)
    loading: dict[str, float] = {}

    def mapper(make_worker: Any, shards: Sequence[int], **kwargs: Any) -> Iterator[ShardRecord]:
        made: list[Any] = []
        loading.update(timed(device, lambda: made.append(make_worker())))
        return map_locally(lambda: made[0], shards, **kwargs)

    whole = timed(device, lambda: pipeline.score(run, 1, pipeline.Work(mapper=mapper)))
    return {"seconds": whole["seconds"] - loading["seconds"], "loading_seconds": loading["seconds"]}


def load_scorer(run: Run) -> ModelScorer:
    scorer = bliss.load_scorer(run.round(1) / "selector")
    assert isinstance(scorer, ModelScorer)
    return scorer


def in_own_process(run: Run) -> dict[str, float]:
    command = [sys.executable, __file__, "--map-style-of", str(run.lake.root)]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return dict(json.loads(lines[-1]))


class Rows(torch.utils.data.Dataset[Any]):
    """Every row of the files by number."""

    def __init__(self, files: Sequence[Any]) -> None:
        tables = [pq.read_table(str(file)) for file in files]
        self.ids = np.concatenate([table["sequence_id"].to_numpy() for table in tables])
        width = tables[0].schema.field("input_ids").type.list_size
        self.tokens = np.concatenate(
            [chunk.flatten().to_numpy().reshape(-1, width) for table in tables for chunk in table["input_ids"].chunks]
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> tuple[int, torch.Tensor]:
        return int(self.ids[row]), torch.from_numpy(self.tokens[row].astype(np.int64))


@torch.no_grad()
def map_style(scorer: ModelScorer, files: Sequence[Any], path: Path) -> None:
    ids: list[int] = []
    scores: list[float] = []
    for sequence_ids, input_ids in torch.utils.data.DataLoader(Rows(files), batch_size=MAP_STYLE_BATCH):
        with autocast(scorer.device):
            scores += scorer.model(input_ids.to(scorer.device)).float().cpu().tolist()
        ids += sequence_ids.tolist()
    pq.write_table(pa.table({"sequence_id": ids, "score": pa.array(scores, pa.float32())}), path)


def timed(device: torch.device, work: Callable[[], Any]) -> dict[str, float]:
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    synchronise = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronise()
    begun = clock()
    work()
    synchronise()
    return {"seconds": clock() - begun}


def paired(numerators: list[float], denominators: list[float]) -> float:
    """Median ratio of what ran one after the other."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def matmul_gigaflops(device: torch.device) -> float:
    matrix = torch.randn(MATRIX, MATRIX, device=device)
    with autocast(device):
        matrix @ matrix
        seconds = timed(device, lambda: [matrix @ matrix for _ in range(4)])["seconds"]
    return 4 * 2 * MATRIX**3 / seconds / 1e9


def flops_per_token(name: str, sequence_length: int) -> float:
    """Of a forward pass without output matrix: two per weight of a matrix product, and 2 T D a layer for the causal half of attention."""
    sizes = shape(name)
    attention, feed_forward = 4 * sizes.hidden_size**2, (3 if sizes.family == "llama" else 2) * sizes.hidden_size * sizes.intermediate_size
    return sizes.num_layers * (2 * (attention + feed_forward) + 2 * sequence_length * sizes.hidden_size)


def assert_same_scores(run: Run, scorer: ModelScorer, batches: list[torch.Tensor], device: torch.device) -> None:
    """The pipeline's files hold what the bare forward pass gives: to the bit on a CPU."""
    with torch.inference_mode(), autocast(device):
        expected = torch.cat([scorer.model(batch.to(device)).float().cpu() for batch in batches]).numpy()
    files = [shard_file(run.round(1) / "scores", shard) for shard in range(NUM_SHARDS)]
    found = np.concatenate([pq.read_table(str(file))["score"].to_numpy() for file in files])
    np.testing.assert_allclose(found, expected, rtol=0, atol=0 if device.type == "cpu" else 1e-2)


if __name__ == "__main__":
    main()
