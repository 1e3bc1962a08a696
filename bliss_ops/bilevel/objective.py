"""The weights of a batch, from its scores, and the KL term between proxy and reference model.

    P = softmax(h / t) over the global batch; `naive` weights sigmoid(h_i) / B are the published ablation.

Legend of shapes: B sequences of the global batch, m sequences of a micro-batch, T tokens, V vocabulary.
"""

import torch
import torch.nn.functional as F

from bliss_ops.config import BilevelConfig


def sample_weights(score_B: torch.Tensor, config: BilevelConfig) -> torch.Tensor:
    """Weights of the global batch, differentiable in the scores; shape B.

    Softmax weights sum to 1; their t is `config.temperature`, raised for this batch when the effective sample size would fall below
    its floor. Adding a constant to every score changes nothing.
    """
    if config.weights == "naive":
        return torch.sigmoid(score_B / config.temperature) / len(score_B)
    return torch.softmax(score_B / batch_temperature(score_B.detach(), config), dim=0)


def batch_temperature(score_B: torch.Tensor, config: BilevelConfig) -> float:
    """The smallest temperature >= `config.temperature` that keeps the effective sample size at its floor (bisection in log t)."""
    score_B = score_B.double().cpu()  # one transfer instead of one per trial
    floor, low = config.min_effective_sample_size, config.temperature
    if not torch.isfinite(score_B).all() or effective_sample_size(torch.softmax(score_B / low, 0)) >= floor:
        return low
    high = max(2 * low, float(score_B.std()))
    while effective_sample_size(torch.softmax(score_B / high, 0)) < floor:
        low, high = high, 2 * high
    for _ in range(30):
        middle = (low * high) ** 0.5
        if effective_sample_size(torch.softmax(score_B / middle, 0)) < floor:
            low = middle
        else:
            high = middle
    return high


def effective_sample_size(weight_B: torch.Tensor) -> float:
    """(sum P)^2 / (B sum P^2): 1 for equal weights, 1/B when one sequence has all."""
    return float(weight_B.sum() ** 2 / (weight_B.square().sum() * len(weight_B)))


def divergence_m(proxy_logits_mTV: torch.Tensor, reference_logits_mTV: torch.Tensor, direction: str) -> torch.Tensor:
    """KL_i, the mean over the predicted tokens of sequence i; shape m. `proxy_reference` is KL(proxy||reference)."""
    log_proxy = F.log_softmax(proxy_logits_mTV[:, :-1].float() if _is_half(proxy_logits_mTV) else proxy_logits_mTV[:, :-1], dim=-1)
    log_reference = F.log_softmax(reference_logits_mTV[:, :-1].to(log_proxy.dtype), dim=-1)
    first, second = (log_proxy, log_reference) if direction == "proxy_reference" else (log_reference, log_proxy)
    return (first.exp() * (first - second)).sum(-1).mean(1)


def _is_half(tensor: torch.Tensor) -> bool:
    return tensor.dtype in (torch.bfloat16, torch.float16)
