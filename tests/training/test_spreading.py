"""One training job over several workers: replicated or sharded, evenly divided or not, it ends where one worker ends."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from upath import UPath

from bliss_ops.models import language
from bliss_ops.training.parallel import choose_sharding
from bliss_ops.training.workers import Workers
from tests.training import jobs

# Clipping forgives a wrong factor of the gradient, so not all are clipped.
# 7 sequences in micro-batches of 2: two workers have 3 and 4 rows and take two passes each; of one row, the first worker has none
CASES: dict[str, dict[str, Any]] = {
    "replicated": {"sharding": "replicated"},
    "full": {"sharding": "full"},
    "full, activations again, no clipping": {"sharding": "full", "checkpointing": True, "clip": 1e3},
    "replicated, fewer rows than workers": {"sharding": "replicated", "sequences": 1, "clip": 1e3},
    "full, one row more": {"sharding": "full", "sequences": 5, "micro": 1},
}
CHANGES: dict[str, dict[str, Any]] = {  # of the number of workers, after step 3 of 6
    "one, then two replicated": {"sharding": "replicated"},
    "one, then two full": {"sharding": "full"},
    "two replicated, then one": {"sharding": "replicated"},
    "two full, then one": {"sharding": "full"},
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`one/<case>` and `two/<case>`; every case of two workers in a single launch."""
    root = tmp_path_factory.mktemp("spread")
    jobs.train_all(str(root / "one"), CASES | {"six": {"last_step": 6, "sequences": 7}})
    jobs.train(str(root / "two" / "one, then two replicated"), 3)
    shutil.copytree(root / "two" / "one, then two replicated", root / "two" / "one, then two full")
    begun = {name: settings | {"last_step": 6 if name.startswith("one") else 3} for name, settings in CHANGES.items()}
    jobs.launch_all(str(root / "two"), CASES | begun, 2)
    for name in CHANGES:
        if name.startswith("two"):
            jobs.train(str(root / "two" / name), 6)
    return root


def assert_equal_to_rounding(found: Path, expected: Path) -> None:
    """In float64 nothing but the order of sums is different."""
    ours, theirs = (language.read_tensors(UPath(path / "state.safetensors")) for path in (found, expected))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=1e-9, atol=1e-12)
    rows, others = ([json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()] for path in (found, expected))
    assert [row["step"] for row in rows] == [row["step"] for row in others]
    assert [row["loss"] for row in rows] == pytest.approx([row["loss"] for row in others], rel=2e-6)  # of six digits


@pytest.mark.parametrize("case", CASES)
def test_two_workers_end_where_one_ends(trained: Path, case: str) -> None:
    assert_equal_to_rounding(trained / "two" / case, trained / "one" / case)


@pytest.mark.parametrize("case", CHANGES)
def test_a_job_goes_on_with_another_number_of_workers_and_another_sharding(trained: Path, case: str) -> None:
    assert_equal_to_rounding(trained / "two" / case, trained / "one" / "six")


@pytest.mark.slow
def test_three_workers_of_one_job(tmp_path: Path, trained: Path) -> None:
    jobs.launch_all(str(tmp_path), CASES, 3)
    for case in CASES:
        assert_equal_to_rounding(tmp_path / case, trained / "one" / case)


def test_activation_checkpointing_changes_nothing(tmp_path: Path, trained: Path) -> None:
    jobs.train(str(tmp_path), checkpointing=True)
    assert (tmp_path / "state.safetensors").read_bytes() == (trained / "one" / "replicated" / "state.safetensors").read_bytes()


def test_auto_shards_what_does_not_fit_into_half_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    class Properties:
        total_memory = 80 * 2**30

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: Properties)
    gpu, two = torch.device("cuda"), Workers(0, 2)
    assert choose_sharding("auto", 1_400_000_000, gpu, two) == "replicated"  # 25 GB of 80
    assert choose_sharding("auto", 2_800_000_000, gpu, two) == "full"  # 50 GB
    assert choose_sharding("auto", 2_800_000_000, torch.device("cpu"), two) == "replicated"
    assert choose_sharding("full", 1000, gpu, two) == "full"
    assert choose_sharding("full", 1000, gpu, Workers(0, 1)) == "replicated"
