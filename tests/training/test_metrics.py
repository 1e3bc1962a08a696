"""Step lines, model FLOPs utilisation, and curves for TensorBoard in which no step is there twice."""

import logging
import time
from pathlib import Path

import pytest
import torch
from upath import UPath

from bliss_ops.config import ComputeConfig
from bliss_ops.models.flops import model_flops
from bliss_ops.training import device
from bliss_ops.training.metrics import Speed, StepMetrics
from bliss_ops.training.tensorboard import curves


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("NVIDIA A10", 125),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("Tesla V100-SXM2-16GB", None),
    ],
)
def test_peaks_of_known_gpus(name: str, teraflops: float | None) -> None:
    assert device.known_peak_flops(name) == (None if teraflops is None else pytest.approx(teraflops * 1e12))


def test_a_cpu_has_a_peak_only_when_one_is_given() -> None:
    cpu = torch.device("cpu")
    assert device.peak_flops(cpu, ComputeConfig()) is None
    assert device.peak_flops(cpu, ComputeConfig(peak_teraflops=0.5)) == 0.5e12


def test_utilisation_is_model_flops_over_the_peak_of_all_devices() -> None:
    """pythia-410m at T = 1024: 302 M weights in blocks, 51.5 M in the output matrix, attention over half of T, times three."""
    per_token = model_flops("pythia-410m", vocab_size=50_304, sequence_length=1024).training
    by_hand = 3 * (2 * (24 * 12 * 1024**2 + 50_304 * 1024) + 24 * 2 * 1024 * 1024)
    assert per_token == by_hand
    speed = Speed(per_token, 8 * 989e12)
    assert speed.utilisation(1_600_000) == pytest.approx(1_600_000 * by_hand / (8 * 989e12))
    assert 0.4 < (speed.utilisation(1_600_000) or 0) < 0.5
    assert Speed(per_token, None).utilisation(1_600_000) is None


def test_a_step_line_says_how_fast_and_how_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    metrics = StepMetrics(UPath(tmp_path / "metrics.jsonl"), "pretrain x", 1200, 50_000, speed=Speed(1e9, 2e14))
    with caplog.at_level(logging.INFO, "bliss_ops"):
        for step in range(1, 31):
            now[0] += 0.5
            metrics.line(step, loss=3.4121, lr=1e-3)
    assert len(caplog.messages) == 5  # every three seconds
    # 100,000 tokens/s of 1e9 FLOPs are half of 2e14 FLOP/s; 1,170 steps of half a second are to come
    assert caplog.messages[-1] == "pretrain x: step 30/1200 (2%) loss 3.412 lr 0.001 100k tok/s mfu 50.0% eta 585s"
    metrics.add(30, loss=3.4121)
    assert metrics.encoded() == b'{"step": 30, "loss": 3.4121}\n'  # nothing that differs from run to run


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory)).Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_curves_of_a_resumed_job_have_every_step_once(tmp_path: Path) -> None:
    def steps(first: int, last: int, loss: float) -> StepMetrics:
        metrics = StepMetrics(UPath(tmp_path / "m.jsonl"), "job", 10, 100, curves=curves(UPath(tmp_path / "curves"), wanted=True))
        metrics.resume(first - 1)
        for step in range(first, last + 1):
            metrics.add(step, loss=loss, learning_rate=0.5)
            metrics.line(step, loss=loss)
        assert metrics.curves is not None
        metrics.curves.flush()
        return metrics

    killed = steps(1, 5, 1.0)
    killed.write()  # the checkpoint was of step 3
    steps(4, 10, 2.0).close()
    found = scalars(tmp_path / "curves")
    assert found["loss"] == [(1, 1.0), (2, 1.0), (3, 1.0), *((step, 2.0) for step in range(4, 11))]
    assert [step for step, _ in found["tokens_per_second"]] == [10]
    assert found["tokens_per_second"][0][1] > 0
    killed.close()


def test_curves_that_nobody_wants(tmp_path: Path) -> None:
    assert curves(UPath(tmp_path), wanted=False) is None


def test_curves_of_a_lake_in_an_object_store_are_copied_there() -> None:
    directory = UPath("memory://lake/tensorboard")
    drawn = curves(directory, wanted=True)
    assert drawn is not None
    drawn.add(1, {"loss": 1.0})
    drawn.flush()
    assert [path.name.startswith("events.out.tfevents") for path in directory.iterdir()] == [True]
    drawn.close()
