"""Scores of every candidate sequence: one worker loads the scorer once and turns sequence shards into score shards.

A score never depends on which worker computed it: batches are cut inside a shard and every worker uses one CPU thread.
"""

import logging
from collections.abc import Callable

import numpy as np
import pyarrow as pa
from upath import UPath

from bliss_ops import schemas, selectors
from bliss_ops.config import RunConfig
from bliss_ops.lake import shard_file, write_parquet
from bliss_ops.manifest import Metrics, describe, sum_metrics
from bliss_ops.sharding import ShardRecord

log = logging.getLogger(__name__)

NEAR_CONSTANT = 1e-6  # a standard deviation below this share of the mean's size says nothing about any sequence


def make_worker(config: RunConfig, sequences: UPath, selector: UPath, directory: UPath) -> Callable[[int], ShardRecord]:
    """Load the selector's scorer; the returned function scores one shard.

    Raises (the worker):
        ValueError: a score is not a finite number; nothing is written.
    """
    from bliss_ops.corpus.reading import iter_shard

    score = selectors.load(config.method).load_scorer(selector)

    def score_shard(shard: int) -> ShardRecord:
        ids, scores = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
        for sequence_ids_B, input_ids_BT in iter_shard(shard_file(sequences, shard), config.scoring.batch_sequences):
            ids.append(sequence_ids_B)
            scores.append(score(sequence_ids_B, input_ids_BT))
        sequence_ids_N, score_N = np.concatenate(ids), np.concatenate(scores) + np.float32(0)  # -0.0 becomes 0.0
        if not np.isfinite(score_N).all():
            bad = sequence_ids_N[~np.isfinite(score_N)]
            raise ValueError(
                f"score of shard {shard}: {len(bad)} scores are not finite, the first is of sequence {bad[0]}: "
                "fit the selector again with a lower learning rate"
            )
        return write_shard(directory, shard, sequence_ids_N, score_N)

    return score_shard


def write_shard(directory: UPath, shard: int, sequence_ids_N: np.ndarray, score_N: np.ndarray) -> ShardRecord:
    """One shard of scores, and the sums that `check` adds up."""
    path = shard_file(directory, shard)
    write_parquet(path, pa.table({"sequence_id": sequence_ids_N, "score": score_N}, schema=schemas.SCORES))
    wide = score_N.astype(np.float64)
    return ShardRecord(
        shard=shard,
        outputs=[describe(directory, path.name, rows=len(score_N))],
        metrics={"num_sequences": len(score_N), "sum": float(wide.sum()), "sum_of_squares": float((wide**2).sum())},
    )


def check(records: list[ShardRecord]) -> Metrics:
    """Count, mean and spread over all shards; warns when the scores are nearly constant.

    Raises:
        ValueError: there is no candidate sequence at all.
    """
    totals = sum_metrics(records)
    count = totals["num_sequences"]
    if count == 0:
        raise ValueError("score: the candidate window holds no sequence: ingest more text or use a shorter sequence length")
    mean = totals.pop("sum") / count
    spread = max(0.0, totals.pop("sum_of_squares") / count - mean**2) ** 0.5
    if spread <= NEAR_CONSTANT * max(1.0, abs(mean)):
        log.warning("the scores are nearly constant (mean %.4g, standard deviation %.2g): a selection from them is arbitrary", mean, spread)
    return totals | {"mean": mean, "standard_deviation": spread}
