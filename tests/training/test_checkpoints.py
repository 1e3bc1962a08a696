"""Checkpoints of a job in work: written beside training, whole or not at all, and what happens when one is not."""

import logging
import threading
from pathlib import Path

import pytest
import torch
from upath import UPath

from bliss_ops.models import language
from bliss_ops.training import checkpoints
from bliss_ops.training.checkpoints import CheckpointSeries, Policy, checkpoint_path
from bliss_ops.training.metrics import StepMetrics
from bliss_ops.training.state import TrainState, adamw


def new_state(step: int = 0, width: int = 4) -> TrainState:
    model = torch.nn.Linear(width, 3)
    torch.nn.init.constant_(model.weight, float(step))
    return TrainState(model, adamw(model, 1e-3, 0.0), step)


def series(directory: Path, state: TrainState, *, last_step: int = 100, policy: Policy | None = None) -> CheckpointSeries:
    final = UPath(directory / "state.safetensors")
    metrics = StepMetrics(UPath(directory / "metrics.jsonl"), "job", last_step, 1)
    return CheckpointSeries(final, state, metrics, policy or Policy(every_steps=1, keep=3), last_step=last_step)


def advance(job: CheckpointSeries, state: TrainState, *steps: int) -> None:
    for step in steps:
        state.step = step
        torch.nn.init.constant_(state.model.weight, float(step))  # type: ignore[arg-type]
        job.metrics.add(step, loss=float(step))
        job.after_step(step)


def weight(tensors: dict[str, torch.Tensor]) -> float:
    return float(tensors["model.weight"][0, 0])


def test_training_goes_on_while_a_checkpoint_is_written_and_the_copy_is_of_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write, write = threading.Event(), language.write_tensors

    def slow_write(path: UPath, tensors: dict[str, torch.Tensor]) -> None:
        assert may_write.wait(60)
        write(path, tensors)

    monkeypatch.setattr(checkpoints, "write_tensors", slow_write)
    state = new_state()
    job = series(tmp_path, state)
    advance(job, state, 1)  # returns although nothing is written
    torch.nn.init.constant_(state.model.weight, 7.0)  # type: ignore[arg-type]
    assert job.steps() == []
    may_write.set()
    job.wait()
    assert weight(language.read_tensors(checkpoint_path(job.final, 1))) == 1.0
    job.close()


def test_the_next_checkpoint_waits_for_the_former_and_brings_out_its_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(path: UPath, _: dict[str, torch.Tensor]) -> None:
        raise OSError(28, "the disk is full: free space and run the same command again, it resumes", str(path))

    monkeypatch.setattr(checkpoints, "write_tensors", full_disk)
    state = new_state()
    job = series(tmp_path, state)
    advance(job, state, 1)
    with pytest.raises(OSError, match="the disk is full"):
        advance(job, state, 2)
    job.close()


def test_retention(tmp_path: Path) -> None:
    state = new_state()
    job = series(tmp_path, state, policy=Policy(every_steps=2, keep=2, keep_every_steps=5, keep_steps=(3,)))
    advance(job, state, *range(1, 13))
    job.wait()
    assert job.steps() == [3, 5, 8, 10, 12]  # 3 asked for, 5 and 10 for good, and the last two of the others
    job.close()


def test_a_cut_checkpoint_is_named_and_the_one_before_it_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state = new_state()
    job = series(tmp_path, state)
    advance(job, state, 1, 2, 3)
    job.wait()
    newest = Path(str(checkpoint_path(job.final, 3)))
    newest.write_bytes(newest.read_bytes()[:-7])
    resumed = new_state(99)
    with caplog.at_level(logging.INFO, "bliss_ops"):
        again = series(tmp_path, resumed)
        assert again.resume()
    assert resumed.step == 2
    assert weight(resumed.tensors()) == 2.0
    assert [row["step"] for row in again.metrics.rows] == [1, 2]
    assert "state-step-000003.safetensors is not a whole safetensors file" in caplog.text
    assert "Going on from the one of step 2" in caplog.text


def test_no_whole_checkpoint_is_an_error_that_names_them(tmp_path: Path) -> None:
    state = new_state()
    job = series(tmp_path, state)
    advance(job, state, 1, 2)
    job.close()
    for step in (1, 2):
        Path(str(checkpoint_path(job.final, step))).write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"(?s)no checkpoint can be read: .*step-000002.*delete it.*step-000001"):
        series(tmp_path, new_state()).resume()


def test_a_checkpoint_of_another_shape_is_named(tmp_path: Path) -> None:
    state = new_state()
    job = series(tmp_path, state)
    advance(job, state, 1)
    job.close()
    with pytest.raises(
        ValueError, match=r"step-000001\.safetensors belongs to a model of another shape: weight is of shape \(3, 4\) there"
    ):
        series(tmp_path, new_state(width=5)).resume()


def test_the_final_state_counts_unless_there_is_a_later_one(tmp_path: Path) -> None:
    state = new_state()
    job = series(tmp_path, state, last_step=2)
    advance(job, state, 1, 2)
    job.finish()
    job.close()
    assert job.steps() == []
    longer = series(tmp_path, new_state(), last_step=9)
    assert longer.resume()
    assert longer.state.step == 2
    advance(longer, longer.state, 3)  # type: ignore[arg-type]
    longer.close()
    assert series(tmp_path, again := new_state(), last_step=9).resume()
    assert again.step == 3
