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

from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING

import torch

from bliss_ops.bilevel import hypergradient, ihvp
from bliss_ops.bilevel.lower_level import LowerLevel
from bliss_ops.bilevel.objective import batch_temperature, effective_sample_size, sample_weights
from bliss_ops.bilevel.score_step import score_step, scores
from bliss_ops.bilevel.state import Batch, BilevelState, ValidationBatch
from bliss_ops.bilevel.vectors import accumulated, cosine, norm, scaled, shifting, zeros_like
from bliss_ops.config import BilevelConfig
from bliss_ops.models.token_loss import weighted_loss
from bliss_ops.rank_correlation import spearman
from bliss_ops.training.device import autocast
from bliss_ops.training.state import step_with
from bliss_ops.training.workers import ALONE, Workers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


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
    lower = lower_of(batch.input_ids_bT, batch.num_sequences)
    for inner in inner_batches:  # the last one is `batch` itself where the order is the released one
        _inner_step(state, inner, lower if inner is batch else lower_of(inner.input_ids_bT, inner.num_sequences))

    ahead = config.ihvp == "lookahead"
    with shifting(list(state.proxy.model.parameters()), state.z) if ahead and state.z else nullcontext(_stay) as shift:
        shift(-1.0)
        validation_loss, gradient = validation_gradient(state.proxy.model, validation, config.micro_batch_sequences, workers)
    gradient_f = _smooth(state, gradient, config.gradient_smoothing)

    score_b, backward = scores(state.score.model, batch.input_ids_bT, config.micro_batch_sequences)
    score_B = workers.gather(score_b, batch.num_sequences)
    mine = workers.share(batch.num_sequences)
    training_weight_b = _training_weights(state, score_B, config)[mine]
    z = ihvp.solve(
        config,
        gradient_f,
        usual_size=state.proxy.root_mean_squares,
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

    weight_B, hypergradient_norm = score_step(state, batch, score_B, backward, alignment_B, config, workers)
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


def _training_weights(state: BilevelState, score_B: torch.Tensor, config: BilevelConfig) -> torch.Tensor:
    """The weights the proxy trains with: P, or P with the previous batch's denominator, as released."""
    if not (config.stale_denominator and config.weights == "softmax"):
        return sample_weights(score_B, config)
    scaled_B = score_B / config.temperature
    before = state.log_denominator
    state.log_denominator = torch.logsumexp(scaled_B.double().cpu(), 0)
    denominator = state.log_denominator if torch.isnan(before) else before
    return (scaled_B - denominator.to(scaled_B)).exp()


def _inner_step(state: BilevelState, batch: Batch, lower: LowerLevel) -> None:
    """One weighted AdamW step of the proxy."""
    with torch.no_grad():
        score_b, _ = scores(state.score.model, batch.input_ids_bT, lower.config.micro_batch_sequences)
    score_B = lower.workers.gather(score_b.detach(), batch.num_sequences)
    weight_b = _training_weights(state, score_B, lower.config)[lower.workers.share(batch.num_sequences)]
    gradient, _ = lower.gradient(weight_b)
    step_with(state.proxy.optimizer, lower.parameters, gradient)
    state.proxy.step += 1
