"""The hypergradient of the score model in its cheap exact form (docs/method.md).

With z = (H + delta I)^-1 grad f (the `ihvp`) and the alignment a_i = <z, grad_p L_i>, one number per sequence,

    d f / d theta_s = - sum_i P_i (a_i - abar) grad h_i / t,        abar = sum_j P_j a_j,

which is the gradient of  - sum_i softmax(h / t)_i * stop_gradient(a_i): one backward pass through the score model, and no
per-sequence gradient anywhere.

Legend of shapes: B sequences; parameters and vectors in parameter space are lists of tensors.
"""

from collections.abc import Callable, Sequence

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

Tensors = Sequence[torch.Tensor]


def surrogate(weight_B: torch.Tensor, alignment_B: torch.Tensor) -> torch.Tensor:
    """The scalar whose gradient in theta_s is the hypergradient; `weight_B` carries the score model's graph."""
    return -(weight_B * alignment_B.detach()).sum()


def exact_alignment(
    losses_of: Callable[[], tuple[torch.Tensor, torch.Tensor]], weight_B: torch.Tensor, parameters: Tensors, z: Tensors
) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """Alignments by differentiating the training gradient: with G = grad_p(sum_i w_i L_i + R), d<G, z>/dw_i = <grad L_i, z> = a_i.

    Args:
        losses_of: returns (L_B, R): per-sequence losses and the regulariser, with the proxy's graph (twice differentiable).
        weight_B: the weights P; their own graph is not touched.
        parameters: the proxy's parameters.
        z: one tensor per parameter.

    Returns:
        a_B, the proxy's training gradient G, and L_B, all detached.
    """
    leaf_B = weight_B.detach().requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # the fused attention kernels have no second derivative
        loss_B, regulariser = losses_of()
        gradient = torch.autograd.grad((leaf_B * loss_B).sum() + regulariser, parameters, create_graph=True)
    (alignment_B,) = torch.autograd.grad(inner_product(gradient, z), leaf_B)
    return alignment_B, [g.detach() for g in gradient], loss_B.detach()


def central_difference_alignment(
    losses_of: Callable[[], tuple[torch.Tensor, torch.Tensor]],
    weight_B: torch.Tensor,
    parameters: Tensors,
    z: Tensors,
    *,
    shift_norm: float = 1e-2,
) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
    """Alignments as (L(theta + eps z) - L(theta - eps z)) / 2 eps from two forward passes, with eps |z| = `shift_norm`.

    Works with any attention kernel; in float32 the relative error is about 5e-4 at the default shift. Arguments and results as
    in `exact_alignment`. The parameters are restored from a copy, bit for bit.
    """
    loss_B, regulariser = losses_of()
    gradient = torch.autograd.grad((weight_B.detach() * loss_B).sum() + regulariser, parameters)
    step = shift_norm / max(norm(z), 1e-30)
    saved = [parameter.detach().clone() for parameter in parameters]
    with torch.no_grad():
        shifted = []
        for sign in (1.0, -1.0):
            for parameter, original, direction in zip(parameters, saved, z, strict=True):
                parameter.copy_(original + sign * step * direction)
            shifted.append(losses_of()[0])
        for parameter, original in zip(parameters, saved, strict=True):
            parameter.copy_(original)
    return (shifted[0] - shifted[1]) / (2 * step), list(gradient), loss_B.detach()


ALIGNMENTS = {"exact": exact_alignment, "central_difference": central_difference_alignment}


def precondition(gradient: Tensors, second_moment: Tensors | None, damping: float) -> list[torch.Tensor]:
    """z = grad f / (sqrt(v) + delta), Adam's diagonal as the curvature; z = grad f when there is no second moment."""
    if second_moment is None:
        return [g.clone() for g in gradient]
    return [g / (v.sqrt() + damping) for g, v in zip(gradient, second_moment, strict=True)]


def inner_product(a: Tensors, b: Tensors) -> torch.Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


def norm(vectors: Tensors) -> float:
    """Euclidean norm over all tensors together."""
    return float(torch.stack([v.detach().double().square().sum() for v in vectors]).sum().sqrt())
