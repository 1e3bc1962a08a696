"""Model shapes by name: Pythia (Biderman et al. 2023, arXiv 2304.01373), LLaMA-0.5B, and tiny ones for CPU runs and tests.

Named shapes keep their published vocabulary (Pythia pads to 50,304), so their parameter counts are the published ones; tiny
shapes take the tokenizer's vocabulary, padded to a multiple of 64 for the matrix kernels.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Shape:
    """Sizes of one decoder-only transformer."""

    family: Literal["gpt_neox", "llama"]
    num_layers: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    vocab_size: int | None = 50_304  # None: the tokenizer's, padded


def _neox(num_layers: int, hidden_size: int, num_heads: int, vocab_size: int | None = 50_304) -> Shape:
    return Shape("gpt_neox", num_layers, hidden_size, num_heads, 4 * hidden_size, vocab_size)


SHAPES = {
    "pythia-14m": _neox(6, 128, 4),
    "pythia-31m": _neox(6, 256, 8),
    "pythia-70m": _neox(6, 512, 8),
    "pythia-160m": _neox(12, 768, 12),
    "pythia-410m": _neox(24, 1024, 16),
    "pythia-1b": _neox(16, 2048, 8),
    "pythia-1.4b": _neox(24, 2048, 16),
    "pythia-2.8b": _neox(32, 2560, 32),
    "llama-0.5b": Shape("llama", 24, 1024, 16, 4096, 50_304),
    "tiny-neox-64": _neox(2, 64, 2, None),
    "tiny-neox-96": _neox(2, 96, 4, None),
    "tiny-neox-128": _neox(4, 128, 4, None),
    "tiny-llama-96": Shape("llama", 2, 96, 4, 256, None),
}


def shape(name: str) -> Shape:
    """The shape of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in SHAPES:
        raise ValueError(f"there is no model shape {name!r}: known shapes are {', '.join(SHAPES)}")
    return SHAPES[name]


def model_vocab_size(name: str, tokenizer_vocab_size: int) -> int:
    """Rows of the embedding matrix for a tokenizer.

    Raises:
        ValueError: the tokenizer has more tokens than the shape's fixed vocabulary.
    """
    fixed = shape(name).vocab_size
    if fixed is None:
        return -(-tokenizer_vocab_size // 64) * 64
    if tokenizer_vocab_size > fixed:
        raise ValueError(
            f"the tokenizer has {tokenizer_vocab_size:,} tokens but {name} has a vocabulary of {fixed:,}: "
            "use the tokenizer the shape was made for, or a tiny shape, which takes any vocabulary"
        )
    return fixed
