"""Every solver on an explicit quadratic, where the Hessian is a matrix that can be inverted (float64)."""

from typing import Any

import pytest
import torch

from bliss_ops.bilevel import ihvp
from bliss_ops.bilevel.vectors import Tensors, combination, cosine, norm, scaled
from bliss_ops.config import BilevelConfig
from tests.bilevel.problems import direction, language_model, relative_error

SIZE = 8  # in two tensors of 6 and 2


def vector(flat: torch.Tensor) -> list[torch.Tensor]:
    return [flat[:6].view(2, 3), flat[6:]]


def flat(parts: Tensors) -> torch.Tensor:
    return torch.cat([part.flatten() for part in parts])


@pytest.fixture
def hessian() -> torch.Tensor:
    root = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return root @ root.mT / SIZE + 0.1 * torch.eye(SIZE, dtype=torch.float64)


def no_size() -> None:
    """Before the proxy's first step."""


@pytest.fixture
def gradient_f() -> list[torch.Tensor]:
    return vector(torch.randn(SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64))


def solved(hessian: torch.Tensor, gradient_f: list[torch.Tensor], **settings: Any) -> list[torch.Tensor]:
    def product(v: Tensors) -> list[torch.Tensor]:
        return vector(hessian @ flat(v))

    return ihvp.solve(BilevelConfig(**settings), gradient_f, usual_size=no_size, previous=None, product=product)


@pytest.mark.parametrize("delta", [0.1, 1.0])
def test_conjugate_gradient_solves_in_as_many_steps_as_there_are_dimensions(
    hessian: torch.Tensor, gradient_f: list[torch.Tensor], delta: float
) -> None:
    expected = vector(torch.linalg.solve(hessian + delta * torch.eye(SIZE, dtype=torch.float64), flat(gradient_f)))
    found = solved(hessian, gradient_f, ihvp="conjugate_gradient", damping=delta, num_solver_steps=SIZE)
    assert relative_error(found, expected) < 1e-9
    settings = {"ihvp": "conjugate_gradient", "damping": delta}
    errors = [relative_error(solved(hessian, gradient_f, num_solver_steps=steps, **settings), expected) for steps in (1, 3, 5)]
    assert errors == sorted(errors, reverse=True)
    further = solved(hessian, gradient_f, ihvp="conjugate_gradient", damping=delta, num_solver_steps=50)
    assert relative_error(further, expected) < 1e-9, "steps after the solution must not spoil it"


def test_conjugate_gradient_of_a_zero_gradient_is_zero(hessian: torch.Tensor) -> None:
    assert norm(solved(hessian, vector(torch.zeros(SIZE, dtype=torch.float64)), ihvp="conjugate_gradient")) == 0


def test_neumann_converges_to_the_solution(hessian: torch.Tensor, gradient_f: list[torch.Tensor]) -> None:
    expected = vector(torch.linalg.solve(hessian + torch.eye(SIZE, dtype=torch.float64), flat(gradient_f)))
    settings = {"ihvp": "neumann", "damping": 1.0, "solver_learning_rate": 0.3}
    assert relative_error(solved(hessian, gradient_f, num_solver_steps=100, **settings), expected) < 1e-9
    identity, rate = torch.eye(SIZE, dtype=torch.float64), 0.3
    contraction = identity - rate * (hessian + identity)
    series = sum(rate * torch.linalg.matrix_power(contraction, k) @ flat(gradient_f) for k in range(5))
    assert relative_error(solved(hessian, gradient_f, num_solver_steps=4, **settings), vector(series)) < 1e-12


def test_warm_start_converges_to_the_solution_over_outer_steps(hessian: torch.Tensor, gradient_f: list[torch.Tensor]) -> None:
    config = BilevelConfig(ihvp="warm_start", solver_learning_rate=0.3)
    expected = vector(torch.linalg.solve(hessian + torch.eye(SIZE, dtype=torch.float64), flat(gradient_f)))
    previous: list[torch.Tensor] | None = None
    for _ in range(100):
        z = ihvp.solve(config, gradient_f, usual_size=no_size, previous=previous, product=_never)
        previous = ihvp.descend(z, vector(hessian @ flat(z)), gradient_f, ihvp.damping(config), config.solver_learning_rate)
    assert relative_error(previous, expected) < 1e-9


@pytest.mark.parametrize("num_negative", [1, 8])
def test_conjugate_gradient_stops_where_the_curvature_is_negative(gradient_f: list[torch.Tensor], num_negative: int) -> None:
    values = torch.ones(SIZE, dtype=torch.float64)
    values[:num_negative] = -3.0
    found = solved(torch.diag(values), gradient_f, ihvp="conjugate_gradient", damping=0.5, num_solver_steps=SIZE)
    if num_negative == SIZE:
        assert relative_error(found, gradient_f) == 0
    assert cosine(found, gradient_f) > 0
    assert norm(found) <= 10 * norm(gradient_f)


def test_identity_is_the_gradient_and_adam_divides_by_the_usual_size(gradient_f: list[torch.Tensor]) -> None:
    assert relative_error(solved(torch.zeros(SIZE, SIZE), gradient_f, ihvp="identity"), gradient_f) == 0
    moment = [part.square() + 0.1 for part in gradient_f]
    for setting, delta in ((None, 1e-4), (0.2, 0.2)):
        config = BilevelConfig(ihvp="adam_diagonal", damping=setting)
        found = ihvp.solve(config, gradient_f, usual_size=lambda: [second.sqrt() for second in moment], previous=None, product=_never)
        expected = [part / (second.sqrt() + delta) for part, second in zip(gradient_f, moment, strict=True)]
        assert relative_error(found, expected) < 1e-14
    before = ihvp.solve(BilevelConfig(ihvp="adam_diagonal"), gradient_f, usual_size=no_size, previous=None, product=_never)
    assert relative_error(before, gradient_f) == 0, "before the proxy's first step there is no usual size"


def test_solvers_do_not_hand_out_the_gradient_itself(hessian: torch.Tensor, gradient_f: list[torch.Tensor]) -> None:
    """z is kept for the next step and gradient_f changes in place: they must not share memory."""
    for name in ("identity", "adam_diagonal", "conjugate_gradient", "neumann", "released", "warm_start"):
        z = solved(-5 * hessian, gradient_f, ihvp=name)
        assert all(mine.data_ptr() != theirs.data_ptr() for mine, theirs in zip(z, gradient_f, strict=True)), name


def test_the_residual_is_zero_for_the_solution_at_any_scale(hessian: torch.Tensor, gradient_f: list[torch.Tensor]) -> None:
    damped = hessian + 0.5 * torch.eye(SIZE, dtype=torch.float64)
    exact = vector(torch.linalg.solve(damped, flat(gradient_f)))
    for factor in (1e-6, 1.0, 1e6):
        z = scaled(exact, factor)
        assert ihvp.relative_residual(z, vector(hessian @ flat(z)), gradient_f, 0.5) < 1e-7
        opposite = scaled(z, -1.0)
        assert ihvp.relative_residual(opposite, vector(hessian @ flat(opposite)), gradient_f, 0.5) == 1.0
    # against the definition: |s (H + delta) z - grad f| / |grad f| minimised over s
    image = vector(damped @ flat(gradient_f))
    best = float(flat(image) @ flat(gradient_f) / (flat(image) @ flat(image)))
    expected = norm(combination(scaled(image, best), -1.0, gradient_f)) / norm(gradient_f)
    assert ihvp.relative_residual(gradient_f, vector(hessian @ flat(gradient_f)), gradient_f, 0.5) == pytest.approx(expected, rel=1e-9)
    zero = vector(torch.zeros(SIZE, dtype=torch.float64))
    assert ihvp.relative_residual(zero, zero, gradient_f, 0.5) == 1.0


def test_the_released_z_is_mostly_its_own_constant() -> None:
    """At the size of a model: its three steps are far shorter than the vector they start from."""
    model = language_model()
    gradient_f = direction(model)
    z = ihvp.solve(BilevelConfig(ihvp="released"), gradient_f, usual_size=no_size, previous=None, product=lambda v: scaled(v, 1.0))
    constant = [torch.full_like(part, ihvp.RELEASED_START) for part in gradient_f]
    assert abs(cosine(z, gradient_f)) < 0.1
    assert cosine(z, constant) > 0.98


def _never(_vector: Tensors) -> list[torch.Tensor]:
    raise AssertionError("this solver needs no Hessian-vector product")


def test_lookahead_follows_the_validation_set_and_forgets(gradient_f: list[torch.Tensor]) -> None:
    """z <- rho z + eta clip(g / (sqrt(v) + delta)): a constant gradient takes it to eta / (1 - rho) per coordinate, and no further."""
    config = BilevelConfig(ihvp="lookahead", num_lookahead_steps=10, lookahead_learning_rate=0.01)

    def sizes() -> list[torch.Tensor]:
        return [torch.full_like(g, 1e-2) for g in gradient_f]  # every coordinate is at its limit

    z = None
    for _ in range(200):
        z = ihvp.look_ahead(config, gradient_f, sizes(), z)
    assert z is not None
    torch.testing.assert_close(flat(z), 0.1 * flat(gradient_f).sign(), rtol=1e-6, atol=1e-12)
    assert cosine(z, gradient_f) > 0.5
    small = ihvp.look_ahead(config, scaled(gradient_f, 1e-6), sizes(), None)
    torch.testing.assert_close(flat(small), 0.01 * 1e-6 * flat(gradient_f) / (0.01 + 1e-6), rtol=1e-9, atol=0)
