"""Scores of every candidate sequence: one worker loads the scorer once and turns sequence shards into score shards.

Two shards are in flight: a thread of each reads ahead, their turns at the model follow each other without a gap, and what is computed
is written while the next shard computes. A score never depends on which worker computed it: batches are cut inside a shard, and
every worker computes with one CPU thread.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pyarrow as pa
from upath import UPath

from bliss_ops import schemas, selectors
from bliss_ops.config import RunConfig
from bliss_ops.lake import shard_file, write_parquet
from bliss_ops.manifest import describe
from bliss_ops.models.scorer import ModelScorer
from bliss_ops.sharding import Metrics, ShardRecord, report_part, sum_metrics

if TYPE_CHECKING:
    from bliss_ops.selectors import Scorer

log = logging.getLogger(__name__)

IN_FLIGHT = 2  # shards a worker has at a time
NEAR_CONSTANT = 1e-6  # a standard deviation below this share of the mean's size says nothing about any sequence
AN_END = 1e-6  # of scores from 0 to 1, such as a sigmoid gives: closer to 0 or to 1 they do not rank any more
_BATCHES_AHEAD = 4
_BATCH_SEQUENCES = 256  # of scorers that are no models

T = TypeVar("T")


def make_worker(config: RunConfig, sequences: UPath, selector: UPath, directory: UPath) -> Callable[[int], ShardRecord]:
    """Load the selector's scorer; the returned function scores one shard, and may be called for IN_FLIGHT shards at once.

    Raises (the worker):
        ValueError: a score is not a finite number; nothing is written.
    """
    from bliss_ops.corpus.reading import iter_shard, num_sequences

    score = selectors.load(config.method).load_scorer(selector)
    batch_sequences = _prepare(score, config)
    turn = Lock()  # at the model

    def score_shard(shard: int) -> ShardRecord:
        path = shard_file(sequences, shard)
        total = num_sequences(path)
        ids, waiting = [np.empty(0, np.int64)], []
        num_scored = num_tokens = 0
        with read_ahead(iter_shard(path, batch_sequences)) as batches, turn:
            begun = time.time()
            for sequence_ids_B, input_ids_BT in batches:
                ids.append(sequence_ids_B)
                waiting.append(_queue(score, sequence_ids_B, input_ids_BT))
                num_scored += len(sequence_ids_B)
                num_tokens += input_ids_BT.size
                report_part(num_scored / total, num_tokens)
        sequence_ids_N = np.concatenate(ids)
        score_N = np.concatenate([np.empty(0, np.float32), *(scores() for scores in waiting)]) + np.float32(0)  # -0.0 becomes 0.0
        ended = time.time()
        if not np.isfinite(score_N).all():
            bad = sequence_ids_N[~np.isfinite(score_N)]
            raise ValueError(
                f"score of shard {shard}: {len(bad)} scores are not finite, the first is of sequence {bad[0]}: "
                "fit the selector again with a lower learning rate"
            )
        record = write_shard(directory, shard, sequence_ids_N, score_N)
        record.metrics |= {"num_tokens": num_tokens, "begun": begun, "ended": ended}
        return record

    return score_shard


def _prepare(score: "Scorer", config: RunConfig) -> int:
    """Sequences per call of the scorer."""
    if isinstance(score, ModelScorer):
        return score.prepare(config.scoring.batch_sequences, config.ingest.sequence_length, config.compute)
    return config.scoring.batch_sequences or _BATCH_SEQUENCES


def _queue(score: "Scorer", sequence_ids_B: np.ndarray, input_ids_BT: np.ndarray) -> Callable[[], np.ndarray]:
    """Begin to score; the returned function waits for the scores."""
    if isinstance(score, ModelScorer):
        return score.queue(sequence_ids_B, input_ids_BT)
    score_B = score(sequence_ids_B, input_ids_BT)
    return lambda: score_B


@contextmanager
def read_ahead(items: Iterator[T], depth: int = _BATCHES_AHEAD) -> Iterator[Iterator[T]]:
    """The same items; a thread of its own begins at once to fetch them, at most `depth` ahead."""
    with ThreadPoolExecutor(1) as thread:
        fetched = deque(thread.submit(next, items, None) for _ in range(depth))

        def in_order() -> Iterator[T]:
            while (item := fetched.popleft().result()) is not None:
                fetched.append(thread.submit(next, items, None))
                yield item

        yield in_order()


def write_shard(directory: UPath, shard: int, sequence_ids_N: np.ndarray, score_N: np.ndarray) -> ShardRecord:
    """One shard of scores, and the sums that `check` adds up."""
    path = shard_file(directory, shard)
    write_parquet(path, pa.table({"sequence_id": sequence_ids_N, "score": score_N}, schema=schemas.SCORES))
    wide = score_N.astype(np.float64)
    return ShardRecord(
        shard=shard,
        outputs=[describe(directory, path.name, rows=len(score_N))],
        metrics={"num_sequences": len(score_N), "sum": float(wide.sum()), "sum_of_squares": float((wide**2).sum())} | _spread(score_N),
    )


def _spread(score_N: np.ndarray) -> dict[str, int | float]:
    """What the gates want to know of one shard: its ends, and how many scores are one and the same number."""
    if len(score_N) == 0:
        return {}
    values, counts = np.unique(score_N, return_counts=True)
    most = int(counts.argmax())
    return {
        "minimum": float(values[0]),
        "maximum": float(values[-1]),
        "most_common": float(values[most]),
        "num_most_common": int(counts[most]),
        "num_at_ends": int(counts[(values <= AN_END) | (values >= 1 - AN_END)].sum()),
    }


def _spread_of_all(records: list[ShardRecord]) -> Metrics:
    """The same of all shards; nothing where a shard was scored by a version that did not count.

    A number that is the most common one of several shards is counted in those: at least so many scores are identical.
    """
    counted = [record.metrics for record in records if record.metrics["num_sequences"]]
    if not all("most_common" in metrics for metrics in counted):
        return {}
    identical = Counter[float]()
    for metrics in counted:
        identical[metrics["most_common"]] += int(metrics["num_most_common"])
    return {
        "minimum": min(metrics["minimum"] for metrics in counted),
        "maximum": max(metrics["maximum"] for metrics in counted),
        "num_identical": max(identical.values()),
        "num_at_ends": sum(int(metrics["num_at_ends"]) for metrics in counted),
    }


def check(records: list[ShardRecord]) -> Metrics:
    """Count, mean and spread over all shards, and tokens/s of all workers together; warns when the scores are nearly constant.

    Raises:
        ValueError: there is no candidate sequence at all.
    """
    times = [(record.metrics["begun"], record.metrics["ended"]) for record in records if "ended" in record.metrics]
    totals = sum_metrics(records)
    count = totals["num_sequences"]
    if count == 0:
        raise ValueError("score: the candidate window holds no sequence: ingest more text or use a shorter sequence length")
    mean = totals.pop("sum") / count
    spread = max(0.0, totals.pop("sum_of_squares") / count - mean**2) ** 0.5
    if spread <= NEAR_CONSTANT * max(1.0, abs(mean)):
        log.warning("the scores are nearly constant (mean %.4g, standard deviation %.2g): a selection from them is arbitrary", mean, spread)
    if times:
        del totals["begun"], totals["ended"]
        totals["tokens_per_second"] = totals["num_tokens"] / max(seconds_covered(times), 1e-9)
    of_shards = (
        "minimum",
        "maximum",
        "most_common",
        "num_most_common",
        "num_at_ends",
    )  # whose sum says nothing, or belongs to another name
    totals = {name: value for name, value in totals.items() if name not in of_shards}
    return totals | {"mean": mean, "standard_deviation": spread} | _spread_of_all(records)


def seconds_covered(times: list[tuple[float, float]]) -> float:
    """Seconds in which at least one of the intervals runs: what several workers, or a run that was stopped for a night, took."""
    covered, until = 0.0, float("-inf")
    for begun, ended in sorted(times):
        covered += max(0.0, ended - max(begun, until))
        until = max(until, ended)
    return covered
