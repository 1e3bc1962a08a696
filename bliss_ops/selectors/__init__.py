"""Selectors: each file of this folder is one method of giving every candidate sequence a score (higher is better).

A selector module has four names:
    SECTIONS                                      the config sections its fit depends on
    fit(inputs, directory)                        learn from the candidate window, write files, return (files, metrics)
    load_scorer(directory)                        a function (sequence_ids_B, input_ids_BT) -> float32 score_B
    flops(config, vocab_size=, num_sequences=)    the model FLOPs of both, for a window of that many sequences
A *variant* is a selector with other settings: `recipes/variants/bliss-paper.toml` is the method `bliss-paper` of the module `bliss`.
Everything else (windows, scoring, selection, pretraining, comparison) is shared.
"""

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from upath import UPath

from bliss_ops.config import RunConfig, check_name
from bliss_ops.lake import Run, shard_file
from bliss_ops.launching import Launcher, launch_here
from bliss_ops.recipes import VARIANTS

if TYPE_CHECKING:
    import numpy as np

    from bliss_ops.corpus.reading import SequenceReader

    Scorer = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True)
class SelectorInputs:
    """What a selector may learn from."""

    config: RunConfig
    round_number: int
    vocab_size: int  # of the corpus's tokenizer
    tokenizer: UPath  # directory of the corpus's tokenizer, for methods that read words
    candidates: "SequenceReader"  # the candidate window
    validation: UPath  # directory of the validation set; only its `guide` part may be read
    warmup: UPath  # warmed-up proxy and target
    reference: UPath  # the target's current checkpoint directory
    previous: UPath | None  # this selector's directory in the previous round
    launch: Launcher = launch_here  # starts the processes of a training job


@dataclass(frozen=True)
class SelectorFlops:
    """Model FLOPs (models/flops.py) of one round's selector, counted from its settings; 0 where no model is run.

    The warm-up of the proxy is counted apart (costs.py), for it is done once per run; what a fit trains or runs besides is in `fit`.
    """

    fit: float
    score: float


class Selector(Protocol):
    SECTIONS: tuple[str, ...]

    def fit(self, inputs: SelectorInputs, directory: UPath) -> tuple[Sequence[str], dict[str, Any]]: ...

    def load_scorer(self, directory: UPath) -> "Scorer": ...

    def flops(self, config: RunConfig, *, vocab_size: int, num_sequences: int, validation_row_tokens: float | None = None) -> SelectorFlops:
        """`validation_row_tokens` is the mean number of tokens of a validation row, T unless given."""
        ...


def known_methods() -> list[str]:
    """The selectors and their variants."""
    return sorted([*_selectors(), *(path.stem for path in VARIANTS.glob("*.toml") if selector_of(path.stem) in _selectors())])


def selector_of(method: str) -> str:
    """The name of the method's module: of a variant, what stands before its first dash."""
    return method.split("-", 1)[0]


def check_method(method: str) -> str:
    """Return `method` when there is such a selector or variant, else raise ValueError with the known ones."""
    if check_name(method) not in known_methods():
        raise ValueError(f"there is no method {method!r}: known methods are {', '.join(known_methods())}")
    return method


def load(method: str) -> Selector:
    """The selector module of that method."""
    module: Any = importlib.import_module(f"{__name__}.{selector_of(check_method(method))}")
    return module  # type: ignore[no-any-return]


def window(run: Run, round_number: int) -> list[int]:
    """Shards of the round's candidate window.

    Raises:
        ValueError: the corpus has too few shards for that many rounds.
    """
    from bliss_ops.manifest import read_manifest

    shards = read_manifest(run.corpus.sequences, made_by=f"bliss pack {run.corpus.name}").shards
    return window_of(run.config, shards, round_number)


def window_of(config: RunConfig, shards: Sequence[int], round_number: int) -> list[int]:
    """The round's part of these shards: a seeded permutation of them, cut into disjoint parts.

    Raises:
        ValueError: there are too few shards for all rounds.
    """
    import numpy as np

    size = config.window_shards or len(shards) // config.num_rounds
    if size == 0 or size * config.num_rounds > len(shards):
        raise ValueError(
            f"run {config.name!r} wants {config.num_rounds} disjoint candidate windows of {size or 1} shards "
            f"({config.num_rounds * (size or 1)} shards), but corpus {config.ingest.corpus!r} has {len(shards)} shards: "
            "lower num_rounds or window_shards, or ingest more"
        )
    permutation = np.random.default_rng([config.seed, 0x77]).permutation(sorted(shards))
    return sorted(int(shard) for shard in permutation[(round_number - 1) * size : round_number * size])


def window_identity(config: RunConfig, round_number: int) -> dict[str, int | None]:
    """What decides the window of a round; with `window_shards` set, more rounds can follow without changing the earlier ones."""
    return {"round": round_number, "shards": config.window_shards, "of_rounds": None if config.window_shards else config.num_rounds}


def fit(run: Run, round_number: int, launch: Launcher, directory: UPath) -> tuple[Sequence[str], dict[str, Any]]:
    """Fit the run's selector on the round's candidate window."""
    from bliss_ops.corpus import tokenizer
    from bliss_ops.corpus.reading import SequenceReader

    before = run.round(round_number - 1)
    inputs = SelectorInputs(
        config=run.config,
        round_number=round_number,
        vocab_size=tokenizer.vocab_size(run.corpus),
        tokenizer=run.corpus.tokenizer,
        candidates=SequenceReader([shard_file(run.corpus.sequences, shard) for shard in window(run, round_number)]),
        validation=run.corpus.validation,
        warmup=run.warmup,
        reference=before / "pretrain" if round_number > 1 else run.warmup,
        previous=before / "selector" if round_number > 1 else None,
        launch=launch,
    )
    return load(run.config.method).fit(inputs, directory)


def uses_proxy(method: str) -> bool:
    """Whether the method's fit starts from a warmed-up proxy model."""
    return "proxy" in load(method).SECTIONS


def _selectors() -> list[str]:
    return [module.name for module in pkgutil.iter_modules(__path__)]
