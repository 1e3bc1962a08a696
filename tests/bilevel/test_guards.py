"""What stops a job and what is only said, on the numbers of one step; whole jobs are in tests/selectors/test_diverging_settings.py."""

import logging
from typing import Any

import pytest

from bliss_ops.bilevel.guards import MIN_VALIDATION_ROWS, NUM_RECENT, PATIENCE, SETTLED_STEPS, Guards, check_validation_rows
from bliss_ops.config import BilevelConfig

HEALTHY = {
    "validation_loss": 4.0,
    "proxy_loss": 4.0,
    "effective_sample_size": 0.6,
    "batch_temperature": 1.0,
    "score_std": 1.0,
    "validation_gradient_norm": 1.0,
    "z_norm": 0.5,
}
LOOK = {"probe_score_std": 1.0, "probe_tied": 0.0, "probe_correlation": 0.4, "validation_auc": 0.7, "shift_error": 0.01}


def watched(steps: list[dict[str, float]], **settings: Any) -> Guards:
    guards = Guards(BilevelConfig(**settings), "fit demo round 1")
    for step, numbers in enumerate(steps, 1):
        guards.check_step(step, HEALTHY | numbers)
    return guards


@pytest.mark.parametrize(
    ("numbers", "settings", "named"),
    [
        ({"proxy_loss": 9.0}, {}, "bilevel.proxy_learning_rate"),
        ({"score_std": 40.0}, {}, "bilevel.score_learning_rate"),
        ({"batch_temperature": 40.0}, {}, "bilevel.temperature"),
        ({"score_std": 2.0}, {"temperature": 0.05}, "bilevel.temperature"),
        ({"z_norm": 11.0}, {"ihvp": "warm_start"}, "bilevel.solver_learning_rate"),
        ({"z_norm": 21.0}, {"ihvp": "neumann", "damping": 0.5}, "bilevel.solver_learning_rate"),
    ],
)
def test_what_is_wrong_for_some_steps_in_a_row_stops_the_job(numbers: dict[str, float], settings: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"fit demo round 1: at step {1 + PATIENCE} .*{named}"):
        watched([{}] + [numbers] * PATIENCE, **settings)
    watched([{}] + ([numbers] * (PATIENCE - 1) + [{}]) * 4, **settings)  # an odd batch now and then does not


def test_a_number_that_is_none_stops_the_job_at_once() -> None:
    for bad in (float("nan"), float("inf")):
        with pytest.raises(
            ValueError, match=r"at step 1 z_norm not finite; lower bilevel.score_learning_rate .* bilevel.proxy_learning_rate"
        ):
            watched([{"z_norm": bad}])
        with pytest.raises(ValueError, match="at step 1 probe_score_std not finite"):
            Guards(BilevelConfig(), "fit").check_look(1, LOOK | {"probe_score_std": bad})


def test_weights_that_stay_on_one_or_two_sequences_stop_the_job() -> None:
    one, five = {"effective_sample_size": 1 / 32}, {"effective_sample_size": 5 / 32}
    with pytest.raises(ValueError, match="min_effective_sample_size"):
        watched([one, one, {"effective_sample_size": 2 / 32}, one] * NUM_RECENT)
    watched([one, five] * NUM_RECENT)  # few, but different ones
    watched([one] * (NUM_RECENT - 1) + [{}] * NUM_RECENT)
    watched([{"effective_sample_size": 0.5}] * 20, batch_sequences=2)  # of two sequences it is all there can be


def test_a_large_z_of_a_solver_without_a_step_size_is_no_divergence() -> None:
    watched([{"z_norm": 1e4}] * 10, ihvp="adam_diagonal")
    watched([{"z_norm": 1e4}] * 10, ihvp="conjugate_gradient")


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ({"probe_score_std": 1e-5}, "nearly constant"),
        ({"probe_correlation": -0.5}, "run against the measured alignments"),
        ({"probe_tied": 0.5}, "share a score"),
        ({"shift_error": 0.5}, "depend on their shift"),
    ],
)
def test_what_looks_wrong_is_said_once_and_not_before_training_has_settled(
    numbers: dict[str, float], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    guards = Guards(BilevelConfig(num_steps=1000), "fit demo round 1")
    with caplog.at_level(logging.WARNING):
        guards.check_look(SETTLED_STEPS - 1, LOOK | numbers)
        assert not caplog.messages
        guards.check_look(SETTLED_STEPS, LOOK)
        assert not caplog.messages
        for step in (SETTLED_STEPS, 2 * SETTLED_STEPS):
            guards.check_look(step, LOOK | numbers)
    assert len(caplog.messages) == 1
    assert said in caplog.messages[0]
    assert "bilevel." in caplog.messages[0] or "lower" in caplog.messages[0]


def test_the_last_look_of_a_short_job_is_judged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        Guards(BilevelConfig(num_steps=5), "fit").check_look(5, LOOK | {"probe_score_std": 0.0})
    assert "nearly constant" in caplog.text


def test_too_few_validation_rows_are_refused() -> None:
    check_validation_rows(MIN_VALIDATION_ROWS)
    with pytest.raises(ValueError, match=r"has 1 rows.*ingest.validation.source"):
        check_validation_rows(1)
