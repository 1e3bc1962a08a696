"""The contract of every selector, the uniformity of `random`, and that `bliss` learns what helps."""

import json
from pathlib import Path

import numpy as np
import pytest
from upath import UPath

from bliss_ops import selectors
from bliss_ops.config import RunConfig
from bliss_ops.selectors import SelectorInputs
from bliss_ops.sharding import ROWS_PER_SHARD
from tests.selectors.windows import both_shards


@pytest.mark.parametrize("method", selectors.known_methods())
def test_every_selector_keeps_the_contract(inputs: SelectorInputs, tmp_path: Path, method: str) -> None:
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
    assert selector.fit(inputs, UPath(tmp_path / "again"))[0] == files
    for file in files:
        assert (tmp_path / "again" / file).read_bytes() == (tmp_path / file).read_bytes(), f"{file} differs between two fits of one seed"


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
