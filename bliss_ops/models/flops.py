"""Model FLOPs of a transformer, counted from its sizes: what the mathematics needs, whatever a kernel really does.

Per token a forward pass takes 2 FLOPs for every weight of a matrix product, and attention over the causal half of T positions; a
backward pass takes twice as much (Kaplan et al. 2020, arXiv 2001.08361; Chowdhery et al. 2022, arXiv 2204.02311, appendix B). Norms,
rotations and activations are left out, and so is what activation checkpointing computes again.

A named shape is counted from its sizes, without the transformers library. An architecture by file is built without memory and its
matrices are counted: all of its weights with two or more dimensions but the tables that rows are only looked up in; of a layer of
experts, the share that a token passes through. Attention is that of T positions everywhere, so for a sliding window shorter than T
the count is too high, and for a recurrent layer the recurrence itself is left out.
"""

from dataclasses import dataclass
from typing import Any

from bliss_ops.models.shapes import Definition, model_vocab_size, shape


@dataclass(frozen=True)
class ModelFlops:
    """Model FLOPs per token of one model at one sequence length."""

    backbone_forward: float  # up to the hidden states: what a score model computes
    head_forward: float  # the output matrix

    @property
    def forward(self) -> float:
        return self.backbone_forward + self.head_forward

    @property
    def training(self) -> float:
        """Forward and backward."""
        return 3 * self.forward


def model_flops(definition: Definition, *, vocab_size: int, sequence_length: int) -> ModelFlops:
    """FLOPs per token of a shape or architecture.

    Args:
        definition: the name of a shape, or an architecture.
        vocab_size: of the tokenizer.
        sequence_length: T.
    """
    if not isinstance(definition, str):
        return _counted(definition, vocab_size, sequence_length)
    sizes = shape(definition)
    width = sizes.hidden_size
    num_mlp_matrices = 2 if sizes.family == "gpt_neox" else 3
    weights = sizes.num_layers * (4 * width**2 + num_mlp_matrices * width * sizes.intermediate_size)
    attention = sizes.num_layers * 2 * sequence_length * width  # scores and their product with the values: 2 x 2 x T x D, half of it causal
    return ModelFlops(2.0 * weights + attention, 2.0 * width * model_vocab_size(definition, vocab_size))


def _counted(definition: Definition, vocab_size: int, sequence_length: int) -> ModelFlops:
    from torch import nn

    from bliss_ops.models import language

    model = language.on_meta(definition, vocab_size=vocab_size, sequence_length=sequence_length)
    config = model.config
    looked_up = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    weights = sum(
        parameter.numel() * _share_of_experts(name, parameter.ndim, config)
        for name, parameter in model.base_model.named_parameters()
        if parameter.ndim >= 2 and id(parameter) not in looked_up
    )
    num_heads = getattr(config, "num_attention_heads", 0)
    head_width = getattr(config, "head_dim", None) or (config.hidden_size // num_heads if num_heads else 0)
    attention = config.num_hidden_layers * 2 * sequence_length * num_heads * head_width
    return ModelFlops(2.0 * weights + attention, 2.0 * model.get_output_embeddings().weight.numel())


def _share_of_experts(name: str, num_dimensions: int, config: Any) -> float:
    """How much of a weight one token is multiplied by: all of it, but for the experts of a layer (stacked in a third dimension)."""
    if num_dimensions == 3 and ".experts." in name:
        num_experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None) or config.n_routed_experts
        return float(config.num_experts_per_tok / num_experts)
    return 1.0
