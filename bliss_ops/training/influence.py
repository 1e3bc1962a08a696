"""The true one-step influence of a sequence: how much the validation loss falls after one AdamW step on it alone.

Every probe starts from the same checkpoint: weights and AdamW moments are copied back before each, not recomputed, so that probes are
independent of their order. Both losses are taken in float32 on any device: what is measured is a difference of about a thousandth of
a nat, which bfloat16 products would round away. Memory: seven times the parameters (weights, gradient, two moments, their copies).

Legend of shapes: M probes, N validation rows, B rows of a forward pass, T tokens.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from bliss_ops.corpus.validation import IGNORED, ValidationRows, trim_padding
from bliss_ops.models.language import token_loss_sums
from bliss_ops.models.token_loss import loss_sums
from bliss_ops.training.state import TrainState

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Nearly all the time goes into the validation loss: passes that fit a core's caches take half the time of one large pass (8,192 tokens,
# two layers of 64, vocabulary 2,048: 82 ms against 154), and a GPU wants to be busy.
TOKENS_PER_PASS = {"cpu": 2048, "cuda": 32_768}

Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # input_ids_BT, labels_BT, weight_B


@dataclass(frozen=True)
class Influences:
    """What the probes did to the validation loss, all in nats per token."""

    influence_M: np.ndarray  # loss before minus after, float64: positive = the sequence helps
    momentum: float  # the same for a step without any sequence: what AdamW's moments do by themselves
    loss: float  # before


def one_step_influences(
    state: TrainState,
    probes_MT: np.ndarray,
    validation: ValidationRows,
    *,
    max_gradient_norm: float | None = None,
    section: str = "fidelity",
    after_probe: Callable[[list[float]], None] = lambda _: None,
) -> Influences:
    """Validation loss before minus after one optimizer step on each probe alone.

    Args:
        state: the checkpoint to probe, with the optimizer whose step is taken; it is left as it was.
        probes_MT: input_ids of the probes.
        validation: the rows whose weighted mean loss over all counted tokens is measured.
        max_gradient_norm: the gradient of a probe is scaled down to this norm; None leaves it as it is.
        section: of the settings, whose `learning_rate` the message of an error names.
        after_probe: called after each with the influences so far.

    Raises:
        ValueError: the loss is not finite before or after a step.
    """
    device = next(state.model.parameters()).device
    batches = _batches(validation, device)
    checkpoint = _Checkpoint(state)
    was_training = state.model.training
    state.model.eval()  # the shapes have no dropout; a model that had some would not measure its own noise
    try:
        before = _mean_loss(state.model, batches)
        _step_on_nothing(state)
        momentum = before - _mean_loss(state.model, batches)
        checkpoint.restore()
        influences: list[float] = []
        for probe_T in probes_MT:
            _step_on(state, torch.from_numpy(probe_T[None].astype(np.int64)).to(device), max_gradient_norm)
            influences.append(before - _mean_loss(state.model, batches))
            checkpoint.restore()
            after_probe(influences)
    finally:
        state.model.train(was_training)
    influence_M = np.array(influences)
    if not np.isfinite(influence_M).all() or not np.isfinite(before):
        raise ValueError(
            f"{section}: the validation loss is {before:g} before and not finite after {(~np.isfinite(influence_M)).sum()} of "
            f"{len(influence_M)} one-sequence steps: lower {section}.learning_rate (it is {state.optimizer.param_groups[0]['lr']:g})"
        )
    return Influences(influence_M, momentum, before)


class _Checkpoint:
    """Weights and moments as they were, and the way back to them."""

    def __init__(self, state: TrainState) -> None:
        self.optimizer = state.optimizer
        parameters = list(state.model.parameters())
        moments = [self.optimizer.state.get(parameter, {}) for parameter in parameters]
        self.fresh = [parameter for parameter, values in zip(parameters, moments, strict=True) if not values]  # never stepped before
        self.copies: dict[torch.device, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}  # AdamW's step counts stay on the CPU
        for tensor in (*(p.detach() for p in parameters), *(value for values in moments for value in values.values())):
            live, saved = self.copies.setdefault(tensor.device, ([], []))
            live.append(tensor)
            saved.append(tensor.clone())

    @torch.no_grad()
    def restore(self) -> None:
        for live, saved in self.copies.values():
            torch._foreach_copy_(live, saved)  # one call for hundreds of tensors
        for parameter in self.fresh:
            self.optimizer.state.pop(parameter, None)


def _step_on(state: TrainState, input_ids_BT: torch.Tensor, max_gradient_norm: float | None) -> None:
    logits_BTV = state.model(input_ids=input_ids_BT).logits
    loss_B, count_B = token_loss_sums(logits_BTV, input_ids_BT)
    torch.autograd.backward(loss_B.sum() / count_B.sum())
    if max_gradient_norm is not None:
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), max_gradient_norm)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)


def _step_on_nothing(state: TrainState) -> None:
    for parameter in state.model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)


@torch.no_grad()
def _mean_loss(model: torch.nn.Module, batches: list[Batch]) -> float:
    network = cast("PreTrainedModel", model)
    parts = [(*loss_sums(network, input_ids_BT, labels_BT), weight_B) for input_ids_BT, labels_BT, weight_B in batches]
    total = torch.stack([(loss_B.double() * weight_B).sum() for loss_B, _, weight_B in parts]).sum()
    return float(total / torch.stack([(count_B * weight_B).sum() for _, count_B, weight_B in parts]).sum())


def _batches(validation: ValidationRows, device: torch.device) -> list[Batch]:
    """Rows of similar length together, without the padding behind them: they are computed hundreds of times."""
    rows = max(1, TOKENS_PER_PASS.get(device.type, 2048) // validation.labels_NT.shape[1])
    counted_NT = validation.labels_NT != IGNORED
    by_length = np.argsort(-counted_NT.sum(1), kind="stable")
    chunks = [validation.take(by_length[begin : begin + rows]) for begin in range(0, len(by_length), rows)]
    columns = ((*trim_padding(chunk.input_ids_NT, chunk.labels_NT), chunk.weight_N) for chunk in chunks)
    batches = ([torch.from_numpy(column).to(device) for column in batch] for batch in columns)
    return [(input_ids_BT, labels_BT, weight_B) for input_ids_BT, labels_BT, weight_B in batches]
