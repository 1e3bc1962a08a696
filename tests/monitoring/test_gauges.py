"""Numbers of work in progress: whose they are, what training and shards say, and what saying it costs."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from upath import UPath

from bliss_ops import gauges
from bliss_ops.ray.exporting import ShardNumbers
from bliss_ops.sharding import Output, ShardRecord
from bliss_ops.training import metrics as training_metrics
from bliss_ops.training.metrics import Speed, StepMetrics

Emitted = list[tuple[str, float, dict[str, str]]]


@pytest.fixture
def emitted() -> Iterator[Emitted]:
    found: Emitted = []
    gauges.export_to(lambda name, value, tags: found.append((name, value, dict(tags))))
    yield found
    gauges.export_to(None)


@pytest.mark.parametrize(
    ("address", "tags"),
    [
        ("runs/demo-bliss-s0/round-01/scores", {"run": "demo-bliss-s0", "round": "1", "stage": "score"}),
        ("s3://b/lake/runs/demo/round-12/pretrain/metrics.jsonl", {"run": "demo", "round": "12", "stage": "pretrain"}),
        ("/data/runs/lake/runs/demo/round-02/selector/metrics.jsonl", {"run": "demo", "round": "2", "stage": "fit"}),
        ("/lake/runs/demo/warmup/target-metrics.jsonl", {"run": "demo", "stage": "warm_up"}),
        ("corpora/c4/documents", {"corpus": "c4", "stage": "extract"}),
        ("corpora/c4/sequences-bpe4096-1024", {"corpus": "c4", "stage": "pack"}),
        ("scores/c4/demo-bliss-s0-round-01", {"corpus": "c4", "stage": "rescore"}),
        ("elsewhere/entirely", {"stage": ""}),
    ],
)
def test_whose_work_it_is(address: str, tags: dict[str, str]) -> None:
    assert gauges.tags_of(address) == tags
    assert gauges.tags_of(address, "score")["stage"] == "score"


def test_training_says_how_fast_how_far_and_how_well(tmp_path: Path, emitted: Emitted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_metrics, "SECONDS_BETWEEN_LINES", 0.0)
    path = UPath(tmp_path / "runs" / "demo" / "round-01" / "pretrain" / "metrics.jsonl")
    metrics = StepMetrics(path, "pretrain", 4, 100, speed=Speed(2.0, 1e9))
    metrics.line(1, loss=3.5, lr=0.1)
    metrics.line(2, loss=3.25, lr=0.1)
    metrics.add(2, validation_loss=3.0)
    tags = {"run": "demo", "round": "1", "stage": "pretrain"}
    assert all(given == tags for _, _, given in emitted)
    values = {name: [value for other, value, _ in emitted if other == name] for name, _, _ in emitted}
    assert values["tokens"] == [100, 100]
    assert values["loss"] == [3.5, 3.25]
    assert values["progress"] == [0.25, 0.5]
    assert values["validation_loss"] == [3.0]
    assert all(0 < share < 1 for share in values["mfu"])
    assert set(values) <= {*gauges.COUNTERS, *gauges.GAUGES}


def test_tokens_of_a_shard_are_counted_once_however_often_it_reports(emitted: Emitted) -> None:
    numbers = ShardNumbers("score runs/demo/round-01/scores")
    for shard, num_tokens in ((0, 10), (1, 5), (0, 30), (1, 15)):  # two in flight
        numbers.partly(shard, num_tokens)
    for shard, num_tokens in ((0, 40), (1, 15)):
        output = Output(path="a", bytes=1, sha256="", rows=4)
        numbers.finish(ShardRecord(shard=shard, outputs=[output], metrics={"num_tokens": num_tokens}))
    totals = {name: sum(value for other, value, _ in emitted if other == name) for name in gauges.COUNTERS}
    assert totals == {"tokens": 55, "rows": 8, "shards": 2}
    assert {json.dumps(tags) for _, _, tags in emitted} == {json.dumps({"run": "demo", "round": "1", "stage": "score"})}


def test_shards_without_tokens_have_rows(emitted: Emitted) -> None:
    numbers = ShardNumbers("materialize runs/demo/round-01/subset")
    numbers.finish(ShardRecord(shard=0, outputs=[Output(path="a", bytes=1, sha256="", rows=None)]))
    assert [(name, value) for name, value, _ in emitted] == [("tokens", 0), ("rows", 0), ("shards", 1)]


def test_nobody_listening_costs_next_to_nothing() -> None:
    tags = gauges.tags_of("runs/demo/round-01/scores")
    begun = time.process_time()
    for _ in range(100_000):
        gauges.emit("tokens", 1, tags)
    assert (time.process_time() - begun) / 100_000 < 5e-6, "0.1 microseconds on a machine with nothing else to do"
