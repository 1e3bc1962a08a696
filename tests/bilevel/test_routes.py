"""The three routes to alignments, training gradient and Hessian-vector product, against plain autograd (float64 but where said)."""

import dataclasses
from typing import Any

import pytest
import torch

from bliss_ops.bilevel import hypergradient, lower_level
from bliss_ops.bilevel.hypergradient import SHIFT_BFLOAT16, Alignments
from bliss_ops.bilevel.vectors import scaled
from tests.bilevel import problems
from tests.bilevel.problems import direction, explicit_gradient, language_model, relative_error, tokens

EXACT = ("double_backward", "forward_mode")
REGULARISERS: list[dict[str, Any]] = [
    {},
    {"l2_weight": 1e-2},
    {"kl_weight": 0.5, "kl_direction": "proxy_reference"},
    {"kl_weight": 0.5, "kl_direction": "reference_proxy", "l2_weight": 1e-2},
]
SMALL_SHIFT = 1e-4  # in float64: eps |z|, where truncation and rounding are both out of sight


@pytest.fixture(scope="module", name="weight_B")
def _weights() -> torch.Tensor:
    return torch.softmax(torch.randn(6, generator=torch.Generator().manual_seed(5), dtype=torch.float64), 0)


def found_by(route: str, weight_B: torch.Tensor, *, curvature: bool = True, **settings: Any) -> Alignments:
    """The route's findings on the one problem all of these tests share; the reference is of another width than the proxy."""
    proxy = language_model(settings.pop("shape", "tiny-neox-64"))
    reference = language_model("tiny-neox-96", seed=4).requires_grad_(False) if "kl_weight" in settings else None
    lower = problems.lower_level(proxy, tokens(), reference, **settings)
    return hypergradient.route(route)(lower, weight_B, direction(proxy), curvature=curvature)


@pytest.mark.parametrize("shape", ["tiny-neox-64", "tiny-llama-96"])
@pytest.mark.parametrize("regularisers", REGULARISERS, ids=["plain", "l2", "kl-forward", "kl-reverse-l2"])
def test_every_route_finds_what_plain_autograd_finds(weight_B: torch.Tensor, shape: str, regularisers: dict[str, Any]) -> None:
    proxy = language_model(shape)
    reference = language_model("tiny-neox-96", seed=4).requires_grad_(False) if "kl_weight" in regularisers else None
    z = direction(proxy)
    lower = problems.lower_level(proxy, tokens(), reference, **regularisers)
    alignment_B = problems.explicit_alignments(proxy, tokens(), z)
    gradient = explicit_gradient(lower, weight_B)
    product = problems.explicit_product(lower, weight_B, z)
    for route in EXACT:
        for curvature in (False, True):
            found = hypergradient.route(route)(lower, weight_B, z, curvature=curvature)
            assert relative_error([found.alignment_b], [alignment_B]) < 1e-10, route
            assert relative_error(found.gradient, gradient) < 1e-10, route
        assert found.curvature is not None
        assert relative_error(found.curvature, product) < 1e-9, route
    shifted = problems.lower_level(proxy, tokens(), reference, shift_norm=SMALL_SHIFT, **regularisers)
    found = hypergradient.central_difference(shifted, weight_B, z, curvature=True)
    assert found.curvature is not None
    assert relative_error([found.alignment_b], [alignment_B]) < 1e-6
    assert relative_error(found.gradient, gradient) < 1e-6
    assert relative_error(found.curvature, product) < 1e-6
    one_sided = hypergradient.central_difference(shifted, weight_B, z)
    assert one_sided.curvature is None
    assert relative_error([one_sided.alignment_b], [alignment_B]) < 1e-6
    assert relative_error(one_sided.gradient, gradient) < 1e-3  # taken at theta - eps z


def test_the_product_is_the_change_of_the_gradient_along_z(weight_B: torch.Tensor) -> None:
    """Against no graph at all: (G(theta + t z) - G(theta - t z)) / 2t with gradients of first order."""
    proxy = language_model()
    lower, z, step = problems.lower_level(proxy, tokens(), l2_weight=1e-2), direction(proxy), 1e-7
    sides = []
    for sign in (1, -1):
        moved = language_model()
        with torch.no_grad():
            for parameter, along in zip(moved.parameters(), z, strict=True):
                parameter += sign * step * along
        sides.append(explicit_gradient(dataclasses.replace(lower, proxy=moved), weight_B))
    expected = [(plus - minus) / (2 * step) for plus, minus in zip(*sides, strict=True)]
    for route in hypergradient.ROUTES:
        config = lower.config.model_copy(update={"alignment": route, "shift_norm": SMALL_SHIFT})
        product = hypergradient.curvature_product(dataclasses.replace(lower, config=config), weight_B, z)
        assert relative_error(product, expected) < 1e-6, route


@pytest.mark.parametrize("route", hypergradient.ROUTES)
def test_no_route_knows_the_micro_batches(weight_B: torch.Tensor, route: str) -> None:
    settings = {"kl_weight": 0.5, "l2_weight": 1e-2, "shift_norm": SMALL_SHIFT}
    whole = found_by(route, weight_B, micro_batch_sequences=64, **settings)
    assert whole.curvature is not None
    tolerance = 1e-7 if route == "central_difference" else 1e-12  # a sum's rounding, divided by the shift
    for size in (1, 2, 5):
        found = found_by(route, weight_B, micro_batch_sequences=size, **settings)
        assert found.curvature is not None
        assert relative_error([found.alignment_b], [whole.alignment_b]) < tolerance
        assert relative_error([found.loss_b], [whole.loss_b]) < 1e-12
        assert relative_error(found.gradient, whole.gradient) < 1e-12
        assert relative_error(found.curvature, whole.curvature) < tolerance


def test_central_differences_leave_the_proxy_as_it_was_bit_for_bit(weight_B: torch.Tensor) -> None:
    proxy = language_model().float()
    before = [parameter.detach().clone() for parameter in proxy.parameters()]
    lower, z = problems.lower_level(proxy, tokens()), direction(proxy)
    hypergradient.central_difference(lower, weight_B.float(), z, curvature=True)
    hypergradient.alignments_only(lower, z)
    with pytest.raises(RuntimeError):  # also when the pass itself fails
        hypergradient.central_difference(lower, torch.ones(5), z)
    assert all(torch.equal(a, b) for a, b in zip(before, proxy.parameters(), strict=True))


@pytest.mark.parametrize("shape", ["tiny-neox-64", "tiny-llama-96"])
def test_central_differences_in_float32_stay_within_their_stated_accuracy(weight_B: torch.Tensor, shape: str) -> None:
    exact = found_by("double_backward", weight_B, shape=shape)
    proxy = language_model(shape).float()
    z = [along.float() for along in direction(language_model(shape))]
    lower = problems.lower_level(proxy, tokens())
    found = hypergradient.central_difference(lower, weight_B.float(), z, curvature=True)
    assert found.curvature is not None
    assert exact.curvature is not None
    assert relative_error([found.alignment_b.double()], [exact.alignment_b]) < 5e-3
    assert relative_error([hypergradient.alignments_only(lower, z).double()], [exact.alignment_b]) < 5e-3
    assert relative_error(found.gradient, [part.float() for part in exact.gradient]) < 5e-3
    assert relative_error(found.curvature, [part.float() for part in exact.curvature]) < 5e-2


def test_the_scale_of_z_is_not_the_size_of_the_shift(weight_B: torch.Tensor) -> None:
    """a is linear in z: the shift is taken relative to |z|, so a tiny or a huge z is as accurate as any."""
    proxy = language_model().float()
    lower, z = problems.lower_level(proxy, tokens()), direction(proxy)
    alignment_B = hypergradient.central_difference(lower, weight_B.float(), z).alignment_b
    for factor in (1e-6, 1e6):
        found_B = hypergradient.central_difference(lower, weight_B.float(), scaled(z, factor)).alignment_b
        assert relative_error([found_B / factor], [alignment_B]) < 1e-3


def test_a_zero_z_has_zero_alignments(weight_B: torch.Tensor) -> None:
    proxy = language_model()
    for route in hypergradient.ROUTES.values():
        found = route(problems.lower_level(proxy, tokens()), weight_B, scaled(direction(proxy), 0.0), curvature=True)
        assert not found.alignment_b.any()


def test_an_overflowed_z_shows_in_the_alignments(weight_B: torch.Tensor) -> None:
    """The guards stop on numbers that are none; an error from within the route would hide which."""
    proxy = language_model().float()
    z = [along.float() * 1e38 for along in direction(proxy)]
    found = hypergradient.central_difference(problems.lower_level(proxy, tokens()), weight_B.float(), [along * 1e38 for along in z])
    assert not found.alignment_b.isfinite().any()


def test_bfloat16_wants_the_larger_shift(monkeypatch: pytest.MonkeyPatch) -> None:
    """The coefficients P_i (a_i - abar) point where the exact ones do; at a shift that suits float32 rounding drowns them.

    With z = grad f, as in use: along a random direction the losses hardly change, and bfloat16 sees next to nothing at any shift.
    """
    proxy, input_ids_BT, weight_B = language_model(), tokens(32), torch.full((32,), 1 / 32, dtype=torch.float64)
    z = [part.detach() for part in explicit_gradient(problems.lower_level(proxy, tokens(16, seed=1)), torch.full((16,), 1 / 16).double())]
    exact_B = hypergradient.double_backward(problems.lower_level(proxy, input_ids_BT), weight_B, z).alignment_b
    proxy = proxy.float()
    z = [along.float() for along in z]
    monkeypatch.setattr(lower_level, "autocast", lambda _device: torch.autocast("cpu", dtype=torch.bfloat16))

    def cosine_at(shift: float) -> float:
        found_B = hypergradient.central_difference(
            problems.lower_level(proxy, input_ids_BT, shift_norm=shift), weight_B.float(), z
        ).alignment_b
        centred = [part - part.mean() for part in (found_B.double(), exact_B)]
        return float(torch.cosine_similarity(*centred, dim=0))

    cosines = {shift: cosine_at(shift) for shift in (1e-3, 1e-2, SHIFT_BFLOAT16)}
    assert cosines[SHIFT_BFLOAT16] > 0.99, cosines
    assert cosines[1e-3] < 0.95, cosines


def test_lookahead_is_the_change_of_each_loss_and_for_a_short_path_the_slope(weight_B: torch.Tensor) -> None:
    proxy = language_model()
    lower, z = problems.lower_level(proxy, tokens()), direction(proxy)
    before = [parameter.detach().clone() for parameter in proxy.parameters()]
    found = hypergradient.lookahead(lower, weight_B, z)
    moved = language_model()
    with torch.no_grad():
        for parameter, along in zip(moved.parameters(), z, strict=True):
            parameter -= along
    expected_B = lower.losses() - dataclasses.replace(lower, proxy=moved).losses()
    assert relative_error([found.alignment_b], [expected_B]) < 1e-12
    assert relative_error(found.gradient, explicit_gradient(lower, weight_B)) < 1e-10
    assert all(torch.equal(a, b) for a, b in zip(before, proxy.parameters(), strict=True))
    short = hypergradient.lookahead(lower, weight_B, scaled(z, 1e-7)).alignment_b * 1e7
    assert relative_error([short], [problems.explicit_alignments(proxy, tokens(), z)]) < 1e-5
