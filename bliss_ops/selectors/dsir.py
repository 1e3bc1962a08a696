"""DSIR (Xie et al. 2023, arXiv 2302.03169): the log importance weight of a sequence under two bags of hashed n-grams.

score = Σ_k counts_k · (log p_target,k - log p_raw,k), with p_target counted on the guide part of the validation set and p_raw on the
candidates, plus one standard Gumbel draw: the best k of such scores are a sample without replacement in proportion to the weights.
The draw hashes sequence id and seed, so it does not know shards or workers. Published for whole documents of at least 100 words; our
unit is a sequence of fixed length, so no length filter applies, and n-grams do not reach across the end of a document.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from upath import UPath

from bliss_ops.lake import write_bytes, write_json
from bliss_ops.selectors.random import gumbel

if TYPE_CHECKING:
    from bliss_ops.config import RunConfig
    from bliss_ops.selectors import Scorer, SelectorFlops, SelectorInputs

SECTIONS = ("dsir",)
LOG_RATIOS = "log_ratio_K.float64"  # K: buckets
SETTINGS = "dsir.json"

_STREAM = 0x64736972  # of the Gumbel draws
_ROWS_AT_ONCE = 1024


def fit(inputs: "SelectorInputs", directory: UPath) -> tuple[Sequence[str], dict[str, Any]]:
    """Count both bags of n-grams and keep their log ratio.

    Raises:
        ValueError: the validation set or the candidates hold no word.
    """
    from bliss_ops.corpus import ngrams, tokenizer, validation

    config, settings = inputs.config, inputs.config.dsir
    hash_rows = ngrams.make_hasher(tokenizer.load(inputs.tokenizer), settings.num_buckets)
    target_K, raw_K = np.zeros(settings.num_buckets), np.zeros(settings.num_buckets)
    guide = validation.read(inputs.validation, "guide")
    for first in range(0, len(guide), _ROWS_AT_ONCE):
        rows = guide.take(slice(first, first + _ROWS_AT_ONCE))
        row_G, bucket_G = hash_rows(validation.unpadded(rows))
        target_K += np.bincount(bucket_G, weights=rows.weight_N[row_G], minlength=len(target_K))
    for _, input_ids_BT in inputs.candidates.sample(settings.num_candidate_sequences, config.seed, batch_sequences=_ROWS_AT_ONCE):
        raw_K += np.bincount(hash_rows(input_ids_BT)[1], minlength=len(raw_K))
    for counts_K, name in ((target_K, "guide part of the validation set"), (raw_K, "candidate sequences")):
        if not counts_K.any():
            raise ValueError(f"dsir: the {name} decoded to no word: look at the text, and at the tokenizer in {inputs.tokenizer}")
    log_target_K, log_raw_K = (np.log(counts_K / counts_K.sum() + settings.smoothing) for counts_K in (target_K, raw_K))
    write_bytes(directory / LOG_RATIOS, (log_target_K - log_raw_K).astype("<f8").tobytes())
    write_json(
        directory / SETTINGS,
        {"num_buckets": settings.num_buckets, "sampling": settings.sampling, "seed": config.seed, "round": inputs.round_number},
    )
    metrics = {
        "num_guide_rows": len(guide),
        "num_candidate_sequences": min(settings.num_candidate_sequences, inputs.candidates.num_sequences),
        "kl_target_raw": float((target_K / target_K.sum()) @ (log_target_K - log_raw_K)),
    }
    return [LOG_RATIOS, SETTINGS, tokenizer.copy(inputs.tokenizer, directory)], metrics


def load_scorer(directory: UPath) -> "Scorer":
    """Log importance weights, each with the Gumbel draw of its sequence id unless `sampling` is `top_k`."""
    from bliss_ops.corpus import ngrams, tokenizer

    settings = json.loads((directory / SETTINGS).read_text())
    log_ratio_K = np.frombuffer((directory / LOG_RATIOS).read_bytes(), dtype="<f8")
    hash_rows = ngrams.make_hasher(tokenizer.load(directory), settings["num_buckets"])

    def score(sequence_ids_B: np.ndarray, input_ids_BT: np.ndarray) -> np.ndarray:
        row_G, bucket_G = hash_rows(input_ids_BT)
        score_B = np.bincount(row_G, weights=log_ratio_K[bucket_G], minlength=len(input_ids_BT))
        if settings["sampling"] == "gumbel":
            score_B += gumbel(sequence_ids_B, settings["seed"], settings["round"], stream=_STREAM)
        return score_B.astype(np.float32)

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
