"""The cheap exact hypergradient against closed forms, explicit mixed second derivatives, and its own symmetries (float64)."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import product

import pytest
import torch

from bliss_ops.bilevel import hypergradient, ihvp
from bliss_ops.bilevel.objective import effective_sample_size, sample_weights
from bliss_ops.bilevel.vectors import inner_product, norm
from bliss_ops.config import BilevelConfig
from bliss_ops.training.workers import ALONE, Workers
from tests.bilevel.problems import (
    NO_FLOOR,
    direction,
    explicit_alignments,
    explicit_gradient,
    language_model,
    lower_level,
    relative_error,
    score_model,
    tokens,
)

CHOICES = list(product(["tiny-neox-64", "tiny-llama-96"], ["softmax", "naive"], ["linear", "sigmoid"], ["mean", "attention"]))


@dataclass(frozen=True)
class Quadratic:
    """L_i = (p - c_i)' A_i (p - c_i) / 2 in the place of a language model's losses."""

    point: torch.Tensor
    centre_BD: torch.Tensor
    matrix_BDD: torch.Tensor
    config: BilevelConfig = field(default_factory=BilevelConfig)
    workers: Workers = ALONE

    @property
    def parameters(self) -> list[torch.Tensor]:
        return [self.point]

    def micro_batches(self) -> Iterator[tuple[slice, torch.Tensor]]:
        yield slice(0, 2), torch.arange(2)
        yield slice(2, None), torch.arange(2, len(self.centre_BD))

    def differentiable(self, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        gap_mD = self.point - self.centre_BD[rows]
        return torch.einsum("md,mde,me->m", gap_mD, self.matrix_BDD[rows], gap_mD) / 2, self.point.new_zeros(())


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_quadratic_bilevel_problem_has_the_closed_form_hypergradient(temperature: float) -> None:
    """f = |p - t|^2 / 2: p*(h) is a linear solve, so df/dh is known without any approximation."""
    torch.manual_seed(0)
    num, size = 5, 4
    config = BilevelConfig(**NO_FLOOR, temperature=temperature)
    centre_BD, target_D = torch.randn(num, size, dtype=torch.float64), torch.randn(size, dtype=torch.float64)
    root_BDD = torch.randn(num, size, size, dtype=torch.float64)
    matrix_BDD = root_BDD @ root_BDD.mT + torch.eye(size)
    score_B = torch.randn(num, dtype=torch.float64, requires_grad=True)

    def solution(weight_B: torch.Tensor) -> torch.Tensor:
        weighted = weight_B[:, None, None] * matrix_BDD
        return torch.linalg.solve(weighted.sum(0), (weighted @ centre_BD[:, :, None]).sum(0)[:, 0])

    outer = (solution(sample_weights(score_B, config)) - target_D).square().sum() / 2
    (expected_B,) = torch.autograd.grad(outer, score_B)

    weight_B = sample_weights(score_B, config).detach()
    optimum = solution(weight_B).requires_grad_()
    lower = Quadratic(optimum, centre_BD, matrix_BDD)
    product_of = partial(curvature_of, lower, weight_B)
    z = ihvp.conjugate_gradient([(optimum - target_D).detach()], product_of, 0.0, size)
    found = hypergradient.double_backward(lower, weight_B, z)
    found_B, _ = hypergradient.score_gradient(score_B, lambda leaf_B: sample_weights(leaf_B, config), found.alignment_b)
    assert norm(found.gradient) < 1e-9  # p* is the optimum
    torch.testing.assert_close(found_B, expected_B, rtol=1e-8, atol=1e-10)


def curvature_of(lower: Quadratic, weight_B: torch.Tensor, vector: list[torch.Tensor]) -> list[torch.Tensor]:
    curvature = hypergradient.double_backward(lower, weight_B, vector, curvature=True).curvature
    assert curvature is not None
    return curvature


@pytest.mark.parametrize(("shape", "weights", "head", "pooling"), CHOICES)
def test_transformer_agrees_with_explicit_mixed_second_derivatives(shape: str, weights: str, head: str, pooling: str) -> None:
    """-(d^2 g / d theta_s d theta_p) z, with the mixed block from an explicit graph through both models."""
    proxy, score, input_ids_BT = language_model(shape), score_model(shape, head=head, pooling=pooling), tokens()
    lower = lower_level(proxy, input_ids_BT, weights=weights, l2_weight=1e-2, temperature=0.7)
    z, parameters = direction(proxy), list(score.parameters())

    gradient = explicit_gradient(lower, sample_weights(score(input_ids_BT), lower.config))  # theta_s's graph stays in g here
    mixed = torch.autograd.grad(inner_product(gradient, z), parameters, materialize_grads=True)

    score_B = score(input_ids_BT)
    found = hypergradient.double_backward(lower, sample_weights(score_B, lower.config).detach(), z)
    coefficient_B, _ = hypergradient.score_gradient(score_B, lambda leaf_B: sample_weights(leaf_B, lower.config), found.alignment_b)
    hyper = torch.autograd.grad(score_B, parameters, coefficient_B, materialize_grads=True)
    assert relative_error(hyper, [-part for part in mixed]) < 1e-8
    assert relative_error(found.gradient, gradient) < 1e-12


def test_alignments_are_per_sequence_inner_products() -> None:
    proxy, input_ids_BT = language_model(), tokens()
    z, weight_B = direction(proxy), torch.rand(6, dtype=torch.float64)
    found_B = hypergradient.double_backward(lower_level(proxy, input_ids_BT), weight_B, z).alignment_b
    torch.testing.assert_close(found_B, explicit_alignments(proxy, input_ids_BT, z), rtol=1e-9, atol=1e-11)


def test_permuting_the_batch_permutes_the_alignments_and_keeps_the_hypergradient() -> None:
    proxy, score, input_ids_BT, order = language_model(), score_model(), tokens(), torch.tensor([3, 1, 5, 0, 4, 2])
    z = direction(proxy)

    def both(rows_BT: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        lower, score_B = lower_level(proxy, rows_BT), score(rows_BT)
        alignment_B = hypergradient.double_backward(lower, sample_weights(score_B, lower.config).detach(), z).alignment_b
        coefficient_B, _ = hypergradient.score_gradient(score_B, lambda leaf_B: sample_weights(leaf_B, lower.config), alignment_B)
        return alignment_B, torch.autograd.grad(score_B, list(score.parameters()), coefficient_B, materialize_grads=True)

    (alignment_B, gradient), (permuted_B, permuted_gradient) = both(input_ids_BT), both(input_ids_BT[order])
    torch.testing.assert_close(permuted_B, alignment_B[order], rtol=1e-9, atol=1e-11)
    assert relative_error(permuted_gradient, gradient) < 1e-9


def test_adding_a_constant_to_every_score_changes_nothing() -> None:
    torch.manual_seed(0)
    score_B, alignment_B = 3 * torch.randn(2, 16, dtype=torch.float64)
    for config in (BilevelConfig(), BilevelConfig(**NO_FLOOR)):
        weights_of = partial(sample_weights, config=config)
        (gradient_B, weight_B), (moved_B, moved_weight_B) = (
            hypergradient.score_gradient(scores_B, weights_of, alignment_B) for scores_B in (score_B, score_B + 7.0)
        )
        torch.testing.assert_close(moved_weight_B, weight_B, rtol=1e-9, atol=0)
        torch.testing.assert_close(moved_B, gradient_B, rtol=1e-8, atol=1e-12)
        assert abs(float(gradient_B.sum())) < 1e-12


@pytest.mark.parametrize("floor", [0.1, 0.5, 0.95])
@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0, 3000.0])
def test_effective_sample_size_is_held_at_its_floor(spread: float, floor: float) -> None:
    torch.manual_seed(0)
    score_B = spread * torch.randn(32, dtype=torch.float64)
    size = effective_sample_size(sample_weights(score_B, BilevelConfig(min_effective_sample_size=floor)))
    unguarded = effective_sample_size(sample_weights(score_B, BilevelConfig(**NO_FLOOR)))
    assert size == pytest.approx(max(floor, unguarded), rel=1e-6)
