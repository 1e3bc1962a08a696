"""Tiny bilevel problems in float64, and what they come to by plain autograd through full logits and an explicit graph."""

from typing import Any

import torch
import torch.nn.functional as F

from bliss_ops.bilevel.lower_level import LowerLevel
from bliss_ops.bilevel.vectors import Tensors, inner_product, norm
from bliss_ops.config import BilevelConfig
from bliss_ops.models import language
from bliss_ops.models.score import ScoreModel

VOCABULARY, LENGTH = 64, 12
NO_FLOOR: dict[str, Any] = {"min_effective_sample_size": 0.0}


def language_model(shape: str = "tiny-neox-64", *, seed: int = 1) -> torch.nn.Module:
    """Not at the symmetric point of its initialisation: vectors (biases, norms) are random as well."""
    model = language.build(shape, vocab_size=VOCABULARY, sequence_length=LENGTH, seed=seed)
    for module in list(model.modules()):
        for name, norm_layer in module.named_children():
            if "RMSNorm" in type(norm_layer).__name__:  # LLaMA's own computes in float32 whatever it is given
                setattr(module, name, torch.nn.RMSNorm(norm_layer.weight.shape, eps=norm_layer.variance_epsilon))
    model = model.double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def score_model(shape: str = "tiny-neox-64", *, head: str = "linear", pooling: str = "mean", num_heads: int = 2) -> torch.nn.Module:
    """With a head away from zero, so that the weights differ."""
    model = ScoreModel(language_model(shape, seed=2), head, pooling=pooling, num_heads=num_heads).double()
    torch.manual_seed(3)
    torch.nn.init.normal_(model.head.weight, std=0.3)
    return model


def tokens(num_sequences: int = 6, *, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (num_sequences, LENGTH), generator=torch.Generator().manual_seed(seed))


def direction(model: torch.nn.Module, *, seed: int = 0) -> list[torch.Tensor]:
    """A random vector in the model's parameter space."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype) for parameter in model.parameters()]


def lower_level(
    proxy: torch.nn.Module, input_ids_BT: torch.Tensor, reference: torch.nn.Module | None = None, **settings: Any
) -> LowerLevel:
    return LowerLevel(proxy, input_ids_BT, len(input_ids_BT), BilevelConfig(**{"ihvp": "adam_diagonal"} | NO_FLOOR | settings), reference)


def sequence_losses(proxy: torch.nn.Module, input_ids_BT: torch.Tensor) -> torch.Tensor:
    """L_i by the definition: mean over the next tokens of -log p."""
    log_p_BTV = F.log_softmax(proxy(input_ids=input_ids_BT).logits[:, :-1], dim=-1)
    return -log_p_BTV.gather(2, input_ids_BT[:, 1:, None])[:, :, 0].mean(1)


def explicit_objective(lower: LowerLevel, weight_B: torch.Tensor) -> torch.Tensor:
    """g by the definition, with its graph."""
    config, proxy, input_ids_BT = lower.config, lower.proxy, lower.input_ids_bT
    total = (weight_B * sequence_losses(proxy, input_ids_BT)).sum()
    if lower.reference is not None:
        p_BTV = proxy(input_ids=input_ids_BT).logits[:, :-1].softmax(-1)
        r_BTV = lower.reference(input_ids=input_ids_BT).logits[:, :-1].softmax(-1).detach()
        first, second = (p_BTV, r_BTV) if config.kl_direction == "proxy_reference" else (r_BTV, p_BTV)
        total = total + config.kl_weight * (first * (first / second).log()).sum(-1).mean(1).mean()
    return total + config.l2_weight * sum(parameter.square().sum() for parameter in proxy.parameters())


def explicit_gradient(lower: LowerLevel, weight_B: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """G with its graph. The plain attention kernel: the others have no second derivative."""
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return torch.autograd.grad(explicit_objective(lower, weight_B), lower.parameters, create_graph=True)


def explicit_product(lower: LowerLevel, weight_B: torch.Tensor, z: Tensors) -> list[torch.Tensor]:
    """Hz."""
    slope = inner_product(explicit_gradient(lower, weight_B), z)
    return list(torch.autograd.grad(slope, lower.parameters, materialize_grads=True))


def explicit_alignments(proxy: torch.nn.Module, input_ids_BT: torch.Tensor, z: Tensors) -> torch.Tensor:
    """<z, grad L_i>, one gradient per sequence."""
    parameters, found = list(proxy.parameters()), []
    for row in input_ids_BT:
        gradient = torch.autograd.grad(sequence_losses(proxy, row[None]).sum(), parameters)
        found.append(inner_product(gradient, z))
    return torch.stack(found)


def relative_error(found: Tensors, expected: Tensors) -> float:
    return norm([a.detach() - b.detach() for a, b in zip(found, expected, strict=True)]) / norm([b.detach() for b in expected])
