"""A quality classifier: logistic regression on hashed words and word pairs, validation text against raw candidates.

The kind of filter behind several public corpora, fitted exactly (L-BFGS on a convex objective) instead of by a few epochs of SGD,
so that one seed gives the same bytes. Words, not token ids: the result then does not depend on how the tokenizer cuts a word.
Negatives are cut to the lengths of the positives, so that length is not what is learned.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from upath import UPath

from bliss_ops.lake import write_bytes, write_json
from bliss_ops.rank_correlation import area_under_curve

if TYPE_CHECKING:
    from bliss_ops.config import ClassifierConfig, RunConfig
    from bliss_ops.corpus.ngrams import NgramHasher
    from bliss_ops.selectors import Scorer, SelectorFlops, SelectorInputs

    Features = tuple[np.ndarray, np.ndarray, np.ndarray]  # row, bucket and value of each of the F entries of a sparse matrix

SECTIONS = ("classifier",)
COEFFICIENTS = "coefficient_K.float32"  # K: buckets
SETTINGS = "classifier.json"

_ROWS_AT_ONCE = 1024


def fit(inputs: "SelectorInputs", directory: UPath) -> tuple[Sequence[str], dict[str, Any]]:
    """Learn to tell the guide part of the validation set from a sample of the candidates.

    Raises:
        ValueError: the validation set has fewer than two rows.
    """
    from bliss_ops.corpus import ngrams, tokenizer, validation

    settings = inputs.config.classifier
    guide = validation.read(inputs.validation, "guide")
    positives = validation.unpadded(guide)
    lengths = np.array([len(row) for row in positives])
    negatives: list[np.ndarray] = []
    for _, input_ids_BT in inputs.candidates.sample(settings.num_candidate_sequences, inputs.config.seed):
        negatives += [row[: lengths[(len(negatives) + i) % len(lengths)]].astype(np.int32) for i, row in enumerate(input_ids_BT)]
    if len(positives) < 2 or len(negatives) < 2:
        raise ValueError(
            f"classifier: {len(positives)} validation rows and {len(negatives)} candidate sequences: it takes two of each, to train and to "
            "measure; use a larger validation set or corpus"
        )
    hash_rows = ngrams.make_hasher(tokenizer.load(inputs.tokenizer), settings.num_buckets)
    found = features(hash_rows, [*positives, *negatives], settings.num_buckets)
    is_guide_N = np.arange(len(positives) + len(negatives)) < len(positives)
    sets = (guide.set_N, np.zeros(len(negatives), np.int64))
    is_heldout_N = np.concatenate([_heldout(set_N, settings.holdout_fraction) for set_N in sets])
    weight_N = np.append(_row_weights(guide.weight_N * lengths, guide.set_N), np.ones(len(negatives)))
    coefficient_K, bias, num_iterations = train(found, is_guide_N, np.where(is_heldout_N, 0, weight_N), settings)
    write_bytes(directory / COEFFICIENTS, coefficient_K.astype("<f4").tobytes())
    write_json(directory / SETTINGS, {"num_buckets": settings.num_buckets, "bias": bias})
    logit_N = logits(coefficient_K, bias, found, len(weight_N))
    heldout_P, heldout_Q = logit_N[is_heldout_N & is_guide_N], logit_N[is_heldout_N & ~is_guide_N]
    weight_P = weight_N[is_heldout_N & is_guide_N]  # sets count as they count in training
    metrics = {
        "heldout_accuracy": float((np.average(heldout_P > 0, weights=weight_P) + (heldout_Q <= 0).mean()) / 2),
        "heldout_auc": area_under_curve(heldout_P, heldout_Q, weight_P),
        "num_guide_rows": len(positives),
        "num_candidate_sequences": len(negatives),
        "num_iterations": num_iterations,
    }
    return [COEFFICIENTS, SETTINGS, tokenizer.copy(inputs.tokenizer, directory)], metrics


def load_scorer(directory: UPath) -> "Scorer":
    """The classifier's logit for the class of the validation set."""
    from bliss_ops.corpus import ngrams, tokenizer

    settings = json.loads((directory / SETTINGS).read_text())
    coefficient_K = np.frombuffer((directory / COEFFICIENTS).read_bytes(), dtype="<f4").astype(np.float64)
    hash_rows = ngrams.make_hasher(tokenizer.load(directory), settings["num_buckets"])

    def score(_sequence_ids_B: np.ndarray, input_ids_BT: np.ndarray) -> np.ndarray:
        found = features(hash_rows, list(input_ids_BT), settings["num_buckets"])
        return logits(coefficient_K, settings["bias"], found, len(input_ids_BT)).astype(np.float32)

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


def _heldout(set_N: np.ndarray, fraction: float) -> np.ndarray:
    """The last rows of every set, at least one in all. Rows of a document are neighbours: it is on one side, or on both only at the cut."""
    size_K = np.bincount(set_N)
    from_end_N = np.cumsum(size_K)[set_N] - np.arange(len(set_N))  # the last row of a set has 1
    heldout_N: np.ndarray = from_end_N <= np.round(size_K * fraction)[set_N]
    heldout_N[-1] |= not heldout_N.any()
    return heldout_N


def _row_weights(weight_N: np.ndarray, set_N: np.ndarray) -> np.ndarray:
    """Every row of a set alike, so that each set has the total weight of its tokens."""
    weights_N: np.ndarray = (np.bincount(set_N, weights=weight_N) / np.bincount(set_N))[set_N]
    return weights_N


def features(hash_rows: "NgramHasher", rows: Sequence[np.ndarray], num_buckets: int) -> "Features":
    """Counts per bucket, each row scaled to unit length, as a sparse matrix sorted by row and bucket."""
    keys, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        row_G, bucket_G = hash_rows(rows[first : first + _ROWS_AT_ONCE])
        key_F, count_F = np.unique((row_G + first) * num_buckets + bucket_G, return_counts=True)
        keys.append(key_F)
        counts.append(count_F)
    row_F, bucket_F = np.divmod(np.concatenate(keys), num_buckets)
    count_F = np.concatenate(counts).astype(np.float64)
    norm_N = np.sqrt(np.bincount(row_F, weights=count_F**2, minlength=len(rows)))
    return row_F, bucket_F, count_F / norm_N[row_F]


def logits(coefficient_K: np.ndarray, bias: float, found: "Features", num_rows: int) -> np.ndarray:
    """One logit per row; a row without a word gets the bias."""
    row_F, bucket_F, value_F = found
    logit_N: np.ndarray = np.bincount(row_F, weights=coefficient_K[bucket_F] * value_F, minlength=num_rows) + bias
    return logit_N


def train(found: "Features", is_guide_N: np.ndarray, weight_N: np.ndarray, settings: "ClassifierConfig") -> tuple[np.ndarray, float, int]:
    """Coefficients, bias and number of iterations.

    They minimise (weighted mean log loss of the guide rows + that of the others) / 2 + l2_weight / 2 · |coefficients|².
    """
    import torch
    import torch.nn.functional as F

    torch.set_num_threads(1)  # float sums, and with them the bytes of the result, depend on the number of threads
    total_N = np.where(is_guide_N, weight_N[is_guide_N].sum(), weight_N[~is_guide_N].sum())
    share_N, label_N = torch.from_numpy(weight_N / total_N / 2), torch.from_numpy(is_guide_N.astype(np.float64))
    offset_N = torch.from_numpy(np.searchsorted(found[0], np.arange(len(weight_N))))
    bucket_F, value_F = torch.from_numpy(found[1]), torch.from_numpy(found[2])
    coefficient_K1 = torch.zeros(settings.num_buckets, 1, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [coefficient_K1, bias],
        max_iter=settings.max_iterations,
        history_size=10,
        tolerance_grad=1e-6,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def loss() -> float:
        optimizer.zero_grad()
        logit_N = F.embedding_bag(bucket_F, coefficient_K1, offset_N, mode="sum", per_sample_weights=value_F).squeeze(1) + bias
        value = F.binary_cross_entropy_with_logits(logit_N, label_N, weight=share_N, reduction="sum")
        value = value + settings.l2_weight / 2 * coefficient_K1.square().sum()
        torch.autograd.backward(value)
        return float(value.detach())

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    num_iterations = int(optimizer.state[coefficient_K1]["n_iter"])
    return coefficient_K1.detach().squeeze(1).numpy(), bias.item(), num_iterations
