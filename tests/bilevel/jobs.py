"""A small bilevel training job that the workers of a test, here or on Ray, import by name."""

import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from upath import UPath

from bliss_ops import schemas
from bliss_ops.bilevel.state import BilevelState
from bliss_ops.bilevel.training import train_score_model
from bliss_ops.config import BilevelConfig, ComputeConfig
from bliss_ops.corpus.reading import SequenceReader
from bliss_ops.corpus.validation import IGNORED, ValidationRows
from bliss_ops.lake import write_bytes, write_parquet
from bliss_ops.models import language
from bliss_ops.models.score import ScoreModel
from bliss_ops.training.device import choose_device
from bliss_ops.training.metrics import StepMetrics
from bliss_ops.training.state import TrainState, adamw
from bliss_ops.training.workers import Workers

T, V, NUM_CANDIDATES, NUM_GUIDE = 16, 64, 96, 20
SETTINGS = {
    "num_steps": 2,
    "batch_sequences": 8,
    "validation_batch_sequences": 6,
    "num_probes": 16,
    "probe_every_steps": 100,
    "checkpoint_every_steps": 2,
}
MODEL = "score_model.safetensors"


class DyingMetrics(StepMetrics):
    """Metrics whose process comes to harm after a step: it is killed (but once, as the file `only_once` says) or says it waits to be."""

    die_at: int | None = None
    pause_at: int | None = None
    pid_file: UPath
    only_once: Path | None = None

    def line(self, step: int, **values: float) -> None:
        super().line(step, **values)
        if step == self.pause_at:
            write_bytes(self.pid_file, str(os.getpid()).encode())
            time.sleep(600)
        if step == self.die_at and (self.only_once is None or not self.only_once.exists()):
            if self.only_once is not None:
                self.only_once.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def train(
    directory: str,
    settings: dict[str, Any],
    *,
    double: bool = False,
    die_at: int | None = None,
    dying_rank: int = 1,
    only_once: str | None = None,
    pause_at: int | None = None,
) -> None:
    """Train into `directory`; afterwards `score_model.safetensors` and `state.safetensors` are there."""
    workers, device = Workers.current(), choose_device(ComputeConfig(device="cpu", num_threads=1))
    config, here = BilevelConfig.model_validate(SETTINGS | settings), UPath(directory)
    metrics = DyingMetrics(here / "metrics.jsonl", "job", config.num_steps, config.batch_sequences * T)
    metrics.pause_at, metrics.pid_file = pause_at, here / f"pid-{workers.rank}"
    if workers.rank == dying_rank % workers.count:
        metrics.die_at, metrics.only_once = die_at, Path(only_once) if only_once else None
    state = new_state(config, double=double)
    train_score_model(state, candidates(here), guide(), config, seed=0, device=device, directory=here, metrics=metrics, workers=workers)
    if workers.writes:
        language.write_tensors(here / MODEL, state.score.model.state_dict())
    workers.barrier()


def train_all(root: str, cases: dict[str, dict[str, Any]], *, double: tuple[str, ...] = ()) -> None:
    """Every case in a directory of its own, those of `double` in float64: starting workers costs more than these jobs."""
    for name, settings in cases.items():
        train(f"{root}/{name}", settings, double=name in double)


def refuse(rank: int, message: str) -> None:
    """One worker finds something wrong while the others wait for it."""
    workers = Workers.current()
    if workers.rank == rank:
        raise ValueError(message)
    workers.barrier()


def write_candidates(directory: Path) -> None:
    """The candidate window: random tokens, of which every worker reads the same file."""
    tokens = np.random.default_rng(0).integers(0, V, (NUM_CANDIDATES, T))
    schema = schemas.sequences(T, V)
    columns = {"sequence_id": np.arange(NUM_CANDIDATES), "input_ids": pa.array(tokens.tolist(), schema.field("input_ids").type)}
    write_parquet(UPath(directory) / "candidates.parquet", pa.table(columns, schema=schema))


def candidates(directory: UPath) -> SequenceReader:
    """The window written beside the directories of the jobs."""
    return SequenceReader([directory.parent / "candidates.parquet"])


def guide() -> ValidationRows:
    """Validation rows of different lengths."""
    generator = np.random.default_rng(1)
    input_ids_NT = generator.integers(0, V, (NUM_GUIDE, T))
    labels_NT = input_ids_NT.copy()
    for row, length in zip(labels_NT, generator.integers(4, T + 1, NUM_GUIDE), strict=True):
        row[length:] = IGNORED
    return ValidationRows.unweighted(input_ids_NT, labels_NT)


def new_state(config: BilevelConfig, *, double: bool = False) -> BilevelState:
    """Tiny models of fixed seeds, with a head that is not zero, so that scores and weights differ from the start."""
    build = partial(language.build, "tiny-neox-64", vocab_size=V, sequence_length=T)
    proxy, reference = build(seed=1), build(seed=2)
    score = ScoreModel(build(seed=3), config.score_head, pooling=config.score_pooling, num_heads=config.num_pooling_heads)
    torch.nn.init.normal_(score.head.weight, std=0.3, generator=torch.Generator().manual_seed(4))
    if double:
        proxy, reference, score = proxy.double(), reference.double(), score.double()
    return BilevelState(
        proxy=TrainState(proxy, adamw(proxy, config.proxy_learning_rate, 0.0)),
        score=TrainState(score, adamw(score, config.score_learning_rate, 0.0)),
        reference=reference.eval().requires_grad_(False) if config.kl_weight else None,
    )
