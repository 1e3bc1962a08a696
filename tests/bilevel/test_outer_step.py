"""One outer step: exact resume, what is taken from which batch, and what the settings of the score update do."""

import copy
import math
from typing import Any

import pytest
import torch

from bliss_ops.bilevel import score_step
from bliss_ops.bilevel.objective import effective_sample_size
from bliss_ops.bilevel.outer_step import outer_step, validation_gradient
from bliss_ops.bilevel.state import Batch, BilevelState, ValidationBatch
from bliss_ops.bilevel.vectors import norm
from bliss_ops.config import BilevelConfig
from bliss_ops.models.score import ScoreModel
from bliss_ops.training.state import TrainState, adamw
from tests.bilevel.problems import LENGTH, explicit_alignments, language_model, relative_error, sequence_losses, tokens

SOLVERS = ("lookahead", "adam_diagonal", "identity", "warm_start", "conjugate_gradient", "neumann", "released")


def configured(**settings: Any) -> BilevelConfig:
    return BilevelConfig(**{"batch_sequences": 8, "score_pooling": "mean", "num_solver_steps": 2, **settings})


def new_state(config: BilevelConfig) -> BilevelState:
    proxy, backbone = language_model().float(), language_model(seed=2).float()
    score = ScoreModel(backbone, config.score_head, pooling=config.score_pooling, num_heads=2)
    reference = language_model(seed=3).float().requires_grad_(False) if config.kl_weight else None
    return BilevelState(
        TrainState(proxy, adamw(proxy, config.proxy_learning_rate, 0.0)),
        TrainState(score, adamw(score, config.score_learning_rate, 0.0)),
        reference,
    )


def batch(position: int) -> Batch:
    rows_BT = tokens(8, seed=100 + position)
    return Batch(rows_BT, 8, rows_BT)


def validation(position: int = 0) -> ValidationBatch:
    input_ids_BT = tokens(4, seed=1000 + position)
    return ValidationBatch(input_ids_BT, input_ids_BT, torch.full((4,), 0.25))


def advance(state: BilevelState, config: BilevelConfig, steps: range) -> list[dict[str, float]]:
    numbers = []
    for step in steps:
        batches = [batch(step * config.num_inner_steps + i) for i in range(config.num_inner_steps)]
        inner = batches if config.outer_batch == "trained" else batches[:-1]
        numbers.append(outer_step(state, inner, batches[-1], validation(step), config))
    return numbers


def weights_of(train_state: TrainState) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in train_state.model.parameters()]


VARIANTS: list[dict[str, Any]] = [
    *({"ihvp": solver} for solver in SOLVERS),
    {"stale_denominator": True, "ihvp": "released", "score_head": "sigmoid"},
    {"num_inner_steps": 3, "stale_denominator": True, "kl_weight": 0.1},
    {"outer_batch": "trained", "alignment": "double_backward", "weights": "naive"},
    {"num_replays": 2, "replay_batches": 2},
    {"alignment": "forward_mode", "score_pooling": "attention", "l2_weight": 1e-3},
]


@pytest.mark.parametrize("settings", VARIANTS, ids=lambda settings: "-".join(map(str, settings.values())))
def test_a_restored_state_goes_on_bit_for_bit(settings: dict[str, Any]) -> None:
    config = configured(**settings)
    undisturbed = new_state(config)
    expected = advance(undisturbed, config, range(2))
    kept = {name: tensor.clone() for name, tensor in undisturbed.tensors().items()}
    expected += advance(undisturbed, config, range(2, 4))
    resumed = new_state(config)
    resumed.restore(kept)
    assert resumed.step == 2
    assert advance(resumed, config, range(2, 4)) == expected[2:]
    ours, theirs = resumed.tensors(), undisturbed.tensors()
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0, equal_nan=True)  # no denominator yet: NaN
    assert all(math.isfinite(value) for numbers in expected for value in numbers.values())


def test_micro_batches_change_nothing_but_rounding() -> None:
    results = []
    for size in (64, 3, 1):
        config = configured(micro_batch_sequences=size, kl_weight=0.1, num_inner_steps=2, ihvp="warm_start", alignment="double_backward")
        state = new_state(config)
        for part in (state.proxy.model, state.score.model, state.reference):
            assert part is not None
            part.double()
        numbers = advance(state, config, range(1))
        results.append((numbers[0], weights_of(state.proxy), weights_of(state.score)))
    for numbers, proxy, score in results[1:]:
        assert numbers == pytest.approx(results[0][0], rel=1e-6)
        assert relative_error(proxy, results[0][1]) < 1e-6
        assert relative_error(score, results[0][2]) < 1e-6


def test_a_fresh_batch_is_weighed_before_the_proxy_trains_on_it_and_a_trained_one_after() -> None:
    """Its losses tell: those of the proxy before, or after, the step on that very batch."""
    rows_BT = batch(0).input_ids_bT
    for setting in ("fresh", "trained"):
        config = configured(outer_batch=setting)
        state = new_state(config)
        before = float(sequence_losses(state.proxy.model, rows_BT).mean().detach())
        numbers = advance(state, config, range(1))[0]
        after = float(sequence_losses(state.proxy.model, rows_BT).mean().detach())
        assert after < before - 1e-3
        assert numbers["proxy_loss"] == pytest.approx(before if setting == "fresh" else after, abs=2e-4)
        assert state.proxy.step == 1


def test_inner_steps_train_the_proxy_first_and_the_outer_quantities_are_of_the_last() -> None:
    config = configured(num_inner_steps=3)
    state = new_state(config)
    advance(state, config, range(2))
    assert (state.proxy.step, state.score.step, state.step) == (6, 2, 2)


def test_the_validation_gradient_is_that_of_the_weighted_token_mean() -> None:
    """Rows of different lengths and weights: f is the mean over counted tokens, and its gradient is plain autograd's."""
    model = language_model()
    input_ids_BT, labels_BT = tokens(3), tokens(3).clone()
    labels_BT[0, 4:] = -100
    labels_BT[1, 9:] = -100
    row_weight_B, counts_B = torch.tensor([1.0, 2.0, 0.5]).double(), torch.tensor([3.0, 8.0, LENGTH - 1]).double()
    weight_B = row_weight_B * counts_B / (row_weight_B * counts_B).sum()
    log_p_BTV = model(input_ids=input_ids_BT).logits.log_softmax(-1)
    token_losses = [
        float(row_weight_B[row]) * -log_p_BTV[row, t, labels_BT[row, t + 1]]
        for row in range(3)
        for t in range(LENGTH - 1)
        if labels_BT[row, t + 1] != -100
    ]
    expected = torch.stack(token_losses).sum() / (row_weight_B * counts_B).sum()
    for size in (1, 2, 64):
        loss, gradient = validation_gradient(model, ValidationBatch(input_ids_BT, labels_BT, weight_B), size)
        assert loss == pytest.approx(expected.item(), rel=1e-12)
        assert relative_error(gradient, torch.autograd.grad(expected, list(model.parameters()), retain_graph=True)) < 1e-10


@pytest.mark.parametrize("temperature", [1.0, 0.01])
def test_the_floor_and_the_temperature_shape_the_weights(temperature: float) -> None:
    for floor in (0.0, 0.5):
        config = configured(min_effective_sample_size=floor, temperature=temperature, score_learning_rate=3e-3)
        numbers = advance(new_state(config), config, range(6))
        assert all(row["effective_sample_size"] >= floor - 1e-6 for row in numbers)
        if floor == 0.0:
            assert {row["batch_temperature"] for row in numbers} == {temperature}
            assert (numbers[-1]["effective_sample_size"] < 0.4) == (temperature == 0.01)
        else:
            assert (numbers[-1]["batch_temperature"] > temperature) == (temperature == 0.01)


def test_distillation_pulls_the_scores_to_the_standardised_alignments() -> None:
    """On one batch looked at again and again; the proxy stands still so that its alignments do."""
    correlations = {}
    for weight in (0.0, 10.0):
        config = configured(distillation_weight=weight, proxy_learning_rate=1e-12, score_learning_rate=1e-3, ihvp="identity")
        state, fixed = new_state(config), validation()
        for _ in range(40):
            numbers = outer_step(state, [], batch(0), fixed, config)
        with torch.no_grad():
            score_B = state.score.model(batch(0).input_ids_bT)
        alignment_B = explicit_alignments(state.proxy.model, batch(0).input_ids_bT, state.z).detach()
        correlations[weight] = float(torch.corrcoef(torch.stack([score_B, alignment_B]))[0, 1])
        spread = (numbers["score_std"], float(score_B.std()))
    assert correlations[10.0] > 0.95, correlations
    assert spread == pytest.approx((1.0, 1.0), abs=0.4), "the scores take on the targets' scale as well"


@pytest.mark.parametrize("alignment", ["central_difference", "double_backward", "forward_mode"])
@pytest.mark.parametrize("settings", [{"ihvp": "warm_start"}, {"ihvp": "conjugate_gradient"}, {"outer_batch": "trained"}], ids=str)
def test_the_reference_sees_a_batch_once(settings: dict[str, Any], alignment: str) -> None:
    config = configured(kl_weight=0.1, micro_batch_sequences=3, alignment=alignment, **settings)
    state, rows = new_state(config), []
    assert state.reference is not None
    state.reference.base_model.register_forward_hook(lambda *seen: rows.append(len(seen[-1].last_hidden_state)))
    advance(state, config, range(2))
    assert rows == [3, 3, 2] * 2


@pytest.mark.parametrize("normalised", [True, False])
def test_normalised_alignments_do_not_know_the_scale_of_z(normalised: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same run with z a hundred times as long: the same gradient of the score model, but only when normalised."""
    sizes = []
    for factor in (1.0, 100.0):
        config = configured(
            normalise_alignments=normalised, distillation_weight=0.0, ihvp="identity", gradient_smoothing=0.0, max_hypergradient_norm=1e6
        )
        state, scaled_validation = new_state(config), validation()
        state.score.model.head.weight.data.normal_(generator=torch.Generator().manual_seed(0))
        scaled_validation.weight_b.mul_(factor)
        numbers = outer_step(state, [], batch(0), scaled_validation, config)
        sizes.append(numbers["hypergradient_norm"])
    assert sizes[1] / sizes[0] == pytest.approx(1.0 if normalised else 100.0, rel=1e-2)


def test_the_hypergradient_is_clipped_and_its_norm_before_clipping_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[float] = []
    real = score_step.step_with

    def recording(optimizer: torch.optim.Optimizer, parameters: Any, gradient: Any) -> None:
        taken.append(norm(gradient))
        real(optimizer, parameters, gradient)

    monkeypatch.setattr(score_step, "step_with", recording)
    logged = {}
    for limit in (1e6, 1e-3):
        config = configured(max_hypergradient_norm=limit)
        taken.clear()
        logged[limit] = advance(new_state(config), config, range(1))[0]["hypergradient_norm"]
        assert taken[0] == pytest.approx(min(limit, logged[limit]), rel=1e-5)
    assert logged[1e6] == logged[1e-3] > 1e-3


def test_the_score_models_learning_rate_falls_to_zero_over_the_last_steps() -> None:
    config = configured(num_steps=8, score_decay=0.5, score_learning_rate=0.1, num_replays=1)
    rates = [score_step.learning_rate(step, config) for step in range(10)]
    assert rates == pytest.approx([0.1, 0.1, 0.1, 0.1, 0.1, 0.075, 0.05, 0.025, 0.0, 0.0])
    assert {score_step.learning_rate(step, configured(num_steps=8, score_decay=0.0)) for step in range(8)} == {3e-4}
    state = new_state(config)
    advance(state, config, range(7))
    assert [group["lr"] for group in state.score.optimizer.param_groups] == pytest.approx([0.05] * 2)
    assert state.proxy.optimizer.param_groups[0]["lr"] == config.proxy_learning_rate


def test_an_untrained_score_model_weighs_every_sequence_alike() -> None:
    config = configured()
    numbers = advance(new_state(config), config, range(1))[0]
    assert numbers["score_std"] == 0
    assert numbers["effective_sample_size"] == pytest.approx(1.0)
    assert effective_sample_size(torch.tensor([1.0, 0.0, 0.0, 0.0])) == 0.25


def test_the_proxy_follows_the_weighted_gradient_and_the_score_model_is_not_in_it() -> None:
    """With a rate of nothing for the score model, outer steps are weighted AdamW steps of the proxy and the scores stay."""
    config = configured(score_learning_rate=1e-12, distillation_weight=0.0, alignment="double_backward")
    state = new_state(config)
    expected = copy.deepcopy(state.proxy)
    for step in range(2):
        loss = sequence_losses(expected.model, batch(step).input_ids_bT).mean()
        loss.backward()
        expected.optimizer.step()
        expected.optimizer.zero_grad()
    advance(state, config, range(2))
    before = weights_of(TrainState(language_model().float(), expected.optimizer))
    moved = [a - b for a, b in zip(weights_of(expected), before, strict=True)]
    found = [a - b for a, b in zip(weights_of(state.proxy), before, strict=True)]
    assert relative_error(found, moved) < 1e-2  # AdamW turns the rounding of tiny gradients into whole steps
