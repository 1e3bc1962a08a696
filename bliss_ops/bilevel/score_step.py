"""The score model's side of an outer step: scores, the hypergradient beside the distillation, replays.

The score model descends

    - eta sum_i P_i(h) a_i + delta / (2 B) sum_i (h_i - target_i)^2

with the alignments a_i held fixed, eta = `hypergradient_weight`, delta = `distillation_weight`, and as targets the alignments
themselves, standardised: the first term says which way to go, the second how far.

Legend of shapes: B sequences of the global batch, b this worker's rows of it, m those of a micro-batch, T tokens.
"""

from collections.abc import Callable

import torch

from bliss_ops.bilevel import hypergradient
from bliss_ops.bilevel.objective import sample_weights
from bliss_ops.bilevel.state import Batch, BilevelState
from bliss_ops.bilevel.vectors import norm
from bliss_ops.config import BilevelConfig
from bliss_ops.training.device import autocast
from bliss_ops.training.state import step_with
from bliss_ops.training.workers import Workers

SPREAD_SMOOTHING = 0.9  # EMA factor of the mean and spread of the alignments
LARGEST_TARGET = 3.0  # standard deviations; alignments have heavy tails, and a regression would chase them

Backward = Callable[[torch.Tensor], None]  # takes d/dh_b back through the score model, into its parameters' `grad`


def score_step(
    state: BilevelState,
    batch: Batch,
    score_B: torch.Tensor,
    backward: Backward,
    alignment_B: torch.Tensor,
    config: BilevelConfig,
    workers: Workers,
) -> tuple[torch.Tensor, float]:
    """One AdamW step on the batch, and `num_replays` on earlier ones, in place.

    Args:
        state: of whose score model the scores are.
        batch: this worker's rows, and what replays are made of.
        score_B: h of the whole batch.
        backward: what `scores` gave for this worker's rows.
        alignment_B: a of the whole batch.
        config: the bilevel settings.
        workers: the processes that share the step.

    Returns:
        The sample weights P of the whole batch, and the norm of the score model's gradient before clipping.
    """
    spread, target_B = _standardise(state, alignment_B)
    judged_B = alignment_B / spread if config.normalise_alignments else alignment_B
    coefficient_B, weight_B = _gradient(score_B, judged_B, target_B, config)
    backward(coefficient_B[workers.share(batch.num_sequences)])
    gradient_norm = _step(state, config, workers)
    _replay(state, batch, target_B, config, workers)
    state.score.step += 1
    return weight_B, gradient_norm


def learning_rate(step: int, config: BilevelConfig) -> float:
    """Of outer step `step` (from 0): constant, then linearly towards zero, because single alignments are noisy."""
    steps_left, decay_steps = max(config.num_steps - step, 0), config.score_decay * config.num_steps
    return config.score_learning_rate * min(1.0, steps_left / max(decay_steps, 1.0))


def scores(model: torch.nn.Module, input_ids_bT: torch.Tensor, micro_batch_sequences: int) -> tuple[torch.Tensor, Backward]:
    """(h_b, a function that takes d/dh_b back through the model). More rows than one micro-batch are scored again, with a graph, then."""

    def scored(rows_mT: torch.Tensor) -> torch.Tensor:
        with autocast(rows_mT.device):
            score_m: torch.Tensor = model(rows_mT)
        return score_m

    micro_batches = torch.split(input_ids_bT, micro_batch_sequences) if len(input_ids_bT) else ()
    if len(micro_batches) == 1:
        score_b = scored(input_ids_bT)
        return score_b.detach(), lambda coefficient_b: score_b.backward(coefficient_b.to(score_b.dtype))  # type: ignore[no-untyped-call]
    with torch.no_grad():
        empty = torch.zeros(0, dtype=next(model.parameters()).dtype, device=input_ids_bT.device)
        score_b = torch.cat([empty, *(scored(rows_mT) for rows_mT in micro_batches)])

    def backward(coefficient_b: torch.Tensor) -> None:
        for rows_mT, coefficient_m in zip(micro_batches, torch.split(coefficient_b, micro_batch_sequences), strict=False):
            score_m = scored(rows_mT)
            score_m.backward(coefficient_m.to(score_m.dtype))  # type: ignore[no-untyped-call]

    return score_b, backward


def _standardise(state: BilevelState, alignment_B: torch.Tensor) -> tuple[float, torch.Tensor]:
    """(running spread of the alignments, the alignments in units of it around their running mean, clipped)."""
    factor = SPREAD_SMOOTHING
    wide_B = alignment_B.double().cpu()
    state.moments = factor * state.moments + (1 - factor) * torch.stack([wide_B.mean(), wide_B.square().mean()])
    mean, square = (state.moments / (1 - factor ** (state.step + 1))).tolist()
    spread = max(square - mean**2, 0.0) ** 0.5 or 1.0
    return spread, ((alignment_B - mean) / spread).clamp(-LARGEST_TARGET, LARGEST_TARGET)


def _gradient(
    score_B: torch.Tensor, alignment_B: torch.Tensor, target_B: torch.Tensor, config: BilevelConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """(d/dh of what the score model descends, P)."""
    gradient_B, weight_B = hypergradient.score_gradient(score_B, lambda leaf_B: sample_weights(leaf_B, config), alignment_B)
    distillation_B = (score_B - target_B) / len(score_B)
    return config.hypergradient_weight * gradient_B + config.distillation_weight * distillation_B, weight_B


def _step(state: BilevelState, config: BilevelConfig, workers: Workers) -> float:
    """Sum the score model's gradient over workers, clip it, take the AdamW step; returns its norm before clipping."""
    parameters = list(state.score.model.parameters())
    gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    workers.sum_(gradient)
    size = norm(gradient)
    for group in state.score.optimizer.param_groups:
        group["lr"] = learning_rate(state.step, config)
    if size > config.max_hypergradient_norm:
        torch._foreach_mul_(gradient, config.max_hypergradient_norm / size)
    step_with(state.score.optimizer, parameters, gradient)
    return size


def _replay(state: BilevelState, batch: Batch, target_B: torch.Tensor, config: BilevelConfig, workers: Workers) -> None:
    """Keep this batch's alignments, and step the score model towards some that were kept before."""
    if batch.input_ids_BT is None or not (config.num_replays and config.distillation_weight):
        return
    for number in range(config.num_replays if state.replay.targets else 0):
        input_ids_BT, earlier_B = state.replay.draw(state.step, number)
        mine = workers.share(len(earlier_B))
        device = batch.input_ids_bT.device
        score_b, backward = scores(state.score.model, input_ids_BT[mine].long().to(device), config.micro_batch_sequences)
        backward(config.distillation_weight * (score_b - earlier_B[mine].to(score_b)) / len(earlier_B))
        _step(state, config, workers)
    state.replay.add(batch.input_ids_BT, target_B, config.replay_batches)
