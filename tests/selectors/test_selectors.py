"""The contract of every selector, the uniformity of `random`, and that `bliss` learns what helps."""

import contextlib
import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from upath import UPath

from bliss_ops import scoring, selection, selectors
from bliss_ops.config import RunConfig
from bliss_ops.lake import shard_file
from bliss_ops.selectors import SelectorInputs
from bliss_ops.sharding import ROWS_PER_SHARD
from tests.selectors.windows import both_shards


class DyingFsync:
    """`os.fsync` of a process that is killed in its n-th one: the file that was being written does not appear."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self, descriptor: int) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        FSYNC(descriptor)


FSYNC = os.fsync


@pytest.mark.parametrize("method", selectors.known_methods())
def test_every_selector_keeps_the_contract(inputs: SelectorInputs, tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, finite scores of single sequences, and the same bytes from a fit that was killed in the middle."""
    selector = selectors.load(method)
    assert all(section in RunConfig.model_fields for section in selector.SECTIONS)
    files, metrics = selector.fit(inputs, UPath(tmp_path))
    assert files
    assert all((tmp_path / file).is_file() for file in files)
    json.dumps(metrics)
    score = selector.load_scorer(UPath(tmp_path))
    ids, tokens = both_shards(inputs)
    scores = score(ids, tokens)
    assert scores.shape == ids.shape
    assert scores.dtype == np.float32
    assert np.isfinite(scores).all()
    order = np.random.default_rng(0).permutation(len(ids))
    np.testing.assert_allclose(score(ids[order], tokens[order]), scores[order], rtol=1e-4, atol=1e-5)
    few = np.concatenate([score(ids[begin : begin + 100], tokens[begin : begin + 100]) for begin in range(0, len(ids), 100)])
    np.testing.assert_allclose(few, scores, rtol=1e-4, atol=1e-5)
    for at in (3, 4):  # in the middle of the fits that take long; of a short one maybe nowhere
        monkeypatch.setattr(os, "fsync", DyingFsync(at))
        with contextlib.suppress(KeyboardInterrupt):
            selector.fit(inputs, UPath(tmp_path / "again"))
    monkeypatch.undo()
    assert selector.fit(inputs, UPath(tmp_path / "again")) == (files, metrics)
    for file in files:
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / file).read_bytes(), f"{file} differs between two fits of one seed"


@pytest.mark.parametrize("method", selectors.known_methods())
def test_every_selector_says_its_flops(method: str) -> None:
    """Never negative, and scoring costs the same for every sequence."""
    config = RunConfig(name="r", recipe="r", method=method)
    few, many = (selectors.load(method).flops(config, vocab_size=4096, num_sequences=number) for number in (100_000, 300_000))
    assert min(few.fit, few.score, selectors.load(method).flops(config, vocab_size=4096, num_sequences=0).fit) >= 0
    assert many.fit >= few.fit
    assert many.score == pytest.approx(3 * few.score)
    assert (few.score > 0) == selectors.uses_proxy(method)


@pytest.mark.parametrize("alignment", ["double_backward", "central_difference"])
def test_bliss_prefers_the_text_that_helps_the_validation_set(inputs: SelectorInputs, tmp_path: Path, alignment: str) -> None:
    config = inputs.config.model_copy(update={"bilevel": inputs.config.bilevel.model_copy(update={"alignment": alignment})})
    chosen = SelectorInputs(**{**vars(inputs), "config": config})
    bliss = selectors.load("bliss")
    bliss.fit(chosen, UPath(tmp_path))
    ids, tokens = both_shards(inputs)
    scores = bliss.load_scorer(UPath(tmp_path))(ids, tokens)
    useful = ids < ROWS_PER_SHARD
    auc = (scores[useful][:, None] > scores[~useful][None, :]).mean()
    assert auc > 0.95


def test_bliss_takes_the_kl_term_and_extra_inner_steps(inputs: SelectorInputs, tmp_path: Path) -> None:
    changes = {"kl_weight": 0.1, "num_inner_steps": 3, "num_steps": 3, "l2_weight": 1e-4, "ihvp": "identity"}
    config = inputs.config.model_copy(update={"bilevel": inputs.config.bilevel.model_copy(update=changes)})
    _, metrics = selectors.load("bliss").fit(SelectorInputs(**{**vars(inputs), "config": config}), UPath(tmp_path))
    assert np.isfinite(metrics["validation_loss"])


def test_random_is_uniform_and_does_not_know_shards(inputs: SelectorInputs, tmp_path: Path) -> None:
    random = selectors.load("random")
    random.fit(inputs, UPath(tmp_path))
    score = random.load_scorer(UPath(tmp_path))
    ids = np.arange(100_000)
    tokens = np.zeros((len(ids), 1), np.int64)
    scores = score(ids, tokens)
    counts = np.bincount((scores * 20).astype(int), minlength=20)
    assert ((counts - 5000) ** 2 / 5000).sum() < 43.8  # chi-square, 19 degrees of freedom, p = 0.001
    np.testing.assert_array_equal(scores[5000:5010], score(ids[5000:5010], tokens[5000:5010]))


def test_random_selects_the_same_sequences_however_they_are_cut_into_shards(inputs: SelectorInputs, tmp_path: Path) -> None:
    """The same ids in four shards, in one, and in seven that take turns, each in another order: one selection, of each part its share."""
    random = selectors.load("random")
    random.fit(inputs, UPath(tmp_path))
    score = random.load_scorer(UPath(tmp_path))
    ids = np.concatenate([shard * ROWS_PER_SHARD + np.arange(5000) for shard in range(4)])
    shuffled = np.random.default_rng(0).permutation(ids)
    cuts = {"four": np.split(ids, 4), "one": [shuffled], "seven": [shuffled[first::7] for first in range(7)]}
    chosen = {name: _selected(inputs.config, score, parts, UPath(tmp_path / name)) for name, parts in cuts.items()}
    assert chosen["four"] == chosen["one"] == chosen["seven"]
    assert len(set(chosen["one"])) == 4000
    counts = np.bincount(np.array(chosen["one"]) // ROWS_PER_SHARD)
    assert ((counts - 1000) ** 2 / 1000).sum() < 16.3  # chi-square, 3 degrees of freedom, p = 0.001


def _selected(config: RunConfig, score: "selectors.Scorer", parts: list[np.ndarray], directory: UPath) -> list[int]:
    """The ids that are selected when the shards hold these ids."""
    for shard, ids in enumerate(parts):
        scoring.write_shard(directory / "scores", shard, ids, score(ids, np.zeros((len(ids), 1), np.int64)))
    _, metrics = selection.select(config, directory / "scores", range(len(parts)), directory / "selection")
    files = [shard_file(directory / "selection", shard) for shard in metrics["shards"]]
    return sorted(number for file in files for number in pq.read_table(str(file))["sequence_id"].to_pylist())
