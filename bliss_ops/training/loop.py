"""The one language-model training loop: warm-up, pretraining and its decay branches are this function with other arguments.

It runs in every worker of a job. Each reads the same stream of batches and takes its rows of every batch; losses and gradients are sums
over all workers with weights that belong to the global batch, so a step is the mean over all of its tokens for any number of workers,
any division into micro-batches, and any sharding (training/parallel.py).

Legend of shapes: B sequences of an optimizer step, m of a micro-batch, T tokens.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from upath import UPath

from bliss_ops.corpus.validation import ValidationRows, trim_padding
from bliss_ops.models.token_loss import loss_sums
from bliss_ops.training import parallel
from bliss_ops.training.checkpoints import CheckpointSeries, Policy
from bliss_ops.training.device import autocast, explained_out_of_memory
from bliss_ops.training.metrics import StepMetrics
from bliss_ops.training.prefetch import prefetched
from bliss_ops.training.state import TrainState
from bliss_ops.training.workers import ALONE, Workers


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
    workers: Workers = ALONE,
    num_batches_ahead: int = 0,
    describe_batch: Callable[[int], str] = lambda _step: "",
) -> None:
    """Train `state` in place until it has done `last_step` optimizer steps.

    Args:
        state: model, optimizer and the number of steps done; a resumed one goes on exactly.
        batch_of: step (from 0) -> input_ids_BT of all workers; position is a function of the step, so nothing else needs to be remembered.
        last_step: number of optimizer steps done at the end.
        learning_rate: step (from 0) -> rate.
        micro_batch_sequences: sequences per forward pass and worker; the result is the mean over all tokens of the step whatever it is.
        max_gradient_norm: the gradient is scaled down to this norm.
        metrics: takes loss and learning rate of every step.
        after_step: called with the number of steps done, for checkpoints and evaluation.
        workers: the processes that share each step.
        num_batches_ahead: batches that a thread reads ahead.
        describe_batch: step (from 0) -> which sequences it reads, for messages.

    Raises:
        ValueError: loss or gradient is not finite, or the GPU is out of memory; the last checkpoint is left as it was.
    """
    device = next(state.model.parameters()).device
    state.model.train()
    advice = ", or set pretraining.activation_checkpointing to true"
    with (
        prefetched(batch_of, state.step, last_step, num_ahead=num_batches_ahead, pin=device.type == "cuda") as batches,
        explained_out_of_memory(metrics.title, "pretraining.micro_batch_sequences", micro_batch_sequences, advice),
    ):
        while state.step < last_step:
            loss = _accumulate_gradients(state, batches(state.step), micro_batch_sequences, device, workers)
            norm = parallel.whole(torch.nn.utils.clip_grad_norm_(state.model.parameters(), max_gradient_norm))
            workers.sum_([loss])
            total, size = torch.stack([loss, norm.to(loss)]).tolist()  # the one time in a step that the GPU is waited for
            rate = learning_rate(state.step)
            if not (np.isfinite(total) and np.isfinite(size)):
                _stop(metrics.title, state.step + 1, total, size, rate, describe_batch(state.step))
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
    start: Callable[[], None] = lambda: None,
    after_step: Callable[[int], None] = lambda _step: None,
    keep_checkpoints: int = 2,
    keep_every_steps: int | None = None,
    keep_steps: tuple[int, ...] = (),
    workers: Workers = ALONE,
    **settings: Any,
) -> None:
    """`train`, going on from the newest checkpoint; the state after the last step is written to `checkpoint`.

    Args:
        state: where training begins; replaced by the newest checkpoint beside `checkpoint`, or by that itself.
        batch_of: as in `train`.
        last_step: as in `train`.
        checkpoint: of the state after the last step.
        checkpoint_every_steps: steps that a killed job loses at most.
        metrics: as in `train`; goes on from the checkpoint, too.
        start: called when there is no checkpoint, to put `state` where training begins.
        after_step: as in `train`.
        keep_checkpoints: checkpoints that stay while the job runs, the last ones.
        keep_every_steps: those of multiples of it stay for good.
        keep_steps: steps whose checkpoints are made, and stay until someone discards them.
        workers: as in `train`.
        settings: further ones of `train`.

    Raises:
        ValueError: as `train`; or there are checkpoints of which none can be read, or of a model of another shape.
    """
    policy = Policy(checkpoint_every_steps, keep_checkpoints, keep_every_steps, keep_steps)
    series = CheckpointSeries(checkpoint, state, metrics, policy, last_step=last_step, workers=workers)

    def after(step: int) -> None:
        after_step(step)
        series.after_step(step)

    try:
        if not series.resume():
            start()
            metrics.resume(state.step)
        train(state, batch_of, last_step, metrics=metrics, after_step=after, workers=workers, **settings)
        series.finish()
    finally:
        series.close()  # what has been begun is written also when the loss is not finite


def _accumulate_gradients(
    state: TrainState, input_ids_BT: torch.Tensor, micro_batch_sequences: int, device: torch.device, workers: Workers
) -> torch.Tensor:
    """Add the gradient of the mean loss over all tokens of the batch; returns this worker's part of that loss (float64).

    Workers take the same number of passes, since sharded ones exchange in each: who has no rows left computes one of weight 0.
    """
    objective, num_sequences = state.loss(), len(input_ids_BT)
    mine_BT = input_ids_BT[workers.share(num_sequences)].to(device, non_blocking=True)
    spare_BT = input_ids_BT[:1].to(device, non_blocking=True)
    largest_share = -(-num_sequences // workers.count)
    num_passes = -(-largest_share // micro_batch_sequences)
    total = torch.zeros((), dtype=torch.float64, device=device)
    for index in range(num_passes):
        micro_mT = mine_BT[index * micro_batch_sequences : (index + 1) * micro_batch_sequences]
        weight = 1 / num_sequences if len(micro_mT) else 0.0
        micro_mT = micro_mT if len(micro_mT) else spare_BT
        weight_m = torch.full((len(micro_mT),), weight, device=device)
        with parallel.without_exchange(objective, is_last=index == num_passes - 1):
            with autocast(device):
                loss, _, _ = objective(micro_mT, micro_mT, weight_m)
            torch.autograd.backward(loss)
        total += loss.detach()
    return total


def _stop(title: str, step: int, loss: float, norm: float, rate: float, batch: str) -> None:
    what = f"the loss is {loss}" if not np.isfinite(loss) else f"the gradient's norm is {norm} (loss {loss:.4g})"
    which = f" ({batch})" if batch else ""
    raise ValueError(
        f"{title}: {what} at step {step}{which}: lower the learning rate (it is {rate:g}) or lengthen its warm-up, or look at these "
        "sequences; the last checkpoint is as it was, and the same command goes on from it"
    )


@torch.no_grad()
def mean_token_loss(
    model: torch.nn.Module,
    rows: ValidationRows,
    batch_sequences: int = 64,
    *,
    objective: torch.nn.Module | None = None,
    workers: Workers = ALONE,
) -> tuple[float, np.ndarray, np.ndarray]:
    """Weighted mean loss over all counted tokens (nats), with each row's summed loss and token count (both of shape N, unweighted).

    Args:
        model: a causal language model.
        rows: to measure on.
        batch_sequences: rows per forward pass; batches are dealt out to the workers, so none is divided otherwise for their sake.
        objective: the model over the workers, where it is sharded.
        workers: of the job; each returns the whole result.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    sum_N = torch.zeros(len(rows), dtype=torch.float64)
    count_N = torch.zeros(len(rows), dtype=torch.float64)
    for begin, is_mine in _dealt_out(len(rows), batch_sequences, workers):
        batch = slice(begin, begin + batch_sequences)
        input_ids_BT, labels_BT = (torch.from_numpy(c).to(device) for c in trim_padding(rows.input_ids_NT[batch], rows.labels_NT[batch]))
        with autocast(device):
            if objective is None:
                sum_B, count_B = loss_sums(model, input_ids_BT, labels_BT)
            else:
                _, sum_B, count_B = objective(input_ids_BT, labels_BT, torch.zeros(len(labels_BT), device=device))
        if is_mine:
            sum_N[batch], count_N[batch] = sum_B.double().cpu(), count_B.double().cpu()
    if objective is not None:
        parallel.after_evaluation(objective)
    workers.sum_([sum_N, count_N])
    model.train(was_training)
    weight_N, total_N, number_N = rows.weight_N, sum_N.numpy(), count_N.numpy().astype(np.int64)
    return float((weight_N * total_N).sum() / (weight_N * number_N).sum()), total_N, number_N


def _dealt_out(num_rows: int, batch_rows: int, workers: Workers) -> Iterator[tuple[int, bool]]:
    """(first row, whether it counts) of this worker's batches; the same number for every worker, filled up with the first one."""
    begins = range(0, num_rows, batch_rows)
    for group in range(0, len(begins), workers.count):
        number = group + workers.rank
        yield (begins[number], True) if number < len(begins) else (0, False)
