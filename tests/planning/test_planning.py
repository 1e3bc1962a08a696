"""`bliss plan` without a lake: sizes assumed from the recipe, rates given, several methods, and what cannot be planned."""

import json
from pathlib import Path
from typing import Any

import pytest

from bliss_ops.cli import main
from bliss_ops.costs import StageWork
from bliss_ops.selectors import known_methods
from bliss_ops.speeds import Measured, Speeds, given_speed

PYTHIA = ("plan", "pythia-410m")


@pytest.fixture
def plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str) -> dict[str, Any]:
        assert main([*arguments, "--format", "json", "--lake", str(tmp_path)]) == 0
        assert list(tmp_path.iterdir()) == []
        return dict(json.loads(capsys.readouterr().out))

    return run


def stages(values: dict[str, Any]) -> dict[str, Any]:
    return {stage["stage"]: stage for stage in values["stages"]}


def test_the_papers_setting_by_hand(plan: Any) -> None:
    values = plan(*PYTHIA, "--device", "h200", "--mfu", "0.4")
    found = stages(values)
    steps, batch, length = 10_200, 512, 1024  # 10,000 and the decay branch
    assert found["pretrain"]["num_tokens"] == 5 * steps * batch * length
    assert found["warm_up target"]["num_tokens"] == 10_000 * batch * length
    # 2 FLOPs for each of the 302 million weights of the blocks and 51.5 million of the head, attention over half of T; 3 passes
    weights, head, attention = 24 * 12 * 1024**2, 50_304 * 1024, 24 * 2 * length * 1024
    training = 3 * (2 * weights + attention + 2 * head)
    assert found["pretrain"]["flops"] == pytest.approx(5 * steps * batch * length * training, rel=1e-3)  # and a few validation passes
    assert found["pretrain"]["device_seconds"] == pytest.approx(found["pretrain"]["flops"] / (0.4 * 989e12))
    assert found["pretrain"]["num_bytes"] == 5 * 16 * 405_334_016  # state and model, published parameter count
    per_shard = round(364_868_892 / 1024 * 491)
    assert found["score"]["num_sequences"] == 5 * (per_shard * 160 // 1024)
    assert found["materialize"]["num_sequences"] == 5 * int(0.2 * (per_shard * 160 // 1024))
    assert any("491 tokens a document" in text for text in values["assumptions"])
    assert values["selection_share"] == pytest.approx(
        sum(found[name]["flops"] for name in ("warm_up proxy", "fit", "score")) / values["total"]["flops"]
    )
    assert found["select"]["device_seconds"] is None  # no model is run, and nothing was measured


def test_every_method_side_by_side_and_bliss_is_cheaper_than_mates_and_less(plan: Any) -> None:
    plans = {values["method"]: values for values in plan(*PYTHIA, "--methods")["plans"]}
    assert list(plans) == known_methods()
    cost = {method: values["selection"]["flops"] for method, values in plans.items()}
    assert cost["random"] == cost["dsir"] == cost["classifier"] == 0
    assert 0 < cost["bliss"] < cost["mates"] < cost["less"]
    assert len({stages(values)["pretrain"]["flops"] for values in plans.values()}) == 1
    assert [values["method"] for values in plan(*PYTHIA, "--methods", "random,dsir")["plans"]] == ["random", "dsir"]


def test_settings_and_numbers_of_ones_own(plan: Any) -> None:
    values = plan("plan", "small", "--set", "pretraining.num_steps=10", "--set", "num_rounds=3", "--num-sequences", "1000")
    assert values["rounds"] == [1, 2, 3]
    assert stages(values)["score"]["num_sequences"] == 3000
    assert stages(values)["pretrain"]["num_tokens"] == 3 * (10 + 50) * 32 * 128
    assert values["num_epochs"] == pytest.approx((10 + 50) * 32 / 200)


def test_the_table_is_for_a_reader(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PYTHIA, "--flops-per-second", "4e14", "--lake", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "5 rounds" in shown
    assert "26.7B" in shown
    assert "selection takes" in shown
    assert "no rate is known for" in shown


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["plan", "small", "--set", "ingest.source=s3://mine/*.json.gz"], "nothing is known of the size of 's3://mine/*.json.gz'"),
        ([*PYTHIA, "--mfu", "0.4"], "give it with --device"),
        ([*PYTHIA, "--device", "h200", "--mfu", "40"], "above 0 and at most 1"),
        ([*PYTHIA, "--device", "abacus", "--mfu", "0.4"], "the peak of device 'abacus' is not known: known are H100"),
        ([*PYTHIA, "--flops-per-second", "-1"], "give the model FLOP/s"),
        ([*PYTHIA, "--method", "oracle"], "known methods are"),
        ([*PYTHIA, "--corpus", "elsewhere"], "run `bliss ingest` first"),
        (["plan", "--run", "nobody"], "run `bliss configure` first"),
        ([*PYTHIA, "--run", "nobody"], "not both"),
        ([*PYTHIA, "--set", "num_rounds=7"], "7 windows of 160 shards are 1120; the source has 1024"),
        (
            [*PYTHIA, "--num-sequences", "10", "--set", "selection.fraction=null", "--set", "selection.token_budget=99999"],
            "has 10 sequences",
        ),
    ],
)
def test_what_cannot_be_planned_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str) -> None:
    assert main([*arguments, "--lake", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert expected in message
    assert "Traceback" not in message


def test_rates_by_stage_and_method() -> None:
    speeds = Speeds(
        [
            Measured("fit", "bliss", "cpu", flops=100.0, num_tokens=10, device_seconds=10.0),
            Measured("fit", "dsir", "cpu", flops=0.0, num_tokens=0, device_seconds=3.0),
            Measured("fit", "dsir", "cpu", flops=0.0, num_tokens=0, device_seconds=5.0),
            Measured("score", "dsir", "cpu", flops=0.0, num_tokens=1000, device_seconds=2.0),
            Measured("pretrain", "dsir", "cpu", flops=400.0, num_tokens=10, device_seconds=100.0),
        ]
    )
    assert speeds.device_seconds("fit", "bliss", StageWork(flops=50.0)) == 5.0  # by FLOPs
    assert speeds.device_seconds("fit", "mates", StageWork(flops=50.0)) == 5.0  # another method's model is a model
    assert speeds.device_seconds("fit", "dsir", StageWork()) == 4.0  # as long as it took
    assert speeds.device_seconds("score", "dsir", StageWork(num_tokens=500)) == 1.0  # by tokens
    assert speeds.device_seconds("score", "classifier", StageWork(num_tokens=500)) is None  # another method's words are not its words
    assert speeds.device_seconds("pretrain", "bliss", StageWork(flops=4.0)) == 1.0
    assert speeds.device_seconds("evaluate", "bliss", StageWork(flops=4.0)) is None
    given = Speeds(speeds.measured, flops_per_second=2.0)
    assert given.device_seconds("fit", "bliss", StageWork(flops=50.0)) == 25.0
    assert given.device_seconds("score", "dsir", StageWork(num_tokens=500)) == 1.0


@pytest.mark.parametrize(("device", "peak"), [("h200", 989e12), ("H100 PCIe", 756e12), ("h100-pcie", 756e12), ("a100", 312e12)])
def test_a_device_is_known_by_its_name(device: str, peak: float) -> None:
    assert given_speed(device, 0.5) == peak / 2
