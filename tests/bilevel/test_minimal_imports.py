"""Bilevel training runs on a bare GPU machine: torch, transformers, numpy, pyarrow and pydantic, none of the pipeline's packages."""

import subprocess
import sys

ABSENT = ("upath", "duckdb", "ray", "airflow", "rich", "matplotlib", "zstandard")  # fsspec comes with torch

PROGRAM = f"""
import sys

for name in {ABSENT}:
    sys.modules[name] = None  # importing it raises ModuleNotFoundError

import torch
from bliss_ops.bilevel.outer_step import outer_step
from bliss_ops.bilevel.state import Batch, BilevelState, ValidationBatch
from bliss_ops.config import BilevelConfig
from bliss_ops.models import language
from bliss_ops.models.score import ScoreModel
from bliss_ops.training.state import TrainState, adamw

torch.set_num_threads(1)
proxy, backbone = (language.build("tiny-neox-64", vocab_size=64, sequence_length=16, seed=seed) for seed in (0, 1))
score = ScoreModel(backbone)
before = score.head.weight.clone()
state = BilevelState(TrainState(proxy, adamw(proxy, 1e-3, 0.0)), TrainState(score, adamw(score, 1e-3, 0.0)))
ids = torch.randint(0, 64, (6, 16))
outer_step(state, [], Batch(ids[:4], 4), ValidationBatch(ids[4:], ids[4:], torch.full((2,), 0.5)), BilevelConfig())
assert state.step == 1 and not torch.equal(before, score.head.weight)
assert "fsspec" not in sys.modules
"""


def test_an_outer_step_needs_none_of_the_pipelines_packages() -> None:
    finished = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr
