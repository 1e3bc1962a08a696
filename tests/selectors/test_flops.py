"""Model FLOPs by formula against torch's own counter of matrix products, while the real fit and scorer run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.flop_counter import FlopCounterMode
from upath import UPath

from bliss_ops import selectors
from bliss_ops.corpus import validation
from bliss_ops.selectors import SelectorInputs, bliss, mates
from tests.selectors.windows import LENGTH, VOCABULARY, both_shards

# The counter also sees what a model leaves out of its losses (the last position of a row has no target), attention's whole square
# instead of its causal half, and rotary tables: at T = 16 that is a few per cent.
TOLERANCE = 0.06

BILEVEL: list[dict[str, Any]] = [
    {},
    {"ihvp": "adam_diagonal", "num_replays": 2, "num_steps": 3},
    {"ihvp": "identity", "num_inner_steps": 3},
    {"ihvp": "identity", "num_inner_steps": 2, "outer_batch": "trained"},
    {"ihvp": "identity", "alignment": "double_backward"},
    {"ihvp": "identity", "alignment": "forward_mode"},
    {"ihvp": "warm_start"},
    {"ihvp": "warm_start", "alignment": "double_backward"},
    {"ihvp": "warm_start", "alignment": "forward_mode"},
    {"ihvp": "neumann", "num_solver_steps": 3},
    {"ihvp": "released"},
    {"ihvp": "identity", "kl_weight": 0.1},
]


def with_settings(inputs: SelectorInputs, section: str, **changes: Any) -> SelectorInputs:
    settings = getattr(inputs.config, section).model_copy(update=changes)
    return replace(inputs, config=inputs.config.model_copy(update={section: settings}))


def counted(inputs: SelectorInputs, method: str, directory: Path) -> float:
    with FlopCounterMode(display=False) as counter:
        selectors.load(method).fit(inputs, UPath(directory))
    return float(counter.get_total_flops())


@pytest.mark.parametrize("changes", BILEVEL, ids=lambda changes: "-".join(str(value) for value in changes.values()) or "defaults")
def test_bilevel_training_has_the_flops_of_its_matrix_products(inputs: SelectorInputs, tmp_path: Path, changes: dict[str, Any]) -> None:
    settings = {"num_steps": 2, "num_probes": 32, "probe_every_steps": 25} | changes
    chosen = with_settings(inputs, "bilevel", **settings)
    if changes.get("kl_weight"):
        chosen = with_settings(chosen, "target", warmup_steps=1)
    formula = bliss.flops(chosen.config, vocab_size=VOCABULARY, num_sequences=0).fit
    assert formula == pytest.approx(counted(chosen, "bliss", tmp_path), rel=TOLERANCE)


def test_mates_has_the_flops_of_its_matrix_products(inputs: SelectorInputs, tmp_path: Path) -> None:
    few = with_settings(inputs, "mates", num_probes=32, validation_rows=8, num_epochs=2)
    formula = mates.flops(few.config, vocab_size=VOCABULARY, num_sequences=10**6).fit
    assert formula == pytest.approx(counted(few, "mates", tmp_path), rel=TOLERANCE)


def test_shorter_validation_rows_cost_less(inputs: SelectorInputs, tmp_path: Path) -> None:
    """Half of the columns are padding and are cut off; the formula is told so."""
    guide = validation.read(inputs.validation, "guide")
    for method in (bliss, mates):
        whole, half = (
            method.flops(inputs.config, vocab_size=VOCABULARY, num_sequences=1000, validation_row_tokens=tokens).fit
            for tokens in (LENGTH, LENGTH / 2)
        )
        assert method.flops(inputs.config, vocab_size=VOCABULARY, num_sequences=1000).fit == whole > half
    assert guide.input_ids_NT.shape[1] == LENGTH


@pytest.mark.parametrize("method", ["bliss", "mates", "perplexity"])
def test_scoring_has_the_flops_of_its_matrix_products(inputs: SelectorInputs, tmp_path: Path, method: str) -> None:
    selector = selectors.load(method)
    quick = with_settings(inputs, "bilevel", num_steps=2, num_probes=32)
    selector.fit(quick, UPath(tmp_path))
    score = selector.load_scorer(UPath(tmp_path))
    ids, tokens = both_shards(inputs)
    with FlopCounterMode(display=False) as counter:
        score(ids, tokens)
    formula = selector.flops(inputs.config, vocab_size=VOCABULARY, num_sequences=len(ids)).score
    assert formula == pytest.approx(counter.get_total_flops(), rel=TOLERANCE)


def test_methods_without_a_model_cost_no_model_flops(inputs: SelectorInputs) -> None:
    for method in ("random", "dsir", "classifier"):
        found = selectors.load(method).flops(inputs.config, vocab_size=VOCABULARY, num_sequences=1000)
        assert np.isclose([found.fit, found.score], 0).all()
