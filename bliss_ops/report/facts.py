"""The numbers of a report, asked of the run's own Parquet files by DuckDB.

Nothing is read into Python but aggregates, so a report of fifty million scores needs no more memory than one of six thousand. The score
store is not needed: a finished run can always be reported. What concerns documents and their texts is in documents.py.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from upath import UPath

from bliss_ops.lake import Lake, Run, is_local, is_on_s3, shard_file
from bliss_ops.manifest import Manifest, read_manifest
from bliss_ops.selectors import selector_of

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

NUM_BINS = 64
NARROW = 1e-6  # 5th to 95th percentile, as a share of the mean's size
NARROW_LOGITS = 0.01  # for logits in absolute terms: the softmax weights of nine sequences in ten are within 1 % of each other
FEW_DISTINCT = 0.1  # distinct scores per sequence

# A sequence counts for the source that gave it most tokens.
CANDIDATES = """
create table candidates as
with tokens as (
    select p.sequence_id, d.source, sum(p.num_tokens) as num_tokens
    from read_parquet($spans) p join read_parquet($documents) d using (document_id) group by all
), sources as (
    select sequence_id, arg_max(source, num_tokens) as source from tokens group by sequence_id
)
select s.sequence_id, s.score, coalesce(o.source, 'unknown') as source, k.sequence_id is not null as selected
from read_parquet($scores) s left join sources o using (sequence_id) left join read_parquet($selected) k using (sequence_id)
"""
DISTRIBUTION = """
select count(*), avg(score), stddev_pop(score), min(score), max(score), count(distinct score),
       quantile_cont(score, [0.001, 0.05, 0.5, 0.95, 0.999]) from candidates
"""
TIED = "select coalesce(sum(n), 0) from (select count(*) as n from candidates group by score having count(*) > 1)"
HISTOGRAM = """
select least(greatest(floor((score - $low) / $width), 0), $num_bins - 1)::integer as bin, count(*), count(*) filter (where selected)
from candidates group by bin order by bin
"""
BY_SOURCE = """
select source, count(*) as num_sequences, count(*) filter (where selected) as num_selected, avg(score) as mean,
       quantile_cont(score, [0.05, 0.25, 0.5, 0.75, 0.95]) as quantiles
from candidates group by source order by mean desc, source
"""


@dataclass(frozen=True)
class Distribution:
    """How the scores of one round are spread."""

    num_sequences: int
    mean: float
    standard_deviation: float
    minimum: float
    maximum: float
    num_distinct: int
    num_tied: int  # sequences that share their score with another
    quantiles: list[float]  # 0.1 %, 5 %, 50 %, 95 %, 99.9 %
    edges: list[float]
    counts: list[int]
    counts_selected: list[int]
    narrow: float  # a 5-95 % range below this says nothing

    @property
    def warning(self) -> str:
        """Why these scores should not be trusted to rank, or nothing."""
        spread = self.quantiles[3] - self.quantiles[1]
        if self.num_distinct == 1:
            return "All scores are equal: the selection was decided by sequence id alone."
        if spread < self.narrow:
            return (
                f"The scores are nearly constant: nine in ten lie within {spread:.2g} of each other. Small errors decide what is selected."
            )
        if self.num_distinct < FEW_DISTINCT * self.num_sequences:
            return f"Only {self.num_distinct:,} distinct scores for {self.num_sequences:,} sequences: ties decide much of the selection."
        return ""


@dataclass(frozen=True)
class Source:
    """The scores of one source and its part in the pool and the subset."""

    name: str
    num_sequences: int
    num_selected: int
    mean: float
    quantiles: list[float]  # 5, 25, 50, 75, 95 %


class Facts:
    """What DuckDB knows of one round; a context manager, because it may spill to a scratch directory."""

    def __init__(self, run: Run, round_number: int, scratch: str) -> None:
        import duckdb

        here, corpus = run.round(round_number), run.corpus
        scores = read_manifest(here / "scores", made_by=f"bliss score {run.name} --round {round_number}")
        selection = read_manifest(here / "selection", made_by=f"bliss select {run.name} --round {round_number}")
        self.counts: dict[str, Any] = selection.metrics
        self.corpus = corpus
        self.method = run.config.method
        self.shards = scores.shards
        self.spans = _files(corpus.sequences / "spans", scores.shards)
        self.documents_files = _files(corpus.documents, scores.shards)
        self.con: DuckDBPyConnection = duckdb.connect(":memory:", config={"temp_directory": scratch, "memory_limit": "2GB"})
        reach(self.con, run.lake)
        parameters = {
            "spans": self.spans,
            "documents": self.documents_files,
            "scores": _files(here / "scores", self.shards),
        }
        self.con.execute(CANDIDATES, parameters | {"selected": parquet_files(here / "selection", selection)})

    def __enter__(self) -> "Facts":
        return self

    def __exit__(self, *_: object) -> None:
        self.con.close()

    def distribution(self) -> Distribution:
        """Moments, quantiles, ties and a histogram; a thousandth at either end may be folded into the outer bins."""
        count, mean, deviation, minimum, maximum, num_distinct, quantiles = self._row(DISTRIBUTION)
        (num_tied,) = self._row(TIED)
        low, high = minimum, maximum
        core = quantiles[4] - quantiles[0]
        if high - low > 3 * core > 0:  # a few far values would squeeze all others into one bar
            low, high = quantiles[0] - core / 4, quantiles[4] + core / 4
        if high <= low:
            low, high = low - 0.5, high + 0.5
        width = (high - low) / NUM_BINS
        counts, selected = [0] * NUM_BINS, [0] * NUM_BINS
        for bin_number, number, number_selected in self.con.execute(
            HISTOGRAM, {"low": low, "width": width, "num_bins": NUM_BINS}
        ).fetchall():
            counts[bin_number], selected[bin_number] = number, number_selected
        edges = [low + width * k for k in range(NUM_BINS + 1)]
        narrow = NARROW_LOGITS if selector_of(self.method) == "bliss" else NARROW * max(1e-6, abs(mean))
        return Distribution(
            count, mean, deviation, minimum, maximum, num_distinct, int(num_tied), quantiles, edges, counts, selected, narrow
        )

    def sources(self) -> list[Source]:
        """Sources by mean score, best first."""
        return [Source(*row) for row in self.con.execute(BY_SOURCE).fetchall()]

    def _row(self, query: str) -> tuple[Any, ...]:
        row = self.con.execute(query).fetchone()
        assert row is not None
        return row


def reach(con: "DuckDBPyConnection", lake: Lake) -> None:
    """Let a connection read the lake's files where they are on an object store."""
    if is_on_s3(lake.root):
        from bliss_ops.object_store.querying import QueriedStore

        con.register_filesystem(QueriedStore())
    elif not is_local(lake.root):
        con.register_filesystem(lake.root.fs)


def parquet_files(directory: UPath, manifest: Manifest) -> list[str]:
    """The Parquet files of an artifact."""
    return [str(directory / output.path) for output in manifest.outputs if output.path.endswith(".parquet")]


def _files(directory: UPath, shards: list[int]) -> list[str]:
    return [str(shard_file(directory, shard)) for shard in shards]
