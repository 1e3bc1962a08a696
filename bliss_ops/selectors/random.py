"""Uniform selection without replacement: the score is a seeded hash of the sequence id, so it is independent of sharding."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from upath import UPath

from bliss_ops.lake import write_json

if TYPE_CHECKING:
    from bliss_ops.config import RunConfig
    from bliss_ops.selectors import Scorer, SelectorFlops, SelectorInputs

SECTIONS: tuple[str, ...] = ()


def fit(inputs: "SelectorInputs", directory: UPath) -> tuple[Sequence[str], dict[str, Any]]:
    """Keep the seed; each round draws anew."""
    write_json(directory / "seed.json", {"seed": inputs.config.seed, "round": inputs.round_number})
    return ["seed.json"], {}


def load_scorer(directory: UPath) -> "Scorer":
    """Scores uniform in [0, 1) with 24 bits, what float32 holds exactly."""
    import json

    seed = json.loads((directory / "seed.json").read_text())
    salt = splitmix64(np.array([seed["seed"] * 1000 + seed["round"]], dtype=np.uint64))

    def score(sequence_ids_B: np.ndarray, _input_ids_BT: np.ndarray) -> np.ndarray:
        bits = splitmix64(sequence_ids_B.astype(np.uint64) ^ salt)
        return ((bits >> np.uint64(40)).astype(np.float32)) / np.float32(1 << 24)

    return score


def flops(  # the contract's names
    config: "RunConfig",  # noqa: ARG001
    *,
    vocab_size: int,  # noqa: ARG001
    num_sequences: int,  # noqa: ARG001
    validation_row_tokens: float | None = None,  # noqa: ARG001
) -> "SelectorFlops":
    """None: no model is run."""
    from bliss_ops.selectors import SelectorFlops

    return SelectorFlops(fit=0.0, score=0.0)


def gumbel(sequence_ids_B: np.ndarray, seed: int, round_number: int, *, stream: int) -> np.ndarray:
    """One standard Gumbel draw per sequence, a function of its id, the seed and the round alone.

    Different `stream`s (below 2^32) are independent of each other and of the scores of `random` with the same seed.
    """
    salt = splitmix64(np.array([seed * 1000 + round_number], dtype=np.uint64) ^ np.uint64(stream << 32))
    bits = splitmix64(sequence_ids_B.astype(np.uint64) ^ salt)
    uniform_B = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) / (1 << 52)  # never 0 nor 1
    draws_B: np.ndarray = -np.log(-np.log(uniform_B))
    return draws_B


def splitmix64(values: np.ndarray) -> np.ndarray:
    """The SplitMix64 finaliser (Steele, Lea, Flood 2014): a bijective mixing of uint64."""
    with np.errstate(over="ignore"):
        mixed = values + np.uint64(0x9E3779B97F4A7C15)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return mixed ^ (mixed >> np.uint64(31))
