"""A candidate window small enough to follow by hand: counting sequences, half of which look like the validation set."""

import numpy as np
from tokenizers import Tokenizer, models
from upath import UPath

from bliss_ops.corpus.tokenizer import END_OF_TEXT, FILE
from bliss_ops.lake import write_bytes
from bliss_ops.selectors import SelectorInputs

LENGTH, VOCABULARY, ROWS = 16, 64, 256


def counting(rows: int, half: int, rng: np.random.Generator) -> np.ndarray:
    """Sequences that count upwards in one half of the vocabulary: learnable, and of no use for the other half."""
    size = VOCABULARY // 2
    return half * size + (rng.integers(0, size, (rows, 1)) + np.arange(LENGTH)) % size


def write_tokenizer(directory: UPath) -> None:
    """Token 0 ends a text; every other token is a word of its own."""
    words = {END_OF_TEXT: 0} | {f"word{token}": token for token in range(1, VOCABULARY)}
    write_bytes(directory / FILE, Tokenizer(models.WordLevel(words, unk_token=END_OF_TEXT)).to_str().encode())


def both_shards(inputs: SelectorInputs) -> tuple[np.ndarray, np.ndarray]:
    return inputs.candidates.batch(0, 2 * ROWS, seed=3)
