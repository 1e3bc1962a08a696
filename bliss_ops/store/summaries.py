"""Summaries of a score run, computed when it is loaded so that nobody who looks at them has to scan its scores.

Order statistics (deciles, the range of the histogram) are exact and come from counting passes over the bits of the floats, shard after
shard: memory does not grow with the corpus. Documents never cross shards, so scores by document, and from them by source, domain and
length, are grouped one shard at a time as well. What a summary was made from is in the ledger: unchanged content is not read again.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from bliss_ops.selection import OrderStatistic, order_statistics
from bliss_ops.store import tables
from bliss_ops.store.examples import Examples
from bliss_ops.store.score_runs import ScoreRun
from bliss_ops.store.transactions import execute, transaction

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

VERSION = "1"  # a change of what is computed below counts it up: stores are summarised again
NUM_BINS = 120
NUM_DECILES = 10
TAIL = 0.001  # share of scores below the first and above the last bin's edge, folded into these bins
MOST_DOMAINS = 10_000  # with most tokens; a crawl has millions, each for every score run

MADE_FROM = """
select md5($version || coalesce(string_agg(concat_ws('|', kind, shard_id, sha256), ',' order by kind, shard_id), ''))
from loads
where owner = $owner and kind in ('scores', 'selections', 'selection_counts')
   or kind = 'spans' and owner = $sequence_set and list_contains($shards, shard_id)
   or kind = 'documents' and owner = $corpus and list_contains($shards, shard_id)
"""
LOADED = "select sha256 from loads where kind = 'summaries' and owner = $owner"
SHARDS = "select shard_id from loads where kind = 'scores' and owner = $owner order by shard_id"
SCORES_OF_SHARD = "select score from all_scores where score_run_id = $owner and shard_id = $shard"
SHARD = "select sequence_id, score from all_scores where score_run_id = $owner and shard_id = $shard"
SELECTED_OF_SHARD = "select sequence_id, score from selections where score_run_id = $owner and shard_id = $shard"
COUNTS = "select threshold, num_selected from selection_counts where score_run_id = $owner"

DELETE = tuple(f"delete from {table} where score_run_id = $owner" for table in (  # noqa: S608 - names from this line
    "run_summaries", "score_histograms", "decile_summaries", "example_sequences", "source_summaries", "domain_summaries",
    "length_summaries",
))  # fmt: skip
SHARD_DOCUMENTS = """
create or replace temp table shard_documents as
    select p.document_id, any_value(d.source) as source, coalesce(any_value(d.domain), 'unknown') as domain,
           sum(s.score::double * p.num_tokens) / sum(p.num_tokens) as score, sum(p.num_tokens) as num_tokens,
           coalesce(sum(p.num_tokens) filter (x.sequence_id is not null), 0) as num_selected_tokens
    from all_scores s
    join spans p on p.sequence_id = s.sequence_id
    join documents d on d.document_id = p.document_id
    left join (select sequence_id from selections where score_run_id = $owner and shard_id = $shard) x on x.sequence_id = s.sequence_id
    where s.score_run_id = $owner and s.shard_id = $shard and p.sequence_set = $sequence_set and p.shard_id = $shard
      and d.corpus = $corpus and d.shard_id = $shard
    group by p.document_id
"""
START_GROUPS = """
create or replace temp table groups (is_source boolean, name varchar, score_tokens double, num_documents bigint, num_tokens bigint,
                                     num_selected_tokens bigint);
create or replace temp table document_lengths (bin integer, score float)
"""
END_GROUPS = "drop table if exists shard_documents; drop table groups; drop table document_lengths"
GROUP_BY_SOURCE = """
insert into groups select true, source, sum(score * num_tokens), count(*), sum(num_tokens), sum(num_selected_tokens)
from shard_documents group by source
"""
GROUP_BY_DOMAIN = """
insert into groups select false, domain, sum(score * num_tokens), count(*), sum(num_tokens), sum(num_selected_tokens)
from shard_documents group by domain
"""
GROUP_BY_LENGTH = "insert into document_lengths select floor(log2(num_tokens)), score from shard_documents"
# Sums of doubles depend on their order, which is not fixed; rounded to float32 they do not.
SOURCES = """
insert into source_summaries
select $owner, $corpus, name, sum(score_tokens) / sum(num_tokens), sum(num_documents), sum(num_tokens), sum(num_selected_tokens)
from groups where is_source group by name order by name
"""
DOMAINS = """
insert into domain_summaries
select $owner, $corpus, name, sum(score_tokens) / sum(num_tokens), sum(num_documents), sum(num_tokens) as size, sum(num_selected_tokens)
from groups where not is_source group by name order by size desc, name limit $most
"""
LENGTHS = "select bin, count(*), avg(score) from document_lengths group by bin order by bin"
DOCUMENT_LENGTHS = "select bin, score from document_lengths"


def are_current(con: "DuckDBPyConnection", score_run: ScoreRun) -> bool:
    """Whether the summaries were made from what the tables hold now."""
    return con.execute(LOADED, {"owner": score_run.id}).fetchone() == (_made_from(con, score_run),)


def refresh(con: "DuckDBPyConnection", score_run: ScoreRun) -> None:
    """Compute the summaries of one score run again, in one transaction, unless they are current."""
    made_from = _made_from(con, score_run)
    if con.execute(LOADED, {"owner": score_run.id}).fetchone() == (made_from,):
        return
    names = {"owner": score_run.id, "sequence_set": score_run.content.sequence_set, "corpus": score_run.content.corpus}
    key = {"kind": "summaries", "owner": score_run.id, "shard": 0}
    with transaction(con):
        for statement in DELETE:
            con.execute(statement, {"owner": score_run.id})
        con.execute(tables.FORGET, key)
        num_rows = _summarize_scores(con, names) + _summarize_documents(con, names)
        con.execute(tables.REMEMBER, key | {"sha256": made_from, "num_rows": num_rows})


def _made_from(con: "DuckDBPyConnection", score_run: ScoreRun) -> str:
    content = score_run.content
    names = {"owner": score_run.id, "sequence_set": content.sequence_set, "corpus": content.corpus}
    (digest,) = con.execute(MADE_FROM, names | {"shards": score_run.shards, "version": VERSION}).fetchone() or ("",)
    return str(digest)


# ---- scores ----------------------------------------------------------------------------------------------------------


@dataclass
class _Bins:
    """Counts of scores, and of the selected ones, in equal bins and around the deciles' boundaries."""

    edges: tuple[float, float]
    boundaries: np.ndarray  # ascending, distinct
    counts: np.ndarray = field(init=False)
    selected: np.ndarray = field(init=False)
    sums: np.ndarray = field(init=False)  # interval i holds boundaries[i-1] < score <= boundaries[i]
    at_boundary: np.ndarray = field(init=False)
    selected_in_interval: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.counts, self.selected = np.zeros(NUM_BINS, np.int64), np.zeros(NUM_BINS, np.int64)
        self.sums = np.zeros(len(self.boundaries) + 1)
        self.at_boundary = np.zeros(len(self.boundaries), np.int64)
        self.selected_in_interval = np.zeros(len(self.boundaries) + 1, np.int64)

    def add(self, score_N: np.ndarray, selected_M: np.ndarray) -> None:
        self.counts += self._histogram(score_N)
        self.selected += self._histogram(selected_M)
        interval_N = np.searchsorted(self.boundaries, score_N)
        self.sums += np.bincount(interval_N, weights=score_N, minlength=len(self.sums))
        interval_M = np.searchsorted(self.boundaries, selected_M)
        self.selected_in_interval += np.bincount(interval_M, minlength=len(self.sums))
        for number, value in enumerate(self.boundaries):
            self.at_boundary[number] += np.count_nonzero(selected_M == value)

    def _histogram(self, score_N: np.ndarray) -> np.ndarray:
        lowest, highest = self.edges
        if highest <= lowest:
            return np.bincount([0], weights=[len(score_N)], minlength=NUM_BINS).astype(np.int64)
        bin_N = ((score_N.astype(np.float64) - lowest) * (NUM_BINS / (highest - lowest))).clip(0, NUM_BINS - 1).astype(np.int64)
        return np.bincount(bin_N, minlength=NUM_BINS)


def _summarize_scores(con: "DuckDBPyConnection", names: dict[str, str]) -> int:
    owner = {"owner": names["owner"]}
    shards = [shard for (shard,) in con.execute(SHARDS, owner).fetchall()]

    def batches() -> Iterator[tuple[None, np.ndarray]]:
        for shard in shards:
            yield None, con.execute(SCORES_OF_SHARD, owner | {"shard": shard}).fetchnumpy()["score"]

    num_scores = sum(len(batch) for _, batch in batches())
    if num_scores == 0:
        return 0
    sizes = [num_scores // NUM_DECILES + (decile < num_scores % NUM_DECILES) for decile in range(NUM_DECILES)]
    ends = [int(end) for end in np.cumsum([size for size in sizes if size])]
    tail = int(TAIL * (num_scores - 1))
    ranks = {1, num_scores, 1 + tail, num_scores - tail, (num_scores + 1) // 2, *ends, *(end + 1 for end in ends[:-1])}
    statistics = {k: found for (_, k), found in order_statistics(batches, {0: ranks}).items()}
    if not (np.isfinite(statistics[1].value) and np.isfinite(statistics[num_scores].value)):  # NaNs sort to the ends
        raise ValueError(f"{names['owner']}: a score is not a finite number: score again, or import without such rows")

    edges = float(statistics[num_scores - tail].value), float(statistics[1 + tail].value)
    bins = _Bins(edges, np.unique(np.array([statistics[end].value for end in ends], np.float32)))
    middle = float(statistics[(num_scores + 1) // 2].value)
    squares, examples = [], Examples()
    for shard in shards:
        everything = con.execute(SHARD, owner | {"shard": shard}).fetchnumpy()
        selected = con.execute(SELECTED_OF_SHARD, owner | {"shard": shard}).fetchnumpy()
        bins.add(everything["score"], selected["score"])
        squares.append(float(((everything["score"].astype(np.float64) - middle) ** 2).sum()))
        examples.add(everything["sequence_id"], everything["score"], selected["sequence_id"], selected["score"])
    mean = math.fsum(bins.sums) / num_scores
    threshold, num_selected = con.execute(COUNTS, owner).fetchone() or (None, None)
    summary = {
        "num_sequences": num_scores,
        "mean": mean,
        "standard_deviation": max(0.0, math.fsum(squares) / num_scores - (mean - middle) ** 2) ** 0.5,
        "minimum": float(statistics[num_scores].value),
        "maximum": float(statistics[1].value),
        "threshold": threshold,
        "num_selected": num_selected,
    }
    rows = {
        "run_summaries": [summary],
        "score_histograms": _histogram_rows(bins),
        "decile_summaries": _decile_rows(bins, ends, statistics),
        "example_sequences": examples.rows(con, names, [statistics[end] for end in ends]),
    }
    for table, of_table in rows.items():
        _insert(con, table, names["owner"], of_table)
    return sum(map(len, rows.values()))


def _histogram_rows(bins: _Bins) -> list[dict[str, Any]]:
    lowest, highest = bins.edges
    edges = np.linspace(lowest, highest, NUM_BINS + 1) if highest > lowest else [lowest, highest]
    return [
        {"bin": number, "lowest": float(left), "highest": float(right), "num_sequences": int(bins.counts[number])}
        | {"num_selected": int(bins.selected[number])}
        for number, (left, right) in enumerate(pairwise(edges))
    ]


def _decile_rows(bins: _Bins, ends: list[int], statistics: dict[int, OrderStatistic]) -> list[dict[str, Any]]:
    """Ties at a boundary go to the better decile as far as it has room, and the selected ones, which have the smaller ids, first."""
    rows, first, sum_before, selected_before = [], 1, 0.0, 0
    for decile, end in enumerate(ends, start=1):
        value, num_above, _ = statistics[end]
        boundary = int(np.searchsorted(bins.boundaries, value))
        ties = end - num_above
        sum_until = math.fsum(bins.sums[boundary + 1 :]) + ties * float(value)
        selected_until = int(bins.selected_in_interval[boundary + 1 :].sum()) + min(ties, int(bins.at_boundary[boundary]))
        size = end - first + 1
        rows.append(
            {
                "decile": decile,
                "lowest": float(value),
                "highest": float(statistics[first].value),
                "mean": (sum_until - sum_before) / size,
                "num_sequences": size,
                "num_selected": selected_until - selected_before,
            }
        )
        first, sum_before, selected_before = end + 1, sum_until, selected_until
    return rows


# ---- documents -------------------------------------------------------------------------------------------------------


def _summarize_documents(con: "DuckDBPyConnection", names: dict[str, str]) -> int:
    """Scores by source, domain and length of documents, where the corpus's spans are there."""
    con.execute(START_GROUPS)
    for (shard,) in con.execute(SHARDS, {"owner": names["owner"]}).fetchall():
        execute(con, SHARD_DOCUMENTS, names | {"shard": shard})
        for statement in (GROUP_BY_SOURCE, GROUP_BY_DOMAIN, GROUP_BY_LENGTH):
            con.execute(statement)
    (num_sources,) = execute(con, SOURCES, names).fetchone() or (0,)
    (num_domains,) = execute(con, DOMAINS, names | {"most": MOST_DOMAINS}).fetchone() or (0,)
    lengths = _length_rows(con)
    _insert(con, "length_summaries", names["owner"], lengths)
    con.execute(END_GROUPS)
    return int(num_sources) + int(num_domains) + len(lengths)


def _length_rows(con: "DuckDBPyConnection") -> list[dict[str, Any]]:
    """Mean and quantiles of documents' scores by powers of two of their tokens."""
    means = {bin: (count, mean) for bin, count, mean in con.execute(LENGTHS).fetchall()}  # noqa: A001 - the column's name
    if not means:
        return []

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for batch in con.sql(DOCUMENT_LENGTHS).to_arrow_reader(1 << 20):
            yield batch["bin"].to_numpy(), batch["score"].to_numpy()

    ranks = {bin: {quantile: count - int(quantile * (count - 1)) for quantile in (0.1, 0.5, 0.9)} for bin, (count, _) in means.items()}  # noqa: A001
    statistics = order_statistics(batches, {bin: set(of_bin.values()) for bin, of_bin in ranks.items()})  # noqa: A001
    return [
        {
            "bin": bin,
            "lowest_tokens": 1 << bin,
            "highest_tokens": (2 << bin) - 1,
            "num_documents": count,
            "mean": mean,
            "q10": float(statistics[bin, ranks[bin][0.1]].value),
            "q50": float(statistics[bin, ranks[bin][0.5]].value),
            "q90": float(statistics[bin, ranks[bin][0.9]].value),
        }
        for bin, (count, mean) in means.items()  # noqa: A001
    ]


def _insert(con: "DuckDBPyConnection", table: str, owner: str, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa

    if rows:
        con.register("rows", pa.Table.from_pylist([{"score_run_id": owner} | row for row in rows]))
        con.execute(f"insert into {table} by name from rows")
        con.unregister("rows")
