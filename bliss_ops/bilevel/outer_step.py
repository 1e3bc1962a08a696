"""One outer step of bilevel training, with every quantity taken at one theta_p.

    1. extra inner steps    (num_inner_steps - 1 weighted AdamW steps of the proxy on batches of their own)
    2. grad f               validation gradient at theta_p (for `lookahead`, at theta_p - z), smoothed over steps
    3. P                    sample weights from the scores of one fresh batch
    4. z                    the inverse-Hessian approximation applied to grad f
    5. a_i, G               alignments and the proxy's training gradient on that batch, by one route
    6. theta_s              one AdamW step along the hypergradient, and towards the standardised alignments themselves
    7. theta_p              one AdamW step along G: the batch has not been trained on before its alignments were taken

Every worker holds its rows of each batch. Two numbers per sequence, the gradients' sums and nothing else cross workers.

Legend of shapes: B sequences of the global batch, b this worker's rows of it, T tokens.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import torch

from bliss_ops.bilevel import hypergradient, ihvp
from bliss_ops.bilevel.lower_level import LowerLevel
from bliss_ops.bilevel.objective import batch_temperature, effective_sample_size, sample_weights
from bliss_ops.bilevel.replay import Replay
from bliss_ops.bilevel.vectors import accumulated, cosine, norm, scaled, shifting, zeros_like
from bliss_ops.config import BilevelConfig
from bliss_ops.models.token_loss import weighted_loss
from bliss_ops.rank_correlation import spearman
from bliss_ops.training.device import autocast
from bliss_ops.training.state import TrainState, step_with
from bliss_ops.training.workers import ALONE, Workers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SPREAD_SMOOTHING = 0.9  # EMA factor of the mean and spread of the alignments
LARGEST_TARGET = 3.0  # standard deviations; alignments have heavy tails, and a regression would chase them


@dataclass
class BilevelState:
    """Everything a resumed job needs: both models with their optimizers, and what is carried from step to step."""

    proxy: TrainState
    score: TrainState
    reference: "PreTrainedModel | None" = None
    smoothed_gradient: list[torch.Tensor] = field(default_factory=list)  # EMA of grad f, not yet bias-corrected
    z: list[torch.Tensor] = field(default_factory=list)  # of the last step, for the warm start
    moments: torch.Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))  # EMA of a and a^2, not bias-corrected
    log_denominator: torch.Tensor = field(default_factory=lambda: torch.full((), torch.nan, dtype=torch.float64))  # of the last batch
    replay: Replay = field(default_factory=Replay)

    @property
    def step(self) -> int:
        """Outer steps done."""
        return self.score.step

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything needed to go on exactly, by name."""
        carried = {f"smoothed_gradient.{i}": value for i, value in enumerate(self.smoothed_gradient)}
        carried |= {f"z.{i}": value for i, value in enumerate(self.z)}
        carried |= {"moments": self.moments, "log_denominator": self.log_denominator}
        return self.proxy.tensors("proxy.") | self.score.tensors("score.") | carried | self.replay.tensors()

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take over what `tensors` wrote."""
        self.proxy.restore(tensors, "proxy.")
        self.score.restore(tensors, "score.")
        device = next(self.proxy.model.parameters()).device
        for name in ("smoothed_gradient", "z"):
            count = sum(key.startswith(f"{name}.") for key in tensors)
            setattr(self, name, [tensors[f"{name}.{i}"].to(device) for i in range(count)])
        self.moments, self.log_denominator = tensors["moments"], tensors["log_denominator"]
        self.replay.restore(tensors)


@dataclass(frozen=True)
class Batch:
    """This worker's rows of a candidate batch."""

    input_ids_bT: torch.Tensor
    num_sequences: int  # B, over all workers
    input_ids_BT: torch.Tensor | None = None  # the rows of all workers, on the CPU: what replays are made of


@dataclass(frozen=True)
class ValidationBatch:
    """This worker's rows of a validation batch; f = sum over all workers of weight_b * mean loss of row b."""

    input_ids_bT: torch.Tensor
    labels_bT: torch.Tensor
    weight_b: torch.Tensor


def outer_step(
    state: BilevelState,
    inner_batches: list[Batch],
    batch: Batch,
    validation: ValidationBatch,
    config: BilevelConfig,
    *,
    workers: Workers = ALONE,
) -> dict[str, float]:
    """Do one outer step in place and return its metrics, which are the same on every worker.

    Args:
        state: models, optimizers and what is carried from step to step.
        inner_batches: batches of the inner steps that come first.
        batch: the batch whose sequences are weighted, scored and (unless `outer_batch` is `trained`) trained on.
        validation: the step's validation rows.
        config: the bilevel settings.
        workers: the processes that share the step.
    """
    lower_of = partial(LowerLevel, state.proxy.model, config=config, reference=state.reference, workers=workers)
    for inner in inner_batches:
        _inner_step(state, inner, lower_of(inner.input_ids_bT, inner.num_sequences))

    ahead = config.ihvp == "lookahead"
    with shifting(list(state.proxy.model.parameters()), state.z) if ahead and state.z else nullcontext(_stay) as shift:
        shift(-1.0)
        validation_loss, gradient = validation_gradient(state.proxy.model, validation, config.micro_batch_sequences, workers)
    gradient_f = _smooth(state, gradient, config.gradient_smoothing)

    score_b, backward = _scores(state.score.model, batch.input_ids_bT, config.micro_batch_sequences)
    score_B = workers.gather(score_b, batch.num_sequences)
    mine = workers.share(batch.num_sequences)
    lower = lower_of(batch.input_ids_bT, batch.num_sequences)
    training_weight_b = _training_weights(state, score_B, config)[mine]
    z = ihvp.solve(
        config,
        gradient_f,
        second_moment=state.proxy.second_moments(),
        previous=state.z or None,
        product=partial(hypergradient.curvature_product, lower, training_weight_b),
    )
    warm = config.ihvp == "warm_start"
    if ahead:
        found = hypergradient.lookahead(lower, training_weight_b, z)
    else:
        found = hypergradient.route(config.alignment)(lower, training_weight_b, z, curvature=warm)
    alignment_B = workers.gather(found.alignment_b, batch.num_sequences)
    loss_B = workers.gather(found.loss_b, batch.num_sequences)

    spread, target_B = _standardise(state, alignment_B)
    judged_B = alignment_B / spread if config.normalise_alignments else alignment_B
    coefficient_B, weight_B = _score_gradient(score_B, judged_B, target_B, config)
    backward(coefficient_B[mine])
    hypergradient_norm = _step_score(state, config, workers)
    _replay(state, batch, target_B, config, workers)
    state.score.step += 1
    if config.outer_batch == "fresh":
        step_with(state.proxy.optimizer, lower.parameters, found.gradient)
        state.proxy.step += 1

    numbers = {
        "validation_loss": validation_loss,
        "proxy_loss": float(loss_B.mean()),
        "effective_sample_size": effective_sample_size(weight_B),
        "batch_temperature": batch_temperature(score_B, config) if config.weights == "softmax" else config.temperature,
        "hypergradient_norm": hypergradient_norm,
        "score_mean": float(score_B.mean()),
        "score_std": float(score_B.std()),
        "alignment_std": float(alignment_B.std()),
        "alignment_score_correlation": spearman(score_B.cpu().numpy(), alignment_B.cpu().numpy()),
        "z_norm": norm(z),
        "validation_gradient_norm": norm(gradient),
        "z_gradient_cosine": cosine(z, gradient_f),
    }
    if warm:
        assert found.curvature is not None
        numbers["residual"] = ihvp.relative_residual(z, found.curvature, gradient_f, ihvp.damping(config))
        z = ihvp.descend(z, found.curvature, gradient_f, ihvp.damping(config), config.solver_learning_rate)
    state.z = z
    return numbers


def validation_gradient(
    proxy: "PreTrainedModel", batch: ValidationBatch, micro_batch_sequences: int, workers: Workers = ALONE
) -> tuple[float, list[torch.Tensor]]:
    """f, the weighted mean loss over the counted tokens of the batch, and its gradient, both summed over workers."""
    parameters = list(proxy.parameters())
    gradient: list[torch.Tensor] = []
    loss = torch.zeros((), dtype=parameters[0].dtype, device=parameters[0].device)
    for begin in range(0, len(batch.input_ids_bT), micro_batch_sequences):
        rows = slice(begin, begin + micro_batch_sequences)
        with autocast(batch.input_ids_bT.device):
            total, _, _ = weighted_loss(proxy, batch.input_ids_bT[rows], batch.labels_bT[rows], batch.weight_b[rows])
        gradient = accumulated(gradient, torch.autograd.grad(total, parameters))
        loss += total.detach()
    gradient = gradient or zeros_like(parameters)
    workers.sum_([loss, *gradient])
    return float(loss), gradient


def _stay(_step: float) -> None:
    """What moves the parameters nowhere."""


def _smooth(state: BilevelState, gradient: list[torch.Tensor], factor: float) -> list[torch.Tensor]:
    """Fold this step's validation gradient into the running mean; returns the bias-corrected mean."""
    if not state.smoothed_gradient:
        state.smoothed_gradient = [torch.zeros_like(tensor) for tensor in gradient]
    torch._foreach_lerp_(state.smoothed_gradient, gradient, 1 - factor)
    return scaled(state.smoothed_gradient, 1 / (1 - factor ** (state.step + 1)))


def _scores(
    model: torch.nn.Module, input_ids_bT: torch.Tensor, micro_batch_sequences: int
) -> tuple[torch.Tensor, Callable[[torch.Tensor], None]]:
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


def _training_weights(state: BilevelState, score_B: torch.Tensor, config: BilevelConfig) -> torch.Tensor:
    """The weights the proxy trains with: P, or P with the previous batch's denominator, as released."""
    if not (config.stale_denominator and config.weights == "softmax"):
        return sample_weights(score_B, config)
    scaled_B = score_B / config.temperature
    before = state.log_denominator
    state.log_denominator = torch.logsumexp(scaled_B.double().cpu(), 0)
    denominator = state.log_denominator if torch.isnan(before) else before
    return (scaled_B - denominator.to(scaled_B)).exp()


def _standardise(state: BilevelState, alignment_B: torch.Tensor) -> tuple[float, torch.Tensor]:
    """(running spread of the alignments, the alignments in units of it around their running mean, clipped)."""
    factor = SPREAD_SMOOTHING
    wide_B = alignment_B.double().cpu()
    state.moments = factor * state.moments + (1 - factor) * torch.stack([wide_B.mean(), wide_B.square().mean()])
    mean, square = (state.moments / (1 - factor ** (state.step + 1))).tolist()
    spread = max(square - mean**2, 0.0) ** 0.5 or 1.0
    return spread, ((alignment_B - mean) / spread).clamp(-LARGEST_TARGET, LARGEST_TARGET)


def _score_gradient(
    score_B: torch.Tensor, alignment_B: torch.Tensor, target_B: torch.Tensor, config: BilevelConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """(d/dh of what the score model descends, P): the hypergradient's surrogate and the distillation of the alignments,

    - eta sum_i P_i(h) a_i + delta / (2 B) sum_i (h_i - target_i)^2.
    """
    gradient_B, weight_B = hypergradient.score_gradient(score_B, lambda leaf_B: sample_weights(leaf_B, config), alignment_B)
    distillation_B = (score_B - target_B) / len(score_B)
    return config.hypergradient_weight * gradient_B + config.distillation_weight * distillation_B, weight_B


def _replay(state: BilevelState, batch: Batch, target_B: torch.Tensor, config: BilevelConfig, workers: Workers) -> None:
    """Keep this batch's alignments, and step the score model towards some that were kept before."""
    if batch.input_ids_BT is None or not (config.num_replays and config.distillation_weight):
        return
    for number in range(config.num_replays if state.replay.targets else 0):
        input_ids_BT, earlier_B = state.replay.draw(state.step, number)
        mine = workers.share(len(earlier_B))
        device = batch.input_ids_bT.device
        score_b, backward = _scores(state.score.model, input_ids_BT[mine].long().to(device), config.micro_batch_sequences)
        backward(config.distillation_weight * (score_b - earlier_B[mine].to(score_b)) / len(earlier_B))
        _step_score(state, config, workers)
    state.replay.add(batch.input_ids_BT, target_B, config.replay_batches)


def _step_score(state: BilevelState, config: BilevelConfig, workers: Workers) -> float:
    """Sum the score model's gradient over workers, clip it, take the AdamW step; returns its norm before clipping."""
    parameters = list(state.score.model.parameters())
    gradient = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    workers.sum_(gradient)
    size = norm(gradient)
    if size > config.max_hypergradient_norm:
        gradient = scaled(gradient, config.max_hypergradient_norm / size)
    step_with(state.score.optimizer, parameters, gradient)
    return size


def _inner_step(state: BilevelState, batch: Batch, lower: LowerLevel) -> None:
    """One weighted AdamW step of the proxy."""
    with torch.no_grad():
        score_b, _ = _scores(state.score.model, batch.input_ids_bT, lower.config.micro_batch_sequences)
    score_B = lower.workers.gather(score_b.detach(), batch.num_sequences)
    weight_b = _training_weights(state, score_B, lower.config)[lower.workers.share(batch.num_sequences)]
    gradient, _ = lower.gradient(weight_b)
    step_with(state.proxy.optimizer, lower.parameters, gradient)
    state.proxy.step += 1
