"""Two validation sets through a whole run: what is reported is each set's loss and their weighted mean."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bliss_ops.cli import main
from bliss_ops.lake import Lake
from bliss_ops.manifest import read_manifest


def prose(number: int, words: str) -> str:
    text = words.split()
    return " ".join(text[(number * 3 + i * i) % len(text)] for i in range(60 + number % 40))


def write_lines(path: Path, words: str, count: int) -> str:
    path.write_text("".join(json.dumps({"text": prose(number, words)}) + "\n" for number in range(count)))
    return str(path)


def test_the_loss_is_the_weighted_mean_of_the_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    words = "river boat letter kitchen lamp report bridge morning house winter road stone"
    numbers = "1 2 3 4 5 6 7 8 9 10 11 12 plus minus equals"
    shard = write_lines(tmp_path / "text.jsonl", f"{words} {numbers}", 400)
    others = [{"source": write_lines(tmp_path / "sums.jsonl", numbers, 8), "weight": 3.0}]
    command = ["run", "smoke", "--methods", "random", "--lake", str(tmp_path / "lake"), "--source", shard]
    command += ["--validation", write_lines(tmp_path / "tales.jsonl", words, 30), "--set", f"ingest.validation.others={json.dumps(others)}"]
    assert main([*command, "--set", "num_rounds=1"]) == 0

    run = Lake.open(tmp_path / "lake").run("smoke-random-s0")
    metrics = read_manifest(run.round(1) / "evaluation", made_by="bliss run").metrics
    losses = metrics["validation_losses"]
    assert metrics["validation_loss"] == pytest.approx((losses["tales"] + 3 * losses["sums"]) / 4, rel=1e-9)
    assert abs(losses["tales"] - losses["sums"]) > 1e-3
    rows = {
        row["task"]: row
        for row in pq.read_table(str(run.round(1) / "evaluation" / "results.parquet")).to_pylist()
        if row["metric"] == "loss"
    }
    assert rows.keys() == {"validation", "validation:tales", "validation:sums"}
    assert rows["validation:sums"]["value"] == losses["sums"]
    # Sets are independent: the errors add up in quadrature with the sets' weights.
    expected = ((rows["validation:tales"]["standard_error"] / 4) ** 2 + (rows["validation:sums"]["standard_error"] * 3 / 4) ** 2) ** 0.5
    assert rows["validation"]["standard_error"] == pytest.approx(expected, rel=1e-9)
    assert rows["validation"]["num_examples"] == rows["validation:tales"]["num_examples"] + rows["validation:sums"]["num_examples"]
