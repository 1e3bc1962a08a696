"""The pretraining stage on real Ray Train workers: what one process makes of it, up to rounding; a lost worker leaves no trace."""

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from upath import UPath

from bliss_ops import pipeline
from bliss_ops.models import language
from bliss_ops.ray.training import launch_on_ray
from tests.training import jobs

pytestmark = [
    pytest.mark.skipif(find_spec("pandas") is None, reason="ray.train needs pandas: pip install 'bliss-ops[ray]'"),
    pytest.mark.slow,
]


@pytest.mark.parametrize("sharding", ["replicated", "full"])
def test_two_workers_on_a_cluster_end_where_one_process_ends(inside_ray: None, tmp_path: Path, sharding: str) -> None:
    settings: dict[str, Any] = {"decay_at_steps": [3], "sharding": sharding}
    alone, together = jobs.make_run(tmp_path / "1", **settings), jobs.make_run(tmp_path / "2", compute={"num_workers": 2}, **settings)
    pipeline.pretrain(alone, 1)
    pipeline.pretrain(together, 1, pipeline.Work(launch=launch_on_ray))
    assert jobs.files_of(together).keys() == jobs.files_of(alone).keys()
    for name in ("model/model.safetensors", "branches/step-000003/model/model.safetensors"):
        ours, theirs = (language.read_tensors(run.round(1) / "pretrain" / name) for run in (together, alone))
        for tensor, expected in theirs.items():
            torch.testing.assert_close(ours[tensor], expected, rtol=1e-3, atol=1e-4)  # float32, ten AdamW steps


def test_a_killed_worker_leaves_no_trace(inside_ray: None, tmp_path: Path) -> None:
    for name in ("undisturbed", "killed"):
        (tmp_path / name).mkdir()
    marker = tmp_path / "has-died"
    launch_on_ray(partial(jobs.train, str(tmp_path / "undisturbed"), 6, sharding="full"), 2)
    launch_on_ray(partial(jobs.train_and_die_once, str(tmp_path / "killed"), str(marker), sharding="full"), 2)
    assert marker.exists()
    ours, theirs = (UPath(tmp_path / name / "state.safetensors").read_bytes() for name in ("killed", "undisturbed"))
    assert ours == theirs
