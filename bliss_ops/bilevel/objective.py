"""The lower level: weights of a batch from its scores, and the loss the proxy is trained on.

    g(theta_p, theta_s) = sum_i P_i L_i(theta_p) + gamma * mean_i KL_i + lambda * |theta_p|^2,    P = softmax(h / temperature)

Legend of shapes: B sequences of the global batch, T tokens, V vocabulary.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from bliss_ops.config import BilevelConfig


def sample_weights(score_B: torch.Tensor, config: BilevelConfig) -> torch.Tensor:
    """P = softmax(h / t) over the global batch, differentiable in h; shape B, sums to 1.

    t is `config.temperature`, raised for this batch when the effective sample size would fall below its floor. Adding a constant
    to every score changes nothing.
    """
    return torch.softmax(score_B / batch_temperature(score_B.detach(), config), dim=0)


def batch_temperature(score_B: torch.Tensor, config: BilevelConfig) -> float:
    """The smallest temperature >= `config.temperature` that keeps the effective sample size at its floor (bisection in log t)."""
    low = config.temperature
    if effective_sample_size(torch.softmax(score_B / low, 0)) >= config.min_effective_sample_size:
        return low
    high = 2 * low
    while effective_sample_size(torch.softmax(score_B / high, 0)) < config.min_effective_sample_size:
        low, high = high, 2 * high
    for _ in range(20):
        middle = (low * high) ** 0.5
        if effective_sample_size(torch.softmax(score_B / middle, 0)) < config.min_effective_sample_size:
            low = middle
        else:
            high = middle
    return high


def effective_sample_size(weight_B: torch.Tensor) -> float:
    """(sum P)^2 / (B sum P^2): 1 for equal weights, 1/B when one sequence has all."""
    return float(weight_B.sum() ** 2 / (weight_B.square().sum() * len(weight_B)))


def regulariser(
    proxy_logits_BTV: torch.Tensor,
    reference_logits_BTV: torch.Tensor | None,
    parameters: Sequence[torch.Tensor],
    config: BilevelConfig,
) -> torch.Tensor:
    """gamma * mean_i KL_i + lambda * |theta_p|^2; KL_i is the mean over the tokens of sequence i."""
    total = proxy_logits_BTV.new_zeros(())
    if reference_logits_BTV is not None:
        log_proxy = F.log_softmax(proxy_logits_BTV[:, :-1], dim=-1)
        log_reference = F.log_softmax(reference_logits_BTV[:, :-1], dim=-1)
        first, second = (log_proxy, log_reference) if config.kl_direction == "proxy_reference" else (log_reference, log_proxy)
        total = total + config.kl_weight * (first.exp() * (first - second)).sum(-1).mean()
    if config.l2_weight:
        total = total + config.l2_weight * sum((parameter.square().sum() for parameter in parameters), start=total.new_zeros(()))
    return total
