"""The one language-model training loop: warm-up, pretraining and its decay branch are this function with other arguments.

Legend of shapes: B sequences of an optimizer step, T tokens.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from upath import UPath

from bliss_ops.corpus.validation import ValidationRows, trim_padding
from bliss_ops.models.token_loss import loss_sums, weighted_loss
from bliss_ops.training.checkpoints import Checkpoint
from bliss_ops.training.device import autocast
from bliss_ops.training.metrics import StepMetrics
from bliss_ops.training.state import TrainState


def train(
    state: TrainState,
    batch_of: Callable[[int], np.ndarray],
    last_step: int,
    *,
    learning_rate: Callable[[int], float],
    micro_batch_sequences: int,
    max_gradient_norm: float,
    metrics: StepMetrics,
    after_step: Callable[[int], None] = lambda _step: None,
) -> None:
    """Train `state` in place until it has done `last_step` optimizer steps.

    Args:
        state: model, optimizer and the number of steps done; a resumed one goes on exactly.
        batch_of: step (from 0) -> input_ids_BT; position is a function of the step, so nothing else needs to be remembered.
        last_step: number of optimizer steps done at the end.
        learning_rate: step (from 0) -> rate.
        micro_batch_sequences: sequences per forward pass; the result is the mean over all tokens of the step whatever it is.
        max_gradient_norm: the gradient is scaled down to this norm.
        metrics: takes loss and learning rate of every step.
        after_step: called with the number of steps done, for checkpoints and evaluation.

    Raises:
        ValueError: the loss is not finite; the last checkpoint is left as it was.
    """
    device = next(state.model.parameters()).device
    state.model.train()
    while state.step < last_step:
        input_ids_BT = torch.from_numpy(batch_of(state.step)).to(device)
        share_B = torch.full((len(input_ids_BT),), 1 / len(input_ids_BT), device=device)
        rate = learning_rate(state.step)
        total = 0.0
        for micro_BT in torch.split(input_ids_BT, micro_batch_sequences):
            with autocast(device):
                loss, _, _ = weighted_loss(state.model, micro_BT, micro_BT, share_B[: len(micro_BT)])
            torch.autograd.backward(loss)
            total += loss.item()
        if not np.isfinite(total):
            raise ValueError(f"{metrics.title}: the loss is {total} at step {state.step + 1}: lower the learning rate (it is {rate:g})")
        torch.nn.utils.clip_grad_norm_(state.model.parameters(), max_gradient_norm)
        for group in state.optimizer.param_groups:
            group["lr"] = rate
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        state.step += 1
        metrics.add(state.step, loss=total, learning_rate=rate)
        metrics.line(state.step, loss=total, lr=rate)
        after_step(state.step)


def train_resumably(
    state: TrainState,
    batch_of: Callable[[int], np.ndarray],
    last_step: int,
    checkpoint: UPath,
    *,
    checkpoint_every_steps: int,
    metrics: StepMetrics,
    after_step: Callable[[int], None] = lambda _step: None,
    **settings: Any,
) -> None:
    """`train`, going on from `checkpoint` when it exists and writing it every `checkpoint_every_steps` and at the end."""
    kept = Checkpoint(checkpoint, state, metrics, checkpoint_every_steps, last_step)
    kept.resume()

    def after(step: int) -> None:
        after_step(step)
        kept.after_step(step)

    train(state, batch_of, last_step, metrics=metrics, after_step=after, **settings)
    if not checkpoint.exists():  # no step to do: the initial state is the result
        kept.save()


@torch.no_grad()
def mean_token_loss(model: torch.nn.Module, rows: ValidationRows, batch_sequences: int = 64) -> tuple[float, np.ndarray, np.ndarray]:
    """Weighted mean loss over all counted tokens (nats), with each row's summed loss and token count (both of shape N, unweighted)."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    sums, counts = [], []
    for begin in range(0, len(rows), batch_sequences):
        batch = slice(begin, begin + batch_sequences)
        input_ids_BT, labels_BT = trim_padding(rows.input_ids_NT[batch], rows.labels_NT[batch])
        with autocast(device):
            sum_B, count_B = loss_sums(model, torch.from_numpy(input_ids_BT).to(device), torch.from_numpy(labels_BT).to(device))
        sums.append(sum_B.double().cpu().numpy())
        counts.append(count_B.cpu().numpy())
    model.train(was_training)
    sum_N, count_N = np.concatenate(sums), np.concatenate(counts)
    return float((rows.weight_N * sum_N).sum() / (rows.weight_N * count_N).sum()), sum_N, count_N
