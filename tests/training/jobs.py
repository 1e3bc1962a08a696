"""Small pretraining jobs that the processes of a test import by name, and ways for them to come to harm."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from upath import UPath

from bliss_ops import pipeline, schemas
from bliss_ops.config import IngestConfig, RunConfig
from bliss_ops.lake import Lake, Run, atomic_file, shard_file, write_json, write_parquet
from bliss_ops.launching import launch_here
from bliss_ops.manifest import read_manifest
from bliss_ops.models import language
from bliss_ops.sharding import ROWS_PER_SHARD
from bliss_ops.training import checkpoints, parallel
from bliss_ops.training.loop import train_resumably
from bliss_ops.training.metrics import StepMetrics
from bliss_ops.training.schedules import warmup_stable
from bliss_ops.training.state import TrainState, adamw
from bliss_ops.training.workers import Workers
from tests.lakes import produce

T, VOCAB, ROWS, SHAPE = 16, 64, 40, "tiny-neox-64"
PRETRAINING = {
    "num_steps": 6,
    "batch_sequences": 6,
    "micro_batch_sequences": 4,
    "learning_rate": 3e-3,
    "warmup_steps": 3,
    "decay_steps": 2,
    "evaluate_every_steps": 2,
    "checkpoint_every_steps": 2,
}


# ---- the whole stage, in a lake ---------------------------------------------------------------------------------------


def make_run(root: Path, *, compute: dict[str, Any] | None = None, **pretraining: Any) -> Run:
    """A run with corpus, warmed-up target (two steps) and the subset of its first round."""
    lake = Lake.open(root)
    corpus = lake.corpus("tiny")
    ingest = IngestConfig(corpus="tiny", source="made for tests", sequence_length=T, vocab_size=512)
    write_json(corpus.path / "config.json", ingest.model_dump())
    tokenizer = produce(lake, corpus.tokenizer, "train_tokenizer", lambda _: ([], {"vocab_size": VOCAB}))
    sequences = produce(lake, corpus.sequences, "pack", _write_sequences, shards=(0, 1), inputs=[tokenizer])
    produce(lake, corpus.validation, "prepare_validation", _write_validation)
    config = {
        "name": "tiny-random-s0",
        "recipe": "tiny",
        "method": "random",
        "ingest": {"corpus": "tiny", "sequence_length": T, "vocab_size": 512},
        "target": {"shape": SHAPE, "warmup_steps": 2},
        "pretraining": PRETRAINING | pretraining,
        "compute": {"num_threads": 1, "device": "cpu"} | (compute or {}),
    }
    run = lake.run("tiny-random-s0")
    write_json(run.path / "config.json", RunConfig.model_validate(config).model_dump(mode="json"))
    pipeline.warm_up(run)
    produce(lake, run.round(1) / "subset", "materialize", _write_sequences, shards=(0, 1), inputs=[sequences])
    return run


def pretrain(root: str) -> None:
    """The stage, in a process of its own."""
    pipeline.pretrain(Lake.open(root).run("tiny-random-s0"), 1)


def files_of(run: Run) -> dict[str, bytes]:
    """Every file of the round's pretraining that its manifest lists."""
    here = run.round(1) / "pretrain"
    return {output.path: (here / output.path).read_bytes() for output in read_manifest(here, made_by="the test").outputs}


def _write_sequences(directory: UPath) -> tuple[list[str], dict[str, Any]]:
    generator, schema, files = np.random.default_rng(0), schemas.sequences(T, VOCAB), []
    for shard in (0, 1):
        tokens = generator.integers(0, VOCAB, (ROWS, T)) // 4 * 4
        columns = {"sequence_id": shard * ROWS_PER_SHARD + np.arange(ROWS), "input_ids": pa.array(tokens.tolist(), schema.field(1).type)}
        write_parquet(shard_file(directory, shard), pa.table(columns, schema=schema))
        files.append(shard_file(directory, shard).name)
    return files, {"num_sequences": 2 * ROWS}


def _write_validation(directory: UPath) -> tuple[list[str], dict[str, Any]]:
    rows, schema = np.random.default_rng(1).integers(0, VOCAB, (9, T)) // 4 * 4, schemas.validation(T)
    columns = {name: pa.array(rows.tolist(), schema.field(name).type) for name in ("input_ids", "labels")}
    for part in ("guide", "holdout"):
        write_parquet(directory / f"{part}.parquet", pa.table(columns, schema=schema))
    return ["guide.parquet", "holdout.parquet"], {}


# ---- the loop alone, in any number of workers -------------------------------------------------------------------------


def batch_of(step: int, num_sequences: int = 7) -> np.ndarray:
    return np.random.default_rng(step).integers(0, VOCAB, (num_sequences, T))


def train(
    directory: str,
    last_step: int = 4,
    *,
    sharding: str = "replicated",
    checkpointing: bool = False,
    sequences: int = 7,
    micro: int = 2,
    clip: float = 0.5,
) -> None:
    """Train a model in float64 into `directory`, alone or as one of several workers; goes on from what is there."""
    torch.set_num_threads(1)
    workers, here = Workers.current(), UPath(directory)
    model = language.build(SHAPE, vocab_size=VOCAB, sequence_length=T, seed=0).double()
    how = parallel.choose_sharding(sharding, 1, torch.device("cpu"), workers)  # type: ignore[arg-type]
    objective = parallel.spread(model, torch.device("cpu"), workers, sharding=how, activation_checkpointing=checkpointing)
    train_resumably(
        TrainState(model, adamw(model, 1e-3, 0.1), objective=objective),
        partial(batch_of, num_sequences=sequences),
        last_step,
        here / "state.safetensors",
        checkpoint_every_steps=2,
        learning_rate=lambda step: warmup_stable(step, peak=3e-3, warmup_steps=3),
        micro_batch_sequences=micro,
        max_gradient_norm=clip,
        metrics=StepMetrics(here / "metrics.jsonl", "job", last_step, sequences * T),
        workers=workers,
    )


def train_all(root: str, cases: dict[str, dict[str, Any]]) -> None:
    """Every case in a directory of its own: starting workers costs more than these jobs."""
    for name, settings in cases.items():
        train(f"{root}/{name}", **settings)


def launch_all(root: str, cases: dict[str, dict[str, Any]], num_workers: int) -> None:
    launch_here(partial(train_all, root, cases), num_workers)


# ---- harm --------------------------------------------------------------------------------------------------------------


def die(job: Callable[[], None], *, after_step: int | None = None, branch: int | None = None, while_writing: str | None = None) -> None:
    """Run `job` in a process that kills itself after a step (of a branch), or half-way through writing the tensors of a file."""
    started = multiprocessing.get_context("forkserver")
    started.set_forkserver_preload([__name__])  # torch and transformers are imported once for all processes
    process = started.Process(target=_doomed, args=(job, after_step, branch, while_writing))
    process.start()
    process.join(timeout=240)
    assert process.exitcode == -signal.SIGKILL, process.exitcode


def _doomed(job: Callable[[], None], after_step: int | None, branch: int | None, while_writing: str | None) -> None:
    line, write = StepMetrics.line, checkpoints.write_tensors

    def dying_line(metrics: StepMetrics, step: int, **values: float) -> None:
        line(metrics, step, **values)
        if step == after_step and metrics.branch == branch:
            os.kill(os.getpid(), signal.SIGKILL)

    def dying_write(path: UPath, tensors: dict[str, torch.Tensor]) -> None:
        if path.name == while_writing:
            with atomic_file(path) as file:
                file.write_bytes(b"half of a checkpoint")
                os.kill(os.getpid(), signal.SIGKILL)
        write(path, tensors)

    StepMetrics.line = dying_line  # type: ignore[method-assign]
    checkpoints.write_tensors = dying_write  # type: ignore[assignment]
    language.write_tensors = dying_write  # type: ignore[assignment]
    torch.set_num_threads(1)
    job()


def train_and_die_once(directory: str, marker: str, *, sharding: str) -> None:
    """`train` to step 6, of which the second worker is killed after step 5 the first time."""
    line = StepMetrics.line

    def dying_line(metrics: StepMetrics, step: int, **values: float) -> None:
        line(metrics, step, **values)
        if step == 5 and Workers.current().rank == 1 and not Path(marker).exists():
            Path(marker).touch()
            os.kill(os.getpid(), signal.SIGKILL)

    StepMetrics.line = dying_line  # type: ignore[method-assign]
    try:
        train(directory, 6, sharding=sharding)
    finally:
        StepMetrics.line = line  # type: ignore[method-assign]
