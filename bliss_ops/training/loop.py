"""The one language-model training loop: warm-up, pretraining and its decay branch are this function with other arguments.

Legend of shapes: B sequences of an optimizer step, T tokens.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from upath import UPath

from bliss_ops.corpus.validation import trim_padding
from bliss_ops.models.language import read_tensors, token_loss_sums, write_tensors
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
        num_tokens = input_ids_BT.shape[0] * (input_ids_BT.shape[1] - 1)
        rate = learning_rate(state.step)
        total = 0.0
        for micro_BT in torch.split(input_ids_BT, micro_batch_sequences):
            with autocast(device):
                logits_BTV = state.model(input_ids=micro_BT).logits
            loss = token_loss_sums(logits_BTV, micro_BT)[0].sum() / num_tokens
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
    if checkpoint.exists():
        state.restore(read_tensors(checkpoint))
        metrics.resume(state.step)

    def save_now_and_then(step: int) -> None:
        after_step(step)
        if step % checkpoint_every_steps == 0 or step == last_step:
            metrics.write()
            write_tensors(checkpoint, state.tensors())

    train(state, batch_of, last_step, metrics=metrics, after_step=save_now_and_then, **settings)
    if not checkpoint.exists():  # no step to do: the initial state is the result
        metrics.write()
        write_tensors(checkpoint, state.tensors())


@torch.no_grad()
def mean_token_loss(
    model: torch.nn.Module, input_ids_NT: np.ndarray, labels_NT: np.ndarray, batch_sequences: int = 64
) -> tuple[float, np.ndarray, np.ndarray]:
    """Mean loss over all counted tokens (nats), with each row's summed loss and token count (both of shape N)."""
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    sums, counts = [], []
    for begin in range(0, len(input_ids_NT), batch_sequences):
        rows = slice(begin, begin + batch_sequences)
        input_ids_BT, labels_BT = trim_padding(input_ids_NT[rows], labels_NT[rows])
        with autocast(device):
            logits_BTV = model(input_ids=torch.from_numpy(input_ids_BT).to(device)).logits
        sum_B, count_B = token_loss_sums(logits_BTV, torch.from_numpy(labels_BT).to(device))
        sums.append(sum_B.double().cpu().numpy())
        counts.append(count_B.cpu().numpy())
    model.train(was_training)
    sum_N, count_N = np.concatenate(sums), np.concatenate(counts)
    return float(sum_N.sum() / count_N.sum()), sum_N, count_N
