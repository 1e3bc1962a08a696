"""The published algorithm in our own code, to be timed and checked against: what an outer step costs without the cheap exact form.

Written from the formulas of docs/method.md. Kept of the released code, because they make its cost or its result:

    - one weighted AdamW step of the proxy first, then the hypergradient on the batch just trained on
    - z starts anew from a constant and takes three SGD steps, clipped to norm 1, down 1/2 z'Hz - z'grad f
    - the training gradient's graph is held for the three Hessian-vector products, so attention is the plain kernel there
    - two full gradients per sequence (score model and proxy), one sequence at a time, all of them stored
    - alignments are inner products of stored gradients, the hypergradient is the weighted sum of stored score gradients
    - ordinary cross-entropy on full logits

Not kept, because no time is in it: the sigmoid head, the previous step's softmax denominator, the sums over GPUs. Both models, their
optimizers and the softmax weights are those of the product.

Legend of shapes: B sequences, T tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from bliss_ops.training.device import autocast
from bliss_ops.training.state import TrainState, step_with

if TYPE_CHECKING:
    from transformers import PreTrainedModel

START, NUM_STEPS, RATE, CLIP = 0.01, 3, 0.05, 1.0

Vector = list[torch.Tensor]


@dataclass
class ReferenceState:
    """Both models with their optimizers; z is not carried from step to step."""

    proxy: TrainState
    score: TrainState


def reference_outer_step(state: ReferenceState, input_ids_BT: torch.Tensor, validation_ids_BT: torch.Tensor) -> None:
    """One inner step of the proxy and one step of the score model, in place."""
    proxy, score = state.proxy.model, state.score.model
    parameters = list(proxy.parameters())
    weight_B = sample_weights(score, input_ids_BT)
    inner = torch.autograd.grad((weight_B * losses(proxy, input_ids_BT)).sum(), parameters)
    step_with(state.proxy.optimizer, parameters, inner)
    gradient_f = torch.autograd.grad(losses(proxy, validation_ids_BT).mean(), parameters)
    z = solve(proxy, input_ids_BT, weight_B, gradient_f)
    step_with(state.score.optimizer, list(score.parameters()), hypergradient(proxy, score, input_ids_BT, z))


def solve(proxy: "PreTrainedModel", input_ids_BT: torch.Tensor, weight_B: torch.Tensor, gradient_f: Sequence[torch.Tensor]) -> Vector:
    """z after three clipped SGD steps from a constant; each takes one Hessian-vector product of the training loss."""
    parameters = list(proxy.parameters())
    z = [torch.full_like(parameter, START) for parameter in parameters]
    with sdpa_kernel(SDPBackend.MATH):
        training = (weight_B * losses(proxy, input_ids_BT)).sum()
        gradient = torch.autograd.grad(training, parameters, create_graph=True)
        for _ in range(NUM_STEPS):
            product = torch.autograd.grad(gradient, parameters, grad_outputs=z, retain_graph=True)
            residual = [hz - f for hz, f in zip(product, gradient_f, strict=True)]
            size = float(torch.stack([r.norm() for r in residual]).norm())
            z = [v - RATE * min(1.0, CLIP / size) * r for v, r in zip(z, residual, strict=True)]
    return z


def hypergradient(proxy: "PreTrainedModel", score: torch.nn.Module, input_ids_BT: torch.Tensor, z: Sequence[torch.Tensor]) -> Vector:
    """- sum_i P_i (a_i - abar) grad h_i, from two stored gradients per sequence."""
    score_gradients: list[Sequence[torch.Tensor]] = []
    proxy_gradients: list[Sequence[torch.Tensor]] = []
    for row_1T in input_ids_BT.split(1):
        with autocast(row_1T.device):
            score_1 = score(row_1T)
        score_gradients.append(torch.autograd.grad(score_1.sum(), list(score.parameters())))
        proxy_gradients.append(torch.autograd.grad(losses(proxy, row_1T).sum(), list(proxy.parameters())))
    weight_B = sample_weights(score, input_ids_BT)
    alignment_B = torch.stack([sum_of_products(gradient, z) for gradient in proxy_gradients])
    coefficient_B = weight_B * (alignment_B - (weight_B * alignment_B).sum())
    total = [torch.zeros_like(parameter) for parameter in score.parameters()]
    for coefficient, gradient in zip(coefficient_B, score_gradients, strict=True):
        for summed, value in zip(total, gradient, strict=True):
            summed.sub_(coefficient * value)
    return total


def losses(proxy: "PreTrainedModel", input_ids_BT: torch.Tensor) -> torch.Tensor:
    """Mean next-token cross-entropy of each sequence, shape B, from the whole batch's logits."""
    with autocast(input_ids_BT.device):
        logits_BTV = proxy(input_ids=input_ids_BT).logits[:, :-1]
    wide = logits_BTV if logits_BTV.dtype == torch.float64 else logits_BTV.float()
    return F.cross_entropy(wide.flatten(0, 1), input_ids_BT[:, 1:].flatten(), reduction="none").view(len(input_ids_BT), -1).mean(1)


@torch.no_grad()
def sample_weights(score: torch.nn.Module, input_ids_BT: torch.Tensor) -> torch.Tensor:
    """softmax(h) over the batch, shape B, without a graph."""
    with autocast(input_ids_BT.device):
        score_B: torch.Tensor = score(input_ids_BT)
    return torch.softmax(score_B.to(torch.promote_types(score_B.dtype, torch.float32)), 0)


def sum_of_products(a: Sequence[torch.Tensor], b: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()
