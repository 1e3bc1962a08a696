"""One outer step of bilevel training, with every quantity taken at one theta_p.

    1. extra inner steps    (num_inner_steps - 1 weighted AdamW steps of the proxy on batches of their own)
    2. grad f               validation gradient at theta_p, smoothed over steps
    3. z                    the inverse-Hessian approximation applied to it
    4. P, a_i, G            sample weights, alignments and the proxy's training gradient on one fresh batch
    5. theta_s              one AdamW step along the hypergradient
    6. theta_p              one AdamW step along G: the batch has not been trained on before its alignments were taken

Legend of shapes: B sequences of the global batch, T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bliss_ops.bilevel import hypergradient
from bliss_ops.bilevel.objective import effective_sample_size, regulariser, sample_weights
from bliss_ops.config import BilevelConfig
from bliss_ops.models.language import token_loss_sums
from bliss_ops.training.device import autocast
from bliss_ops.training.state import TrainState, step_with


@dataclass
class BilevelState:
    """Everything a resumed job needs: both models with their optimizers, and the smoothed validation gradient."""

    proxy: TrainState
    score: TrainState
    smoothed_gradient: list[torch.Tensor]  # EMA of grad f, not yet bias-corrected
    reference: torch.nn.Module | None = None

    @property
    def step(self) -> int:
        """Outer steps done."""
        return self.score.step

    def tensors(self) -> dict[str, torch.Tensor]:
        smoothed = {f"smoothed_gradient.{i}": value for i, value in enumerate(self.smoothed_gradient)}
        return self.proxy.tensors("proxy.") | self.score.tensors("score.") | smoothed

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        self.proxy.restore(tensors, "proxy.")
        self.score.restore(tensors, "score.")
        self.smoothed_gradient = [tensors[f"smoothed_gradient.{i}"].to(value.device) for i, value in enumerate(self.smoothed_gradient)]


def outer_step(
    state: BilevelState,
    inner_batches: list[torch.Tensor],
    batch_BT: torch.Tensor,
    validation_batch: tuple[torch.Tensor, torch.Tensor],
    config: BilevelConfig,
) -> dict[str, float]:
    """Do one outer step in place and return its metrics.

    Args:
        state: models, optimizers and the smoothed gradient.
        inner_batches: num_inner_steps - 1 batches for the extra inner steps, each input_ids_BT.
        batch_BT: the batch whose sequences are weighted, scored and trained on.
        validation_batch: input_ids and labels, both of shape [rows, T].
        config: the bilevel settings.
    """
    parameters = list(state.proxy.model.parameters())
    for inner_BT in inner_batches:
        _inner_step(state, inner_BT, parameters, config)

    validation_loss, gradient_f = validation_gradient(state.proxy.model, validation_batch, parameters)
    smoothing = config.gradient_smoothing
    for smoothed, gradient in zip(state.smoothed_gradient, gradient_f, strict=True):
        smoothed.mul_(smoothing).add_(gradient, alpha=1 - smoothing)
    correction = 1 - smoothing ** (state.step + 1)
    smoothed_f = [smoothed / correction for smoothed in state.smoothed_gradient]
    second_moment = state.proxy.second_moments() if config.ihvp == "adam_diagonal" else None
    z = hypergradient.precondition(smoothed_f, second_moment, config.damping)

    with autocast(batch_BT.device):
        score_B = state.score.model(batch_BT)
    weight_B = sample_weights(score_B, config)
    align = hypergradient.ALIGNMENTS[config.alignment]
    alignment_B, gradient_g, loss_B = align(lambda: inner_losses(state, batch_BT, parameters, config), weight_B, parameters, z)

    hypergradient.surrogate(weight_B, alignment_B).backward()  # type: ignore[no-untyped-call]
    hypergradient_norm = hypergradient.norm([p.grad for p in state.score.model.parameters() if p.grad is not None])
    state.score.optimizer.step()
    state.score.optimizer.zero_grad(set_to_none=True)
    state.score.step += 1
    step_with(state.proxy.optimizer, parameters, gradient_g)
    state.proxy.step += 1

    return {
        "validation_loss": validation_loss,
        "proxy_loss": float(loss_B.mean()),
        "effective_sample_size": effective_sample_size(weight_B.detach()),
        "hypergradient_norm": hypergradient_norm,
        "score_mean": float(score_B.detach().mean()),
        "score_std": float(score_B.detach().std()),
        "alignment_score_correlation": spearman(score_B.detach().cpu().numpy(), alignment_B.cpu().numpy()),
        "z_norm": hypergradient.norm(z),
        "validation_gradient_norm": hypergradient.norm(gradient_f),
        "z_gradient_cosine": float(hypergradient.inner_product(z, gradient_f))
        / max(hypergradient.norm(z) * hypergradient.norm(gradient_f), 1e-30),
    }


def inner_losses(
    state: BilevelState, batch_BT: torch.Tensor, parameters: Sequence[torch.Tensor], config: BilevelConfig
) -> tuple[torch.Tensor, torch.Tensor]:
    """Per-sequence losses L_B of the proxy and the regulariser R, with the proxy's graph."""
    with autocast(batch_BT.device):
        logits_BTV = state.proxy.model(input_ids=batch_BT).logits
        reference_BTV = None
        if state.reference is not None:
            with torch.no_grad():
                reference_BTV = state.reference(input_ids=batch_BT).logits
    sums_B, counts_B = token_loss_sums(logits_BTV, batch_BT)
    return sums_B / counts_B, regulariser(logits_BTV, reference_BTV, parameters, config)


def validation_gradient(
    proxy: torch.nn.Module, validation_batch: tuple[torch.Tensor, torch.Tensor], parameters: Sequence[torch.Tensor]
) -> tuple[float, list[torch.Tensor]]:
    """f, the mean loss over the counted tokens of the batch, and its gradient."""
    input_ids_BT, labels_BT = validation_batch
    with autocast(input_ids_BT.device):
        logits_BTV = proxy(input_ids=input_ids_BT).logits
    sums_B, counts_B = token_loss_sums(logits_BTV, labels_BT)
    loss = sums_B.sum() / counts_B.sum()
    return float(loss.detach()), list(torch.autograd.grad(loss, parameters))


def spearman(x_N: np.ndarray, y_N: np.ndarray) -> float:
    """Rank correlation; 0 when either side is constant."""
    if np.ptp(x_N) == 0 or np.ptp(y_N) == 0:
        return 0.0
    x_rank_N, y_rank_N = (np.argsort(np.argsort(values)).astype(np.float64) for values in (x_N, y_N))
    return float(np.corrcoef(x_rank_N, y_rank_N)[0, 1])


def _inner_step(state: BilevelState, batch_BT: torch.Tensor, parameters: Sequence[torch.Tensor], config: BilevelConfig) -> None:
    with torch.no_grad(), autocast(batch_BT.device):
        weight_B = sample_weights(state.score.model(batch_BT), config)
    loss_B, penalty = inner_losses(state, batch_BT, parameters, config)
    gradient = torch.autograd.grad((weight_B * loss_B).sum() + penalty, parameters)
    step_with(state.proxy.optimizer, parameters, list(gradient))
    state.proxy.step += 1
