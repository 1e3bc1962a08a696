"""What the pages ask of the snapshot: summary tables the loader filled, so no page scans the scores.

Two questions do go to the scores, and say so: a document's own sequences (pruned by shard and id), and two score runs beside each other (a
sample by a hash of the id, the same at every visit).
"""

from typing import TYPE_CHECKING

from bliss_ops.explorer.snapshots import Row, row, rows
from bliss_ops.report.charts import digits_for
from bliss_ops.sharding import ROWS_PER_SHARD
from bliss_ops.store.examples import DOCUMENTS_OF

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

SAMPLE = 20_000  # sequences that two score runs are compared on: a share has a standard error of 0.4 %
DISAGREEMENTS = 8
PER_PAGE = 50

LEADERBOARD_ORDERS = {  # what a column is called in the address: how it sorts
    "score": "score desc, num_tokens desc",
    "worst": "score, num_tokens desc",
    "documents": "num_documents desc",
    "tokens": "num_tokens desc",
    "kept": "num_selected_tokens / num_tokens desc, num_tokens desc",
    "name": "name",
}

RUNS = """
select r.score_run_id, r.kind, r.corpus, r.sequence_set, r.run, r.round, r.recipe, r.method, r.seed, r.finished_at,
       s.num_sequences, s.mean, s.standard_deviation, s.minimum, s.maximum, s.threshold, s.num_selected,
       e.loss as validation_loss
from score_runs r join run_summaries s using (score_run_id)
left join (select score_run_id, max(value) as loss from final_evaluations where task = 'validation' and metric = 'loss'
           group by score_run_id) e using (score_run_id)
where ($score_run_id is null or r.score_run_id = $score_run_id)
  and ($corpus is null or r.corpus = $corpus) and ($kind is null or r.kind = $kind)
order by r.finished_at desc, r.score_run_id
"""
CORPORA = """
select corpus, count(*) as num_score_runs, count(distinct sequence_set) as num_sequence_sets from score_runs group by corpus order by corpus
"""
HISTOGRAMS = """
select score_run_id, bin, lowest, highest, num_sequences, num_selected from score_histograms
where score_run_id in (select unnest($score_run_ids)) order by score_run_id, bin
"""
DECILES = """
select decile, lowest, highest, mean, num_sequences, num_selected from decile_summaries where score_run_id = $score_run_id order by decile
"""
LENGTHS = """
select lowest_tokens, highest_tokens, num_documents, mean, q10, q50, q90 from length_summaries
where score_run_id = $score_run_id order by bin
"""
EXAMPLES = """
select category, rank, sequence_id, score, document_id from example_sequences
where score_run_id = $score_run_id and category in (select unnest($categories)) order by category, rank
"""
# $order is one of LEADERBOARD_ORDERS, put in by name: a parameter cannot be a column.
LEADERBOARD = """
select {place} as name, score, num_documents, num_tokens, num_selected_tokens, count(*) over () as num_found
from {place}_summaries
where score_run_id = $score_run_id and num_documents >= $least and ($part = '' or contains(lower({place}), $part))
order by {order}, name limit $limit offset $offset
"""
ROUNDS_OF = "select score_run_id, round from score_runs where kind = 'round' and run = $run order by round"
SHARES_KEPT = """
select r.round, s.source as name, s.num_tokens, s.num_selected_tokens, s.score
from source_summaries s join score_runs r using (score_run_id)
where r.kind = 'round' and r.run = $run order by s.source, r.round
"""
SIBLINGS = """
select b.score_run_id, b.kind, b.method, b.round from score_runs a join score_runs b on a.sequence_set = b.sequence_set
where a.score_run_id = $score_run_id and b.score_run_id <> a.score_run_id
  and exists (select 1 from loads x join loads y on x.shard_id = y.shard_id
              where x.kind = 'scores' and y.kind = 'scores' and x.owner = a.score_run_id and y.owner = b.score_run_id)
order by b.finished_at desc, b.score_run_id
"""
OVERLAPS = """
select o.a, o.b, o.num_a, o.num_b, o.num_both, o.jaccard, r.sequence_set, r.round
from overlap_summaries o join score_runs r on r.score_run_id = o.a order by r.sequence_set, r.round, o.a, o.b
"""
OVERLAP = "select num_a, num_b, num_both, jaccard from overlap_summaries where a = least($a, $b) and b = greatest($a, $b)"
DOCUMENT = (
    "select source, domain, url, num_bytes from documents where corpus = $corpus and shard_id = $shard and document_id = $document_id"
)
DOCUMENT_SEQUENCES = """
select sequence_set, sequence_id, num_tokens from spans
where corpus = $corpus and shard_id = $shard and document_id = $document_id order by sequence_set, sequence_id
"""
SEQUENCE_SCORES = """
select s.score_run_id, s.sequence_id, s.score from all_scores s join score_runs r using (score_run_id)
where r.sequence_set = $sequence_set and s.shard_id = $shard and s.sequence_id between $first and $last
  and s.sequence_id in (select unnest($sequence_ids))
order by s.score_run_id, s.sequence_id
"""
COLUMNS = """
select table_name, column_name, data_type from duckdb_columns() where database_name = 'store' and schema_name = 'main' and not internal
order by table_name, column_index
"""

# As ubigint, like the hash: a plain parameter would make every remainder one of 128-bit integers, 60 times slower.
BOTH = """
with a as (select sequence_id, score from all_scores where score_run_id = $a and hash(sequence_id) % $one_of::ubigint = 0),
     b as (select sequence_id, score from all_scores where score_run_id = $b and hash(sequence_id) % $one_of::ubigint = 0)
select sequence_id, a.score as score_a, b.score as score_b,
       ntile(10) over (order by a.score desc, sequence_id) as decile_a, ntile(10) over (order by b.score desc, sequence_id) as decile_b,
       percent_rank() over (order by a.score) as rank_a, percent_rank() over (order by b.score) as rank_b
from a join b using (sequence_id)
"""
DECILES_OF_BOTH = "select decile_a, decile_b, count(*) as num_sequences from both_scores group by all order by decile_a, decile_b"
# Where a run selected nothing (re-scored, imported), its best fifth stands in.
KEPT_BY_ONE = """
with kept as (
    select *, coalesce(score_a >= $threshold_a, rank_a >= 0.8) as in_a, coalesce(score_b >= $threshold_b, rank_b >= 0.8) as in_b
    from both_scores)
select *, count(*) over (partition by in_a, in_b) as num_alike, corr(rank_a, rank_b) over () as correlation from kept
qualify row_number() over (partition by in_a, in_b order by abs(rank_a - rank_b) desc, sequence_id) <= $limit
order by in_a desc, in_b desc, abs(rank_a - rank_b) desc, sequence_id
"""


def score_runs(
    cursor: "DuckDBPyConnection", *, score_run_id: str | None = None, corpus: str | None = None, kind: str | None = None
) -> list[Row]:
    """Score runs with their headline numbers, newest first."""
    found = rows(cursor, RUNS, {"score_run_id": score_run_id, "corpus": corpus, "kind": kind})
    return [run | {"digits": digits_for(run["standard_deviation"])} for run in found]


def histograms(cursor: "DuckDBPyConnection", score_run_ids: list[str]) -> dict[str, list[Row]]:
    """The bins of each score run."""
    found: dict[str, list[Row]] = {score_run_id: [] for score_run_id in score_run_ids}
    for each in rows(cursor, HISTOGRAMS, {"score_run_ids": score_run_ids}):
        found[each["score_run_id"]].append(each)
    return found


def leaderboard(
    cursor: "DuckDBPyConnection", score_run_id: str, place: str, *, order: str, part: str = "", least: int = 0, page: int = 1
) -> tuple[list[Row], int]:
    """One page of the sources or domains of a score run, and how many there are."""
    statement = LEADERBOARD.format(place={"source": "source", "domain": "domain"}[place], order=LEADERBOARD_ORDERS[order])
    parameters = {"score_run_id": score_run_id, "part": part.lower(), "least": least, "limit": PER_PAGE, "offset": (page - 1) * PER_PAGE}
    found = rows(cursor, statement, parameters)
    return found, found[0]["num_found"] if found else 0


def document_scores(cursor: "DuckDBPyConnection", corpus: str, document_id: int) -> list[Row]:
    """Each score run's score of a document (weighted by tokens) with the sequences behind it; asks the scores, by shard and id."""
    shard = document_id // ROWS_PER_SHARD
    spans: dict[str, dict[int, int]] = {}
    for span in rows(cursor, DOCUMENT_SEQUENCES, {"corpus": corpus, "shard": shard, "document_id": document_id}):
        spans.setdefault(span["sequence_set"], {})[span["sequence_id"]] = span["num_tokens"]
    found: dict[str, list[Row]] = {}
    for sequence_set, tokens in spans.items():
        parameters = {"sequence_set": sequence_set, "shard": shard, "first": min(tokens), "last": max(tokens), "sequence_ids": list(tokens)}
        for scored in rows(cursor, SEQUENCE_SCORES, parameters):
            scored["num_tokens"] = tokens[scored["sequence_id"]]
            found.setdefault(scored["score_run_id"], []).append(scored)
    summaries = {run["score_run_id"]: run for run in score_runs(cursor, corpus=corpus)}
    return [
        {
            "run": run,
            "score": sum(s["score"] * s["num_tokens"] for s in found[name]) / sum(s["num_tokens"] for s in found[name]),
            "sequences": found[name],
        }
        for name, run in summaries.items()
        if name in found
    ]


def compare(cursor: "DuckDBPyConnection", a: Row, b: Row) -> Row:
    """Two score runs on the same sequences, on a sample of them: how their deciles meet, and where one keeps what the other leaves out."""
    one_of = max(1, min(a["num_sequences"], b["num_sequences"]) // SAMPLE)
    cursor.execute(
        "create or replace temp table both_scores as " + BOTH, {"a": a["score_run_id"], "b": b["score_run_id"], "one_of": one_of}
    )
    thresholds = {"threshold_a": a["threshold"], "threshold_b": b["threshold"], "limit": DISAGREEMENTS}
    alike = rows(cursor, KEPT_BY_ONE, thresholds)
    deciles = rows(cursor, DECILES_OF_BOTH)
    only = {"a": [r for r in alike if r["in_a"] and not r["in_b"]], "b": [r for r in alike if r["in_b"] and not r["in_a"]]}
    shown = [r["sequence_id"] for side in only.values() for r in side]
    parameters = {"sequence_set": a["sequence_set"], "shards": sorted({i // ROWS_PER_SHARD for i in shown}), "sequences": shown}
    documents = {r["sequence_id"]: r["document_id"] for r in rows(cursor, DOCUMENTS_OF, parameters)}
    for side in only.values():
        for each in side:
            each["document_id"] = documents.get(each["sequence_id"])
    counts = {(r["in_a"], r["in_b"]): r["num_alike"] for r in alike}
    return {
        "one_of": one_of,
        "num_sampled": sum(d["num_sequences"] for d in deciles),
        "correlation": alike[0]["correlation"] if alike else None,
        "num_both": counts.get((True, True), 0),
        "num_only_a": counts.get((True, False), 0),
        "num_only_b": counts.get((False, True), 0),
        "num_neither": counts.get((False, False), 0),
        "deciles": deciles,
        "only": only,
        "overlap": row(cursor, OVERLAP, {"a": a["score_run_id"], "b": b["score_run_id"]}),
    }
