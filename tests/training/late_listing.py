"""Jobs of two workers on a store that shows the second one less than the first: it lists what is new a little later."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from upath import UPath

from bliss_ops.corpus.validation import ValidationRows
from bliss_ops.lake import Lake, names_in
from bliss_ops.models import language
from bliss_ops.training import checkpoints, pretraining
from bliss_ops.training.checkpoints import Checkpoint, checkpoint_path
from bliss_ops.training.influence import Influences
from bliss_ops.training.metrics import StepMetrics
from bliss_ops.training.probing import measured_influences
from bliss_ops.training.state import TrainState, adamw
from bliss_ops.training.workers import ALONE, Workers
from tests.training import jobs

OLDER, NOTHING = "sees the older one", "sees nothing"
LAST_STEP = 6


def write_checkpoints(directory: Path) -> None:
    """Those of steps 2 and 4, as a killed job leaves them."""
    final = UPath(directory / "state.safetensors")
    for step in (2, 4):
        jobs.train(str(directory), step)
        point = checkpoint_path(final, step)
        Path(point.path).parent.mkdir(exist_ok=True)
        shutil.copy(final.path, point.path)
    final.unlink()


def resume_series(root: str) -> None:
    """`train` from the checkpoints of `write_checkpoints`, of which the second worker sees fewer."""
    for case, seen in ((OLDER, ["state-step-000002.safetensors"]), (NOTHING, [])):
        with patch.object(checkpoints, "names_in", names_in if Workers.current().writes else lambda _, seen=seen: seen):
            jobs.train(f"{root}/{case}", LAST_STEP)


def resume_file(root: str) -> None:
    """`Checkpoint.resume` of a file that the second worker does not see; `resumed-0` and `resumed-1` say where they are."""
    workers = Workers.current()
    with hidden("one.safetensors"):
        job = checkpoint(root, 0, workers)
        is_there = job.resume()
    Path(root, f"resumed-{workers.rank}").write_text(f"{is_there} {job.state.step}")


def checkpoint(root: str, step: int, workers: Workers = ALONE) -> Checkpoint:
    model = torch.nn.Linear(4, 3)
    metrics = StepMetrics(UPath(root) / "one.jsonl", "job", LAST_STEP, 1)
    return Checkpoint(UPath(root) / "one.safetensors", TrainState(model, adamw(model, 1e-3, 0.0), step), metrics, 2, LAST_STEP, workers)


def resume_overwritten(root: str) -> None:
    """The file is another job's when the second worker reads it."""
    workers = Workers.current()
    if workers.rank == 1:
        read = language.read_tensors
        with patch.object(checkpoints, "read_tensors", lambda path: read(path) | {"num_steps": torch.tensor(2)}):
            checkpoint(root, 0, workers).resume()
    checkpoint(root, 0, workers).resume()


def probe(directory: str) -> Influences:
    """100 probes are four blocks. Of the last two, which are measured, the second worker sees none, so it would leave block 1 to nobody."""
    torch.set_num_threads(1)
    rows_NT = np.random.default_rng(1).integers(0, jobs.VOCAB, (4, jobs.T))
    model = language.build(jobs.SHAPE, vocab_size=jobs.VOCAB, sequence_length=jobs.T, seed=0)
    probes_MT = np.random.default_rng(2).integers(0, jobs.VOCAB, (100, jobs.T))
    rows, workers = ValidationRows.unweighted(rows_NT, rows_NT), Workers.current()
    with hidden("probed-00002.f64", "probed-00003.f64"):
        state = TrainState(model, adamw(model, 1e-3, 0.0))
        return measured_influences(state, probes_MT, rows, directory=UPath(directory), title="t", section="mates", workers=workers)


def branch(root: str) -> None:
    """A decay branch that is finished, which the second worker does not see."""
    run = Lake.open(root).run("tiny-random-s0")
    with hidden("metrics.jsonl"):
        pretraining.train_target(run, 1, run.round(1) / "pretrain")


def resume_all(root: str) -> None:
    """Everything above that ends well, one after the other: starting workers costs more."""
    resume_series(root)
    resume_file(root)
    probe(f"{root}/probed")
    branch(f"{root}/lake")


@contextmanager
def hidden(*names: str) -> Iterator[None]:
    """Inside, files of these names are not there for the second worker until it opens them."""
    kind = type(UPath("."))
    is_file = kind.is_file
    with patch.object(kind, "is_file", lambda path: (Workers.current().writes or path.name not in names) and is_file(path)):
        yield
