"""Settings that cannot work end `fit` with what to change, and leave no score model; strange ones that do work are let through."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from upath import UPath

from bliss_ops import selectors
from bliss_ops.lake import write_parquet
from bliss_ops.selectors import SelectorInputs
from bliss_ops.selectors.bliss import MODEL
from tests.selectors.windows import both_shards

HUNDREDFOLD = {"score": {"score_learning_rate": 0.1}, "proxy": {"proxy_learning_rate": 0.1}}
FREE = {"min_effective_sample_size": 0.0}


def with_bilevel(inputs: SelectorInputs, **changes: Any) -> SelectorInputs:
    bilevel = inputs.config.bilevel.model_copy(update=changes)
    return replace(inputs, config=inputs.config.model_copy(update={"bilevel": bilevel}))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (HUNDREDFOLD["score"] | {"distillation_weight": 0.0}, "score_learning_rate"),
        (HUNDREDFOLD["score"] | {"distillation_weight": 0.0} | FREE, "score_learning_rate"),
        ({"proxy_learning_rate": 1.0}, "proxy_learning_rate"),
        ({"temperature": 1e-6}, "temperature"),
        ({"temperature": 1e-6} | FREE, "temperature"),
        ({"ihvp": "warm_start", "solver_learning_rate": 1.0}, "solver_learning_rate"),
        ({"ihvp": "neumann", "solver_learning_rate": 1.0}, "solver_learning_rate"),
    ],
    ids=lambda value: "-".join(f"{v}" for v in value.values()) if isinstance(value, dict) else value,
)
def test_diverging_settings_end_in_a_message_that_names_them(
    inputs: SelectorInputs, tmp_path: Path, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=rf"fit r round 1: at step \d+ .*bilevel\.{named}"):
        selectors.load("bliss").fit(with_bilevel(inputs, **changes), UPath(tmp_path))
    assert not (tmp_path / MODEL).exists()


@pytest.mark.parametrize("changes", HUNDREDFOLD.values(), ids=HUNDREDFOLD)
def test_a_rate_a_hundred_times_too_high_that_does_not_diverge_is_let_through(
    inputs: SelectorInputs, tmp_path: Path, changes: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Distillation holds the scores. A proxy that learns this easy corpus by heart leaves no influence to learn, which is said."""
    selectors.load("bliss").fit(with_bilevel(inputs, **changes), UPath(tmp_path))
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite([value for row in rows for value in row.values()]).all()
    assert rows[-1]["probe_correlation"] > 0.3 or "the scores do not follow" in caplog.text
    ids, tokens = both_shards(inputs)
    scores = selectors.load("bliss").load_scorer(UPath(tmp_path))(ids, tokens)
    assert np.isfinite(scores).all()
    assert scores.std() > 1e-3


def test_a_validation_set_of_one_row_is_refused(inputs: SelectorInputs, tmp_path: Path) -> None:
    guide = pq.read_table(str(inputs.validation / "guide.parquet"))
    write_parquet(UPath(tmp_path) / "validation" / "guide.parquet", guide.slice(0, 1))
    with pytest.raises(ValueError, match=r"has 1 rows.*ingest\.validation\.source"):
        selectors.load("bliss").fit(replace(inputs, validation=UPath(tmp_path) / "validation"), UPath(tmp_path) / "selector")
    assert not (tmp_path / "selector" / MODEL).exists()


def test_scores_that_stay_constant_are_said(inputs: SelectorInputs, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        selectors.load("bliss").fit(with_bilevel(inputs, score_learning_rate=1e-9, num_steps=3), UPath(tmp_path))
    assert "nearly constant: raise bilevel.score_learning_rate" in caplog.text


def test_a_healthy_job_says_nothing(inputs: SelectorInputs, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        selectors.load("bliss").fit(inputs, UPath(tmp_path))
    assert not [record for record in caplog.records if record.name.startswith("bliss_ops")]
