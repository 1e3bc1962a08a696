"""Model shapes by name: Pythia (Biderman et al. 2023, arXiv 2304.01373), LLaMA-0.5B, and tiny ones for CPU runs and tests.

Named shapes keep their published vocabulary (Pythia pads to 50,304), so their parameter counts are the published ones; tiny
shapes take the tokenizer's vocabulary, padded to a multiple of 64 for the matrix kernels. docs/models.md has the table.

A model that has no name here is defined by the content of a transformers config.json (`architecture.py`): wherever this package takes
a `Definition`, either will do.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Definition = str | Mapping[str, Any]  # the name of a shape, or an architecture as `architecture.read` gives it


@dataclass(frozen=True)
class Shape:
    """Sizes of one decoder-only transformer, and how its weights are drawn (`initialisation.py`)."""

    family: Literal["gpt_neox", "llama"]
    num_layers: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    vocab_size: int | None = 50_304  # None: the tokenizer's, padded
    initialisation: Literal["gpt_neox", "megatron", "transformers"] = "gpt_neox"


def _pythia(num_layers: int, hidden_size: int, num_heads: int) -> Shape:
    return Shape("gpt_neox", num_layers, hidden_size, num_heads, 4 * hidden_size)


def _tiny_neox(num_layers: int, hidden_size: int, num_heads: int) -> Shape:
    return Shape("gpt_neox", num_layers, hidden_size, num_heads, 4 * hidden_size, None, "transformers")


SHAPES = {
    "pythia-14m": _pythia(6, 128, 4),
    "pythia-31m": _pythia(6, 256, 8),
    "pythia-70m": _pythia(6, 512, 8),
    "pythia-160m": _pythia(12, 768, 12),
    "pythia-410m": _pythia(24, 1024, 16),
    "pythia-1b": _pythia(16, 2048, 8),
    "pythia-1.4b": _pythia(24, 2048, 16),
    "pythia-2.8b": _pythia(32, 2560, 32),
    "llama-0.5b": Shape("llama", 24, 1024, 16, 4096, 50_304, "megatron"),
    "tiny-neox-64": _tiny_neox(2, 64, 2),
    "tiny-neox-96": _tiny_neox(2, 96, 4),
    "tiny-neox-128": _tiny_neox(4, 128, 4),
    "tiny-llama-96": Shape("llama", 2, 96, 4, 256, None, "transformers"),
}


def shape(name: str) -> Shape:
    """The shape of that name.

    Raises:
        ValueError: there is none.
    """
    if name not in SHAPES:
        raise ValueError(
            f"there is no model shape {name!r}: known shapes are {', '.join(SHAPES)}; "
            "or give the path of a config.json of the transformers library, ending in .json"
        )
    return SHAPES[name]


def model_vocab_size(definition: Definition, tokenizer_vocab_size: int) -> int:
    """Rows of the embedding matrix for a tokenizer.

    Raises:
        ValueError: the tokenizer has more tokens than the model's fixed vocabulary.
    """
    if isinstance(definition, str):
        name, fixed = definition, shape(definition).vocab_size
    else:
        name, fixed = f"the {definition['model_type']} architecture", int(definition["vocab_size"])
    if fixed is None:
        return -(-tokenizer_vocab_size // 64) * 64
    if tokenizer_vocab_size > fixed:
        raise ValueError(
            f"the tokenizer has {tokenizer_vocab_size:,} tokens but {name} has a vocabulary of {fixed:,}: "
            + (
                "use the tokenizer the shape was made for, or a tiny shape, which takes any vocabulary"
                if isinstance(definition, str)
                else "set vocab_size in its config.json to at least that many and configure the run again"
            )
        )
    return fixed
