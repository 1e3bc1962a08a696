"""The hypergradient of the score model in its cheap exact form (docs/method.md), and the three routes to what it needs.

With z = (H + delta I)^-1 grad f (the `ihvp`) and the alignment a_i = <z, grad_p L_i>, one number per sequence,

    d f / d theta_s = - sum_i P_i (a_i - abar) grad h_i / t,        abar = sum_j P_j a_j,

which is the gradient of  - sum_i P_i(h) * stop_gradient(a_i): one backward pass through the score model, and no per-sequence
gradient anywhere. A route gives the alignments, the proxy's own training gradient G, and, when asked, the Hessian-vector product Hz,
all of one batch at one theta_p:

    central_difference   forward at theta + eps z, forward and backward at theta - eps z: the cheapest; any kernel, torch.compile
    double_backward      G with a graph, then one derivative of <G, z>: exact; plain attention kernel, holds the logits
    forward_mode         the derivative along z carried through the pass: exact; plain attention kernel, holds the logits

The `lookahead` solver has a route of its own, since its z is a path: the loss at theta minus the loss at theta - z.

Legend of shapes: B sequences of the global batch, b this worker's rows, m those of a micro-batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from bliss_ops.bilevel.lower_level import LowerLevel
from bliss_ops.bilevel.vectors import Tensors, combination, inner_product, norm, scaled, shifting, zeros_like

# eps |z|. Relative error of the alignments for z = grad f and for Adam's diagonal, proxies of 0.1M to 14M parameters on a CPU:
SHIFT_FLOAT32 = 1e-2  # 1e-4 to 3e-4 (2e-3 on an untrained proxy), about the same at 3e-3
SHIFT_BFLOAT16 = 1e-1  # 6e-3 to 6e-2, cosine of the coefficients above 0.998; at 3e-2 from 0.95, and at 1e-3 rounding is all there is


@dataclass(frozen=True)
class Alignments:
    """What a route found on one batch; everything detached."""

    alignment_b: torch.Tensor  # a_i of this worker's rows
    loss_b: torch.Tensor
    gradient: list[torch.Tensor]  # G, summed over workers
    curvature: list[torch.Tensor] | None  # Hz, summed over workers, without damping; None when it was not asked for


def score_gradient(
    score_B: torch.Tensor, weights_of: Callable[[torch.Tensor], torch.Tensor], alignment_B: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """(d/dh of -sum_i P_i(h) a_i, P), both of shape B and detached: the coefficients of the one backward pass.

    For softmax weights the first is -P_i (a_i - abar) / t, and the coefficients add up to zero.
    """
    leaf_B = score_B.detach().requires_grad_()
    weight_B = weights_of(leaf_B)
    (gradient_B,) = torch.autograd.grad(-(weight_B * alignment_B.detach()).sum(), leaf_B)
    return gradient_B, weight_B.detach()


def central_difference(lower: LowerLevel, weight_b: torch.Tensor, z: Tensors, *, curvature: bool = False) -> Alignments:
    """a = (L(theta + eps z) - L(theta - eps z)) / 2 eps with eps |z| = the shift; G is the gradient at theta - eps z.

    G is an O(eps) neighbour of the gradient at theta, far closer than one optimizer step; with `curvature` it is the mean of both
    sides, and Hz = (G+ - G-) / 2 eps. The relative error of a is about 3e-4 in float32 and up to 6 % under bfloat16.
    """
    parameters = lower.parameters
    step = _step(shift_of(lower), z)
    with shifting(parameters, z) as shift:
        shift(step)
        if curvature:
            gradient_plus, loss_plus_b = lower.gradient(weight_b)
        else:
            loss_plus_b = lower.losses()
        shift(-step)
        gradient, loss_minus_b = lower.gradient(weight_b)
    product = None
    if curvature:
        product = scaled(combination(gradient_plus, -1.0, gradient), 1 / (2 * step))
        gradient = scaled(combination(gradient_plus, 1.0, gradient), 0.5)
    return Alignments((loss_plus_b - loss_minus_b) / (2 * step), (loss_plus_b + loss_minus_b) / 2, gradient, product)


def double_backward(lower: LowerLevel, weight_b: torch.Tensor, z: Tensors, *, curvature: bool = False) -> Alignments:
    """With the weights as a leaf w and G = grad_p(sum_i w_i L_i + R): d<G, z>/dw_i = a_i and d<G, z>/dtheta_p = Hz."""
    parameters = lower.parameters
    alignment_b, loss_b = torch.zeros_like(weight_b), torch.zeros_like(weight_b)
    gradient, product = zeros_like(parameters), zeros_like(parameters)
    with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no second derivative
        for rows, _ in lower.micro_batches():
            leaf_m = weight_b[rows].detach().requires_grad_()
            loss_m, penalty = lower.differentiable(rows)
            part = torch.autograd.grad((leaf_m * loss_m).sum() + penalty, parameters, create_graph=True)
            wanted = [leaf_m, *parameters] if curvature else [leaf_m]
            found = torch.autograd.grad(inner_product(part, z), wanted, materialize_grads=True)
            alignment_b[rows], loss_b[rows] = found[0], loss_m.detach()
            torch._foreach_add_(gradient, [tensor.detach() for tensor in part])
            if curvature:
                torch._foreach_add_(product, found[1:])
    return _reduced(lower, z, Alignments(alignment_b, loss_b, gradient, product if curvature else None))


def forward_mode(lower: LowerLevel, weight_b: torch.Tensor, z: Tensors, *, curvature: bool = False) -> Alignments:
    """The tangent of (L, and for Hz of G) along z: forward over reverse. Without `curvature` only the losses carry a tangent."""
    names = [name for name, _ in lower.proxy.named_parameters()]
    primal = {name: parameter.detach() for name, parameter in lower.proxy.named_parameters()}
    tangent = dict(zip(names, z, strict=True))
    alignment_b, loss_b = torch.zeros_like(weight_b), torch.zeros_like(weight_b)
    gradient, product = zeros_like(lower.parameters), zeros_like(lower.parameters)
    with sdpa_kernel(SDPBackend.MATH):  # nor do they have a forward derivative
        for rows, _ in lower.micro_batches():
            objective = _functional(lower, rows, weight_b[rows].detach())
            slope = torch.func.grad(objective, has_aux=True)
            if curvature:
                (part, loss_m), (part_tangent, alignment_m) = _jvp(slope, primal, tangent)
                torch._foreach_add_(product, [part_tangent[name].detach() for name in names])
            else:
                part, _ = slope(primal)
                loss_m, alignment_m = _jvp(lambda values, of=objective: of(values)[1], primal, tangent)
            alignment_b[rows], loss_b[rows] = alignment_m.detach(), loss_m.detach()
            torch._foreach_add_(gradient, [part[name].detach() for name in names])
    return _reduced(lower, z, Alignments(alignment_b, loss_b, gradient, product if curvature else None))


ROUTES = {"central_difference": central_difference, "double_backward": double_backward, "forward_mode": forward_mode}


def route(name: str) -> Callable[..., Alignments]:
    """The route of that name; `auto` is the cheapest one on every device measured so far (docs/experiments.md)."""
    return ROUTES["central_difference" if name == "auto" else name]


def lookahead(lower: LowerLevel, weight_b: torch.Tensor, z: Tensors) -> Alignments:
    """a_i = L_i(theta) - L_i(theta - z) for a z that is a path and not a direction; G is the gradient at theta."""
    gradient, loss_b = lower.gradient(weight_b)
    with shifting(lower.parameters, z) as shift:
        shift(-1.0)
        return Alignments(loss_b - lower.losses(), loss_b, gradient, None)


def alignments_only(lower: LowerLevel, z: Tensors, *, shift: float | None = None) -> torch.Tensor:
    """a_i by two forward passes; shape b. For probes, which want neither G nor Hz."""
    if lower.config.ihvp == "lookahead":
        loss_b = lower.losses()
        with shifting(lower.parameters, z) as move:
            move(-1.0)
            return loss_b - lower.losses()
    step = _step(shift or shift_of(lower), z)
    with shifting(lower.parameters, z) as move:
        move(step)
        loss_plus_b = lower.losses()
        move(-step)
        return (loss_plus_b - lower.losses()) / (2 * step)


def curvature_product(lower: LowerLevel, weight_b: torch.Tensor, vector: Tensors) -> list[torch.Tensor]:
    """H v of g on this batch, by the configured route; for solvers that need more than one product."""
    product = route(lower.config.alignment)(lower, weight_b, vector, curvature=True).curvature
    assert product is not None
    return product


def shift_of(lower: LowerLevel) -> float:
    """eps |z|: the setting, else what suits the precision the proxy computes in."""
    if lower.config.shift_norm is not None:
        return lower.config.shift_norm
    return SHIFT_BFLOAT16 if lower.input_ids_bT.device.type == "cuda" else SHIFT_FLOAT32


def _step(shift: float, z: Tensors) -> float:
    """eps; of a z that is zero or has overflowed it is still a number, and the guards find what comes of it."""
    return shift / min(max(norm(z), 1e-30), 1e30)


def _functional(lower: LowerLevel, rows: slice, weight_m: torch.Tensor) -> Callable[[dict[str, Any]], Any]:
    """Parameters -> (sum_i w_i L_i + KL, L_m), for torch.func."""
    if lower.reference is not None:
        lower.reference_hidden(rows)  # out here, where no tangent can get into what is kept

    def objective(values: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        loss_m, penalty = torch.func.functional_call(_Differentiable(lower), {f"proxy.{k}": v for k, v in values.items()}, (rows,))
        return (weight_m * loss_m).sum() + penalty, loss_m

    return objective


def _jvp(function: Callable[..., Any], primal: dict[str, torch.Tensor], tangent: dict[str, torch.Tensor]) -> tuple[Any, Any]:
    """(function(primal), its derivative along the tangent)."""
    values: tuple[Any, Any] = torch.func.jvp(function, (primal,), (tangent,))  # type: ignore[assignment]  # declared for has_aux=True too
    return values


class _Differentiable(torch.nn.Module):
    """`LowerLevel.differentiable` as a module, so that its parameters can be replaced."""

    def __init__(self, lower: LowerLevel) -> None:
        super().__init__()
        self.proxy = lower.proxy
        self._lower = lower

    def forward(self, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        return self._lower.differentiable(rows)


def _reduced(lower: LowerLevel, z: Tensors, local: Alignments) -> Alignments:
    """Sums over workers, and the part of lambda * |theta|^2 that no batch has."""
    vectors: list[Sequence[torch.Tensor]] = [local.gradient, *([local.curvature] if local.curvature is not None else [])]
    lower.workers.sum_([tensor for vector in vectors for tensor in vector])
    if lower.config.l2_weight:
        for vector, along in zip(vectors, (lower.parameters, z), strict=False):
            torch._foreach_add_(list(vector), [tensor.detach() for tensor in along], alpha=2 * lower.config.l2_weight)
    return local
