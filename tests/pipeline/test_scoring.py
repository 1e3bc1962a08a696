"""Scoring: the same files whatever is in flight, batches that shrink until they fit, progress inside a shard, and no work for nothing."""

import itertools
import logging
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from upath import UPath

from bliss_ops import pipeline, scoring, selectors, sharding
from bliss_ops.config import ComputeConfig
from bliss_ops.lake import Lake, shard_file
from bliss_ops.manifest import read_manifest
from bliss_ops.models.pass_size import GPU_TOKENS, largest_batch
from bliss_ops.models.scorer import CPU_TOKENS, ModelScorer
from bliss_ops.scoring import read_ahead, seconds_covered
from bliss_ops.sharding import map_locally

RUN = "smoke-bliss-s0"
CPU = torch.device("cpu")


class Sums(torch.nn.Module):
    """Scores a sequence by the sum of its tokens; remembers the shapes it saw and has memory for `most` sequences."""

    def __init__(self, most: int = 1_000_000) -> None:
        super().__init__()
        self.most, self.seen = most, []

    def forward(self, input_ids_BT: torch.Tensor) -> torch.Tensor:
        self.seen.append(len(input_ids_BT))
        if len(input_ids_BT) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return input_ids_BT.sum(1).float()


def batch(rows: int) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(rows), np.random.default_rng(0).integers(0, 100, (rows, 6))


def test_a_batch_that_does_not_fit_is_scored_in_halves_and_so_are_later_ones(caplog: pytest.LogCaptureFixture) -> None:
    model = Sums(most=5)
    score = ModelScorer(model, CPU)
    assert score.prepare(16, 6, ComputeConfig()) == 16
    ids, tokens = batch(16)
    np.testing.assert_array_equal(score(ids, tokens), tokens.sum(1))
    assert model.seen == [16, 8, 4, 4, 4, 4]
    assert "out of memory with 16 sequences at a time: 8 from now on" in caplog.text
    model.seen.clear()
    np.testing.assert_array_equal(score(ids, tokens), tokens.sum(1))
    assert model.seen == [4, 4, 4, 4]


def test_a_single_sequence_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(torch.OutOfMemoryError):
        ModelScorer(Sums(most=0), CPU)(*batch(3))


def test_compiled_code_sees_one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = []
    monkeypatch.setattr(Sums, "compile", lambda model, **settings: compiled.append(settings))
    model = Sums()
    score = ModelScorer(model, CPU)
    score.prepare(8, 6, ComputeConfig(compile=True))
    assert compiled == [{"dynamic": False}]
    for rows in (8, 3):
        ids, tokens = batch(rows)
        np.testing.assert_array_equal(score(ids, tokens), tokens.sum(1))
    assert model.seen == [8, 8]


def test_the_size_of_a_batch_on_a_cpu_depends_on_the_sequence_length_alone() -> None:
    sizes = [ModelScorer(Sums(), CPU).prepare(None, length, ComputeConfig()) for length in (16, 128, 1024, 8192)]
    assert sizes == [CPU_TOKENS // 16, CPU_TOKENS // 128, CPU_TOKENS // 1024, 1]


@pytest.mark.parametrize(
    ("free_gigabytes", "megabytes_per_sequence", "expected"),
    [(80, 20, GPU_TOKENS // 1024), (8, 20, 256), (1, 20, 32), (0.01, 20, 1), (80, 0, GPU_TOKENS // 1024)],
)
def test_the_size_of_a_batch_on_a_gpu_is_a_power_of_two_that_fits(free_gigabytes, megabytes_per_sequence, expected) -> None:
    assert largest_batch(int(free_gigabytes * 1e9), megabytes_per_sequence * 1e6, 1024) == expected


class Shapes(TorchDispatchMode):
    """Remembers the shapes of everything that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.seen.add(tuple(result.shape))
        return result


def test_the_score_model_computes_no_logits_over_the_vocabulary(finished: Lake) -> None:
    config = finished.run(RUN).config
    vocab_size = 512
    ids, tokens = np.arange(5), np.random.default_rng(0).integers(0, vocab_size, (5, config.ingest.sequence_length))

    def products(score: object) -> list[tuple[int, ...]]:
        with Shapes() as shapes:
            score(ids, tokens)  # type: ignore[operator]
        return [shape for shape in shapes.seen if shape[-1:] == (vocab_size,) and shape[0] != vocab_size]

    score = selectors.load("bliss").load_scorer(finished.run(RUN).round(1) / "selector")
    assert isinstance(score, ModelScorer)
    assert products(score) == []
    head = torch.nn.Linear(1, vocab_size)
    assert products(ModelScorer(head, CPU, lambda input_ids_BT: head(input_ids_BT[:, :1].float()).sum(1))) == [(5, vocab_size)]


def score_into(run: object, directory: Path, *, in_flight: int) -> dict[str, bytes]:
    shards = selectors.window(run, 1)  # type: ignore[arg-type]
    make_worker = partial(scoring.make_worker, run.config, run.corpus.sequences, run.round(1) / "selector", UPath(directory))  # type: ignore[attr-defined]
    records = list(map_locally(make_worker, shards, description="score", in_flight=in_flight))
    assert sorted(record.shard for record in records) == shards
    return {path.name: path.read_bytes() for path in directory.glob("*.parquet")}


def test_shards_in_flight_and_batches_of_threads_change_no_byte(finished: Lake, tmp_path: Path) -> None:
    run = finished.run(RUN)
    one, many = (score_into(run, tmp_path / str(in_flight), in_flight=in_flight) for in_flight in (1, 3))
    assert one == many
    scores = run.round(1) / "scores"
    assert one == {path.name: path.read_bytes() for path in scores.glob("*.parquet")}


def test_the_manifest_says_how_fast_it_was(finished: Lake) -> None:
    run = finished.run(RUN)
    metrics = read_manifest(run.round(1) / "scores", made_by="").metrics
    assert metrics["num_tokens"] == metrics["num_sequences"] * run.config.ingest.sequence_length
    assert metrics["tokens_per_second"] > 1000
    assert not {"begun", "ended", "sum"} & set(metrics)


def test_only_seconds_in_which_somebody_scored_count() -> None:
    assert seconds_covered([(0.0, 2.0), (1.0, 3.0), (1.5, 1.6), (10.0, 11.0)]) == pytest.approx(4.0)


def test_a_long_shard_is_seen_to_move(finished: Lake, tmp_path: Path, monkeypatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(sharding, "SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr(scoring.ModelScorer, "prepare", lambda scorer, *_: 4)
    with caplog.at_level(logging.INFO):
        score_into(finished.run(RUN), tmp_path, in_flight=2)
    lines = [line for line in caplog.messages if line.startswith("score: 0/") and "tok/s eta" in line]
    assert len(lines) > 3
    assert lines[0].split("(")[1] != lines[-1].split("(")[1]


def test_an_error_in_one_shard_stops_the_others(finished: Lake, tmp_path: Path, monkeypatch) -> None:
    begun, ended = threading.Event(), threading.Event()

    def make_worker() -> object:
        def work(shard: int) -> object:
            if shard == 1:
                begun.wait(10)
                raise ValueError("shard 1 is broken")
            try:
                for _ in itertools.count():
                    begun.set()
                    sharding.report_part(0.5, 10)
                    time.sleep(0.01)
            finally:
                ended.set()

        return work

    with pytest.raises(ValueError, match="shard 1 is broken"):
        list(map_locally(make_worker, [0, 1, 2], description="score", in_flight=2))  # type: ignore[arg-type]
    assert ended.wait(10)


def test_reading_ahead_keeps_order_and_bound_and_brings_errors() -> None:
    taken = []

    def numbers() -> Iterator[int]:
        for number in range(20):
            taken.append(number)
            yield number
        raise OSError("the disk is gone")

    with read_ahead(numbers(), depth=3) as items:
        assert [next(items) for _ in range(5)] == [0, 1, 2, 3, 4]
        time.sleep(0.05)
        assert len(taken) <= 8
        with pytest.raises(OSError, match="the disk is gone"):
            list(items)


def test_a_score_shard_that_changed_on_disk_is_not_selected_from(copied: Lake) -> None:
    run = copied.run(RUN)
    victim = shard_file(run.round(1) / "scores", selectors.window(run, 1)[0])
    table = pq.read_table(str(victim))
    values = table["score"].to_numpy() + 1
    pq.write_table(table.set_column(1, table.schema.field("score"), [values]), str(victim), compression="zstd")
    (run.round(1) / "selection" / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"is not what was written .*delete it and run `bliss score"):
        pipeline.select(run, 1)
    victim.unlink()
    pipeline.score(run, 1)
    assert pipeline.select(run, 1).digest == read_manifest(run.round(1) / "selection", made_by="").digest
