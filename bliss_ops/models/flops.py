"""Model FLOPs of a transformer, counted from its sizes: what the mathematics needs, whatever a kernel really does.

Per token a forward pass takes 2 FLOPs for every weight of a matrix product, and attention over the causal half of T positions; a
backward pass takes twice as much (Kaplan et al. 2020, arXiv 2001.08361; Chowdhery et al. 2022, arXiv 2204.02311, appendix B). Norms,
rotations and activations are left out, and so is what activation checkpointing computes again.
"""

from dataclasses import dataclass

from bliss_ops.models.shapes import model_vocab_size, shape


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


def model_flops(name: str, *, vocab_size: int, sequence_length: int) -> ModelFlops:
    """FLOPs per token of a named shape.

    Args:
        name: of the shape.
        vocab_size: of the tokenizer.
        sequence_length: T.
    """
    sizes = shape(name)
    width = sizes.hidden_size
    num_mlp_matrices = 2 if sizes.family == "gpt_neox" else 3
    weights = sizes.num_layers * (4 * width**2 + num_mlp_matrices * width * sizes.intermediate_size)
    attention = sizes.num_layers * 2 * sequence_length * width  # scores and their product with the values: 2 x 2 x T x D, half of it causal
    return ModelFlops(2.0 * weights + attention, 2.0 * width * model_vocab_size(name, vocab_size))
