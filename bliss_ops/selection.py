"""From scores to a subset: an exact threshold, deterministic ties, and the selected tokens as Parquet.

The k-th best score is found by two counting passes over the upper and lower 16 bits of the float, so memory does not grow with the
corpus and nothing is sorted. Ties at the threshold go to the smallest sequence ids: shards are read in id order.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from upath import UPath

from bliss_ops import schemas
from bliss_ops.config import RunConfig
from bliss_ops.lake import at_once, atomic_file, shard_file, write_parquet
from bliss_ops.manifest import check_content, describe
from bliss_ops.sharding import Output, ShardRecord

log = logging.getLogger(__name__)


def select(
    config: RunConfig,
    scores: UPath,
    shards: Sequence[int],
    directory: UPath,
    *,
    outputs: Sequence[Output] = (),
    contaminated: UPath | None = None,
) -> tuple[list[str], dict[str, Any]]:
    """Write the ids and scores of the best sequences, one file per shard that has any.

    Args:
        config: how many to keep.
        scores: directory of the score shards.
        shards: their numbers.
        directory: where the selection goes.
        outputs: the records of the score shards; each file is held against its own before anything is selected.
        contaminated: directory of the sequences that are left out, whatever their scores; a fraction stays one of all candidates.

    Raises:
        ValueError: a score shard is not what its record says; or the token budget is larger than the candidate window, or smaller
            than one sequence; or too few are left.
    """
    check_content(scores, outputs, made_by=f"bliss score {config.name}")
    ordered = sorted(shards)

    def batches() -> Iterator[np.ndarray]:
        return at_once(lambda shard: _eligible(scores, shard, contaminated)["score"].to_numpy(), ordered, scores)

    num_candidates = sum(at_once(partial(_num_rows, scores), ordered, scores))
    keep = num_to_keep(config, num_candidates)
    num_excluded = num_candidates - sum(len(score_N) for score_N in batches()) if contaminated is not None else 0
    if keep > num_candidates - num_excluded:
        raise ValueError(
            f"{num_excluded:,} of {num_candidates:,} candidate sequences are contaminated, {keep:,} are to be kept: select fewer, or set "
            "evaluation.exclude_contaminated=false"
        )
    threshold, num_above, num_ties = kth_largest(batches, keep)
    ties_left = keep - num_above
    files, kept_shards = [], []
    for shard in ordered:
        table = _eligible(scores, shard, contaminated)
        score_N = table["score"].to_numpy()
        chosen = score_N > threshold
        ties = np.flatnonzero(score_N == threshold)[:ties_left]
        ties_left -= len(ties)
        chosen[ties] = True
        if chosen.any():
            path = shard_file(directory, shard)
            write_parquet(path, table.filter(pa.array(chosen)))
            files.append(path.name)
            kept_shards.append(shard)
    length = config.ingest.sequence_length
    log.info("select: %s of %s sequences, threshold %.6g, %d ties there", f"{keep:,}", f"{num_candidates:,}", threshold, num_ties)
    return files, {
        "num_candidates": num_candidates,
        "num_selected": keep,
        "num_tokens": keep * length,
        "threshold": float(threshold),
        "num_ties_at_threshold": num_ties,
        "num_ties_kept": keep - num_above,
        "shards": kept_shards,
    } | ({"num_excluded": num_excluded} if contaminated is not None else {})


def num_to_keep(config: RunConfig, num_candidates: int) -> int:
    """Sequences to keep: at least one.

    Raises:
        ValueError: the token budget does not fit the candidates.
    """
    fraction, budget, length = config.selection.fraction, config.selection.token_budget, config.ingest.sequence_length
    if fraction is not None:
        return max(1, int(fraction * num_candidates + 1e-9))  # 0.29 * 100 is 28.999…
    assert budget is not None
    if not length <= budget <= num_candidates * length:
        raise ValueError(
            f"selection.token_budget is {budget:,} tokens, but the candidate window has {num_candidates:,} sequences of {length} tokens "
            f"({num_candidates * length:,}): choose a budget between {length:,} and that"
        )
    return budget // length


class OrderStatistic(NamedTuple):
    """The k-th largest of many scores, how many are above it, and how many equal it."""

    value: np.float32
    num_above: int
    num_equal: int


def kth_largest(batches: Callable[[], Iterator[np.ndarray]], k: int) -> OrderStatistic:
    """The k-th largest of streamed float32 scores, exactly, in constant memory.

    Args:
        batches: gives the scores anew at every call.
        k: from 1 (the maximum) to the number of scores.
    """
    return order_statistics(lambda: ((None, batch) for batch in batches()), {0: [k]})[0, k]


def order_statistics(
    batches: Callable[[], Iterator[tuple[np.ndarray | None, np.ndarray]]],
    ranks: Mapping[int, Iterable[int]],
) -> dict[tuple[int, int], OrderStatistic]:
    """Several order statistics of several groups of float32 scores, in two passes; memory grows with the ranks, not with the scores.

    Args:
        batches: gives (group of each score, scores) anew at every call; None for a single group, 0.
        ranks: which k are wanted, by group; each from 1 (the largest) to the number of scores of the group.

    Returns:
        The statistic of each (group, k).
    """
    num_groups = max(ranks) + 1
    coarse = np.zeros(num_groups << 16, np.int64)
    for group_N, score_N in batches():
        coarse += np.bincount(_in_group(group_N, _ordered_bits(score_N) >> 16), minlength=len(coarse))
    found = {(group, k): _bin_of_kth(coarse[group << 16 : (group + 1) << 16], k, 0) for group, ks in ranks.items() for k in ks}
    bins = sorted({group << 16 | high for (group, _), (_, high) in found.items()})
    slot_of_bin, is_wanted = np.zeros(num_groups << 16, np.int64), np.zeros(num_groups << 16, bool)
    slot_of_bin[bins], is_wanted[bins] = np.arange(len(bins)), True
    fine = np.zeros(len(bins) << 16, np.int64)
    for group_N, score_N in batches():
        bits_N = _ordered_bits(score_N)
        bin_N = _in_group(group_N, bits_N >> 16)
        wanted_N = is_wanted[bin_N]
        fine += np.bincount(slot_of_bin[bin_N[wanted_N]] << 16 | (bits_N[wanted_N] & 0xFFFF), minlength=len(fine))
    statistics = {}
    for (group, k), (above_bin, high) in found.items():
        slot = slot_of_bin[group << 16 | high]
        counts = fine[slot << 16 : (slot + 1) << 16]
        above, low = _bin_of_kth(counts, k, above_bin)
        statistics[group, k] = OrderStatistic(_float_of(high << 16 | low), above, int(counts[low]))
    return statistics


def make_worker(sequences: UPath, selection: UPath, directory: UPath) -> Callable[[int], ShardRecord]:
    """The returned function copies one shard's selected sequences, in id order, row group by row group."""

    def materialize_shard(shard: int) -> ShardRecord:
        wanted = _read(selection, shard)["sequence_id"]
        path = shard_file(directory, shard)
        num_rows = 0
        with shard_file(sequences, shard).open("rb") as source, atomic_file(path) as target:
            file = pq.ParquetFile(source)
            with pq.ParquetWriter(target, file.schema_arrow, compression="zstd") as writer:
                for batch in file.iter_batches(batch_size=16 * schemas.SEQUENCES_PER_ROW_GROUP):
                    chosen = batch.filter(pc.is_in(batch["sequence_id"], value_set=wanted.combine_chunks()))
                    num_rows += len(chosen)
                    writer.write_batch(chosen, row_group_size=schemas.SEQUENCES_PER_ROW_GROUP)
        if num_rows != len(wanted):
            raise ValueError(
                f"materialize: {len(wanted)} sequences of shard {shard} are selected but {num_rows} are in {sequences}: "
                "the corpus changed; delete the selection and run `bliss select` again"
            )
        return ShardRecord(shard=shard, outputs=[describe(directory, path.name, rows=num_rows)], metrics={"num_sequences": num_rows})

    return materialize_shard


def _read(directory: UPath, shard: int, columns: list[str] | None = None) -> pa.Table:
    with shard_file(directory, shard).open("rb") as file:
        return pq.read_table(file, columns=columns, schema=schemas.SCORES)


def _eligible(scores: UPath, shard: int, contaminated: UPath | None) -> pa.Table:
    """The scores of one shard's sequences that may be selected."""
    table = _read(scores, shard)
    if contaminated is None:
        return table
    with shard_file(contaminated, shard).open("rb") as file:
        ids = pq.read_table(file, columns=["sequence_id"])["sequence_id"].to_numpy()
    return table.filter(pa.array(~np.isin(table["sequence_id"].to_numpy(), ids)))


def _num_rows(directory: UPath, shard: int) -> int:
    with shard_file(directory, shard).open("rb") as file:
        return int(pq.read_metadata(file).num_rows)


def _ordered_bits(score_N: np.ndarray) -> np.ndarray:
    """float32 to uint32 so that the integers sort like the floats; -0.0 and 0.0 are one number."""
    bits = (score_N + np.float32(0)).view(np.uint32)
    flipped = (bits.view(np.int32) >> 31).view(np.uint32) | np.uint32(0x80000000)  # all bits of a negative number, else its sign
    return bits ^ flipped


def _float_of(ordered_bits: int) -> np.float32:
    """The inverse of `_ordered_bits`."""
    bits = ordered_bits & 0x7FFFFFFF if ordered_bits >> 31 else ~ordered_bits & 0xFFFFFFFF
    value: np.float32 = np.array([bits], np.uint32).view(np.float32)[0]
    return value


def _in_group(group_N: np.ndarray | None, high_N: np.ndarray) -> np.ndarray:
    """The number of each score's coarse bin, counted through all groups."""
    return high_N if group_N is None else group_N.astype(np.int64) << 16 | high_N


def _bin_of_kth(counts: np.ndarray, k: int, above: int) -> tuple[int, int]:
    """Counts above and number of the bin that holds the k-th largest, `above` larger values being known already."""
    from_top = above + np.cumsum(counts[::-1])
    position = int(np.searchsorted(from_top, k))
    chosen = len(counts) - 1 - position
    return int(from_top[position] - counts[chosen]), chosen
