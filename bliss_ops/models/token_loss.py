"""Cross-entropy (and KL to a reference model) of a language model without its [B, T, V] logits.

The output matrix is applied to a block of positions at a time. Where a gradient is wanted it is taken in the same pass, since the
weight of every position is known beforehand: softmax minus one-hot, times the weight, straight on to the hidden states and the
matrix. Nothing is recomputed, and what is held is one block of logits (26 MB at a vocabulary of 50k) instead of the batch's (824 MB
at 32 x 128 positions). Positions that do not count never reach the output matrix.

On a GPU what comes between the matrix products is bound by memory: eight passes over a block's logits, in float32. `compile_loss` makes
them two, in the precision of the products.

Legend of shapes: B sequences, T tokens, N counted positions, D and E hidden sizes, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F

# Positions per block. Every block adds to the whole gradient of the matrix, so it must not be too small; 128 is within 5 % of the
# best on a CPU for vocabularies of 2k and 50k. A GPU needs more to be busy.
ROWS_PER_BLOCK = {"cpu": 128, "cuda": 2048}


_fused: Callable[..., tuple[torch.Tensor, torch.Tensor]] | None = None


def compile_loss() -> None:
    """From now on, torch.compile what is done with a block's logits where products have a lower precision than the loss (a GPU)."""
    global _fused
    _fused = _fused or torch.compile(_loss_and_slope)


@dataclass(frozen=True)
class Divergence:
    """The KL term: its reference model, its direction and the weight of every sequence's mean over tokens."""

    reference: torch.nn.Module
    direction: Literal["proxy_reference", "reference_proxy"]
    weight: float
    hidden_BTE: torch.Tensor  # the reference's `hidden_states` of the same tokens


def loss_sums(model: torch.nn.Module, input_ids_BT: torch.Tensor, labels_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed next-token loss of each sequence (nats) and its number of counted tokens, both of shape B; no graph."""
    with torch.no_grad():
        _, sums_B, counts_B = weighted_loss(model, input_ids_BT, labels_BT, input_ids_BT.new_zeros(len(input_ids_BT)))
    return sums_B, counts_B


def weighted_loss(
    model: torch.nn.Module,
    input_ids_BT: torch.Tensor,
    labels_BT: torch.Tensor,
    weight_B: torch.Tensor,
    *,
    divergence: Divergence | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """sum_i weight_i * (mean loss of sequence i), plus the KL term.

    Args:
        model: a causal language model of transformers.
        input_ids_BT: tokens.
        labels_BT: equal to the tokens where a position counts, -100 elsewhere; the shift by one is done here. The very tensor of the
            tokens says that all count, and a GPU need not be waited for to find out which.
        weight_B: weights, without a graph of their own.
        divergence: adds weight * sum_i mean over tokens of KL_i.

    Returns:
        The scalar with the model's graph (first derivatives only), the summed losses of shape B and the counts of shape B, both detached.
    """
    targets_BT = F.pad(labels_BT[:, 1:], (0, 1), value=-100)
    position_N = None if labels_BT is input_ids_BT else (targets_BT != -100).flatten().nonzero()[:, 0]
    counts_B = (targets_BT != -100).sum(1)

    def counted(values_BT: torch.Tensor) -> torch.Tensor:
        return values_BT[:, :-1].flatten(0, 1) if position_N is None else values_BT.flatten(0, 1)[position_N]

    hidden_ND = counted(hidden_states(model, input_ids_BT))
    wide = hidden_ND.dtype if hidden_ND.dtype == torch.float64 else torch.float32
    per_token_B = 1 / counts_B.clamp(min=1).to(wide)
    weight_N = counted((weight_B.detach().to(wide) * per_token_B)[:, None].expand(targets_BT.shape))
    reference: tuple[Any, ...] = (None, None, None, "")
    if divergence is not None:
        factor_N = counted((divergence.weight * per_token_B)[:, None].expand(targets_BT.shape))
        reference = (counted(divergence.hidden_BTE), output_matrix(divergence.reference), factor_N, divergence.direction)
    target_N = counted(targets_BT)
    total, loss_N = _BlockwiseLoss.apply(torch.is_grad_enabled(), hidden_ND, output_matrix(model), target_N, weight_N, *reference)  # type: ignore[no-untyped-call]
    # back on the grid and summed along rows: a scatter-add would not repeat bit for bit on a GPU
    loss_BT = torch.zeros(targets_BT.shape, dtype=wide, device=loss_N.device)
    if position_N is None:
        loss_BT[:, :-1] = loss_N.detach().view(len(loss_BT), -1)
    else:
        loss_BT.view(-1)[position_N] = loss_N.detach()
    return total, loss_BT.sum(1), counts_B


def hidden_states(model: Any, input_ids_BT: torch.Tensor) -> torch.Tensor:
    """What the output matrix is applied to, of shape B x T x D."""
    hidden_BTD: torch.Tensor = model.base_model(input_ids=input_ids_BT).last_hidden_state
    return hidden_BTD


def output_matrix(model: Any) -> torch.Tensor:
    """From hidden states to logits, of shape V x D."""
    matrix: torch.Tensor = model.get_output_embeddings().weight
    return matrix


def _buffers(hidden_nD: torch.Tensor, matrix_VD: torch.Tensor, wide: torch.dtype) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Room for one block's logits and log-probabilities on a CPU, where touching new memory costs half as much as the matrix product.

    None where torch keeps freed memory itself (a GPU) and where the product has another precision than the loss.
    """
    kinds = {hidden_nD.dtype, matrix_VD.dtype, wide}
    if hidden_nD.device.type != "cpu" or len(kinds) > 1 or torch.is_autocast_enabled("cpu"):
        return None
    return hidden_nD.new_empty(len(hidden_nD), len(matrix_VD)), hidden_nD.new_empty(len(hidden_nD), len(matrix_VD))


def _log_probabilities(
    hidden_nD: torch.Tensor, matrix_VD: torch.Tensor, wide: torch.dtype, buffers: tuple[torch.Tensor, torch.Tensor] | None
) -> torch.Tensor:
    if buffers is None:
        return F.log_softmax(F.linear(hidden_nD, matrix_VD).to(wide), dim=-1)
    logits, log_p = (buffer[: len(hidden_nD)] for buffer in buffers)
    torch.mm(hidden_nD, matrix_VD.T, out=logits)
    return torch.log_softmax(logits, -1, out=log_p)


def _product_dtype(hidden_ND: torch.Tensor) -> torch.dtype:
    """What matrix products compute in here."""
    kind = hidden_ND.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden_ND.dtype


def _loss_and_slope(
    logits_nV: torch.Tensor, target_n: torch.Tensor, weight_n: torch.Tensor, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses of shape n, and the gradient of their weighted sum in the logits; written for a compiler, which makes two passes of it."""
    logits = logits_nV.to(weight_n.dtype)
    log_sum_n = logits.logsumexp(-1)
    loss_n = log_sum_n - logits.gather(1, target_n[:, None])[:, 0]
    is_target = torch.arange(logits.shape[1], device=logits.device) == target_n[:, None]
    slope = ((logits - log_sum_n[:, None]).exp() - is_target.to(logits.dtype)) * weight_n[:, None]
    return loss_n, slope.to(dtype)


class _BlockwiseLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        wants_gradient: bool,
        hidden_ND: torch.Tensor,
        matrix_VD: torch.Tensor,
        target_N: torch.Tensor,
        weight_N: torch.Tensor,
        reference_NE: torch.Tensor | None,
        reference_VE: torch.Tensor | None,
        divergence_N: torch.Tensor | None,
        direction: str,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        loss_N = torch.empty_like(weight_N)
        total = weight_N.new_zeros(())
        hidden_gradient = torch.empty_like(hidden_ND) if wants_gradient else None
        matrix_gradient = torch.zeros_like(matrix_VD) if wants_gradient else None
        block = ROWS_PER_BLOCK.get(hidden_ND.device.type, 128)
        buffers = _buffers(hidden_ND[:block], matrix_VD, weight_N.dtype)
        low = _product_dtype(hidden_ND)
        product_VD = matrix_VD if buffers else matrix_VD.to(low)
        fused = None if buffers or reference_NE is not None else _fused
        for begin in range(0, len(target_N), block):
            rows = slice(begin, begin + block)
            if fused is not None and hidden_gradient is not None and matrix_gradient is not None:
                hidden_n = hidden_ND[rows].to(low)
                loss_N[rows], slope_nV = fused(hidden_n @ product_VD.T, target_N[rows], weight_N[rows], low)
                total += (weight_N[rows] * loss_N[rows]).sum()
                hidden_gradient[rows] = slope_nV @ product_VD
                matrix_gradient += slope_nV.T @ hidden_n
                continue
            log_p = _log_probabilities(hidden_ND[rows], matrix_VD, weight_N.dtype, buffers)
            target_n, weight_n = target_N[rows, None], weight_N[rows, None]
            loss_n = -log_p.gather(1, target_n)
            loss_N[rows] = loss_n[:, 0]
            total += (weight_n * loss_n).sum()
            slope = None  # gradient in this block's logits
            if reference_NE is not None and reference_VE is not None and divergence_N is not None:
                log_r = F.log_softmax(F.linear(reference_NE[rows], reference_VE).to(weight_N.dtype), dim=-1)
                factor_n = divergence_N[rows, None]
                if direction == "proxy_reference":  # KL(p||r): slope p (log p - log r - KL)
                    gap = log_p - log_r
                    p = log_p.exp()
                    divergence_n = (p * gap).sum(1, keepdim=True)
                    slope = p.mul_(gap.sub_(divergence_n)).mul_(factor_n) if wants_gradient else None
                else:  # KL(r||p): slope p - r
                    r = log_r.exp()
                    divergence_n = (r * (log_r - log_p)).sum(1, keepdim=True)
                    slope = (log_p.exp() - r).mul_(factor_n) if wants_gradient else None
                total += (factor_n * divergence_n).sum()
            if hidden_gradient is not None and matrix_gradient is not None:
                own = log_p.exp_().mul_(weight_n)
                own.scatter_add_(1, target_n, -weight_n)
                slope = own if slope is None else slope.add_(own)
                if buffers:
                    torch.mm(slope, matrix_VD, out=hidden_gradient[rows])
                    matrix_gradient.addmm_(slope.T, hidden_ND[rows])
                else:  # in-place products escape autocast, and would be float32 ones on a GPU
                    slope = slope.to(low)
                    hidden_gradient[rows] = slope @ product_VD
                    matrix_gradient += slope.T @ hidden_ND[rows].to(low)
        if hidden_gradient is not None and matrix_gradient is not None:
            ctx.save_for_backward(hidden_gradient, matrix_gradient)
        ctx.mark_non_differentiable(loss_N)
        return total, loss_N

    @staticmethod
    def backward(ctx: Any, grad_total: torch.Tensor, _grad_loss: torch.Tensor) -> tuple[Any, ...]:
        if torch.is_grad_enabled():  # only under create_graph; what is saved is a constant, so second derivatives would be wrong
            raise RuntimeError("the blockwise loss can be differentiated once: take second derivatives of LowerLevel.differentiable")
        hidden_gradient, matrix_gradient = ctx.saved_tensors
        # in place: a second backward pass, for which they would be wrong, is refused by autograd
        hidden = hidden_gradient.mul_(grad_total.to(hidden_gradient.dtype))
        return None, hidden, matrix_gradient.mul_(grad_total.to(matrix_gradient.dtype)), None, None, None, None, None, None
