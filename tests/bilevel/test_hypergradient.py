"""The cheap exact hypergradient against closed forms, explicit mixed second derivatives, and its own symmetries (float64)."""

import pytest
import torch

from bliss_ops.bilevel import hypergradient
from bliss_ops.bilevel.objective import effective_sample_size, regulariser, sample_weights
from bliss_ops.config import BilevelConfig
from bliss_ops.models import language
from bliss_ops.models.score import ScoreModel

NO_FLOOR = BilevelConfig(min_effective_sample_size=0.0)


@pytest.fixture
def models() -> tuple[torch.nn.Module, torch.nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    proxy = language.build("tiny-neox-64", vocab_size=64, sequence_length=12, seed=1).double()
    score = ScoreModel(language.build("tiny-neox-64", vocab_size=64, sequence_length=12, seed=2)).double()
    torch.nn.init.normal_(score.head.weight, std=3.0)
    return proxy, score, torch.randint(0, 64, (6, 12))


def losses(proxy: torch.nn.Module, batch_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    parameters = list(proxy.parameters())
    logits_BTV = proxy(input_ids=batch_BT).logits
    sums_B, counts_B = language.token_loss_sums(logits_BTV, batch_BT)
    return sums_B / counts_B, regulariser(logits_BTV, None, parameters, BilevelConfig(l2_weight=1e-2))


def relative_error(found: list[torch.Tensor], expected: list[torch.Tensor]) -> float:
    difference = hypergradient.norm([a - b for a, b in zip(found, expected, strict=True)])
    return difference / hypergradient.norm(expected)


def test_quadratic_bilevel_problem_has_the_closed_form_hypergradient() -> None:
    """L_i = (p - c_i)' A_i (p - c_i) / 2, f = |p - t|^2 / 2: p*(h) is a linear solve, so df/dh is known without any approximation."""
    torch.manual_seed(0)
    num, size = 5, 4
    centre_BD, target_D = torch.randn(num, size, dtype=torch.float64), torch.randn(size, dtype=torch.float64)
    root_BDD = torch.randn(num, size, size, dtype=torch.float64)
    matrix_BDD = root_BDD @ root_BDD.mT + torch.eye(size)
    score_B = torch.randn(num, dtype=torch.float64, requires_grad=True)

    def solution(weight_B: torch.Tensor) -> torch.Tensor:
        weighted = weight_B[:, None, None] * matrix_BDD
        return torch.linalg.solve(weighted.sum(0), (weighted @ centre_BD[:, :, None]).sum(0)[:, 0])

    outer = (solution(sample_weights(score_B, NO_FLOOR)) - target_D).square().sum() / 2
    (expected_B,) = torch.autograd.grad(outer, score_B)

    weight_B = sample_weights(score_B, NO_FLOOR)
    optimum = solution(weight_B.detach()).requires_grad_()
    hessian = (weight_B.detach()[:, None, None] * matrix_BDD).sum(0)
    z = torch.linalg.solve(hessian, (optimum - target_D).detach())

    def losses_of() -> tuple[torch.Tensor, torch.Tensor]:
        gap_BD = optimum - centre_BD
        return torch.einsum("bd,bde,be->b", gap_BD, matrix_BDD, gap_BD) / 2, optimum.new_zeros(())

    alignment_B, gradient, _ = hypergradient.exact_alignment(losses_of, weight_B, [optimum], [z])
    (found_B,) = torch.autograd.grad(hypergradient.surrogate(weight_B, alignment_B), score_B)
    assert hypergradient.norm(gradient) < 1e-9  # p* is the optimum
    torch.testing.assert_close(found_B, expected_B, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("seed", [0, 1])
def test_transformer_agrees_with_explicit_mixed_second_derivatives(models: tuple, seed: int) -> None:
    """-(d^2 g / d theta_s d theta_p) z, with the mixed block from an explicit graph through both models."""
    proxy, score, batch_BT = models
    parameters = list(proxy.parameters())
    torch.manual_seed(seed)
    z = [torch.randn_like(parameter) for parameter in parameters]

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        loss_B, penalty = losses(proxy, batch_BT)
        weight_B = sample_weights(score(batch_BT), NO_FLOOR)  # theta_s's graph stays in g here
        gradient = torch.autograd.grad((weight_B * loss_B).sum() + penalty, parameters, create_graph=True)
        mixed = torch.autograd.grad(hypergradient.inner_product(gradient, z), list(score.parameters()))
    expected = [-m for m in mixed]

    weight_B = sample_weights(score(batch_BT), NO_FLOOR)
    alignment_B, found_gradient, _ = hypergradient.exact_alignment(lambda: losses(proxy, batch_BT), weight_B, parameters, z)
    found = torch.autograd.grad(hypergradient.surrogate(weight_B, alignment_B), list(score.parameters()))
    assert relative_error(list(found), expected) < 1e-8
    assert relative_error(found_gradient, [g.detach() for g in gradient]) < 1e-12


def test_alignments_are_per_sequence_inner_products(models: tuple) -> None:
    proxy, score, batch_BT = models
    parameters = list(proxy.parameters())
    z = [torch.randn_like(parameter) for parameter in parameters]
    one_by_one = []
    for row in batch_BT:
        gradient = torch.autograd.grad(losses(proxy, row[None])[0].sum(), parameters)
        one_by_one.append(float(hypergradient.inner_product(gradient, z)))
    expected_B = torch.tensor(one_by_one, dtype=torch.float64)
    weight_B = sample_weights(score(batch_BT), NO_FLOOR)

    exact_B, _, _ = hypergradient.exact_alignment(lambda: losses(proxy, batch_BT), weight_B, parameters, z)
    torch.testing.assert_close(exact_B, expected_B, rtol=1e-9, atol=1e-11)

    before = [parameter.detach().clone() for parameter in parameters]
    difference_B, _, _ = hypergradient.central_difference_alignment(
        lambda: losses(proxy, batch_BT), weight_B, parameters, z, shift_norm=1e-4
    )
    torch.testing.assert_close(difference_B, expected_B, rtol=1e-6, atol=1e-8)
    assert all(torch.equal(a, b) for a, b in zip(before, parameters, strict=True)), "the proxy must come back bit for bit"


def test_central_differences_in_float32_stay_within_their_stated_accuracy(models: tuple) -> None:
    proxy, score, batch_BT = (models[0].float(), models[1].float(), models[2])
    parameters = list(proxy.parameters())
    weight_B = sample_weights(score(batch_BT), NO_FLOOR)
    z = [torch.randn_like(parameter) for parameter in parameters]
    exact_B, _, _ = hypergradient.exact_alignment(lambda: losses(proxy, batch_BT), weight_B, parameters, z)
    found_B, _, _ = hypergradient.central_difference_alignment(lambda: losses(proxy, batch_BT), weight_B, parameters, z)
    assert relative_error([found_B], [exact_B]) < 5e-3


def test_permuting_the_batch_permutes_the_alignments_and_keeps_the_hypergradient(models: tuple) -> None:
    proxy, score, batch_BT = models
    parameters, order = list(proxy.parameters()), torch.tensor([3, 1, 5, 0, 4, 2])
    z = [torch.randn_like(parameter) for parameter in parameters]

    def both(rows_BT: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        weight_B = sample_weights(score(rows_BT), NO_FLOOR)
        alignment_B, _, _ = hypergradient.exact_alignment(lambda: losses(proxy, rows_BT), weight_B, parameters, z)
        return alignment_B, list(torch.autograd.grad(hypergradient.surrogate(weight_B, alignment_B), list(score.parameters())))

    (alignment_B, gradient), (permuted_B, permuted_gradient) = both(batch_BT), both(batch_BT[order])
    torch.testing.assert_close(permuted_B, alignment_B[order], rtol=1e-9, atol=1e-11)
    assert relative_error(permuted_gradient, gradient) < 1e-9


def test_adding_a_constant_to_every_score_changes_nothing() -> None:
    score_B = torch.randn(16, dtype=torch.float64)
    torch.testing.assert_close(sample_weights(score_B + 7.0, BilevelConfig()), sample_weights(score_B, BilevelConfig()), rtol=1e-9, atol=0)


@pytest.mark.parametrize("spread", [0.0, 1.0, 30.0, 3000.0])
def test_effective_sample_size_is_held_at_its_floor(spread: float) -> None:
    torch.manual_seed(0)
    weight_B = sample_weights(spread * torch.randn(32, dtype=torch.float64), BilevelConfig(min_effective_sample_size=0.5))
    assert effective_sample_size(weight_B) >= 0.5 - 1e-9
    assert float(weight_B.sum()) == pytest.approx(1.0)


@pytest.mark.parametrize("direction", ["proxy_reference", "reference_proxy"])
def test_kl_term_is_zero_for_equal_models_and_equals_its_definition(direction: str) -> None:
    torch.manual_seed(0)
    proxy_BTV, reference_BTV = torch.randn(2, 5, 7, dtype=torch.float64), torch.randn(2, 5, 7, dtype=torch.float64)
    config = BilevelConfig(kl_weight=2.0, kl_direction=direction)
    assert float(regulariser(proxy_BTV, proxy_BTV, [], config)) == pytest.approx(0.0, abs=1e-12)
    p, r = proxy_BTV[:, :-1].softmax(-1), reference_BTV[:, :-1].softmax(-1)
    first, second = (p, r) if direction == "proxy_reference" else (r, p)
    assert float(regulariser(proxy_BTV, reference_BTV, [], config)) == pytest.approx(
        2.0 * float((first * (first / second).log()).sum(-1).mean())
    )
