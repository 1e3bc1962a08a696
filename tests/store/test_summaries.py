"""Summaries of score runs against the same worked out by SQL over every row, and which score runs are in which view."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bliss_ops import store
from bliss_ops.lake import Lake
from bliss_ops.sharding import ROWS_PER_SHARD
from bliss_ops.sql import open_snapshot
from tests.lakes import make_corpus, make_further_scores, make_round, make_run

ROUND = "demo-bliss-s0/round-01"
Scores = Callable[[int, np.ndarray], np.ndarray]


def ask(lake: Lake, statement: str, **parameters: Any) -> list[tuple[Any, ...]]:
    with open_snapshot(lake) as con:
        rows: list[tuple[Any, ...]] = con.execute(statement, parameters or None).fetchall()
        return rows


def normal(shard: int, rows: np.ndarray) -> np.ndarray:
    return np.random.default_rng(shard).normal(size=len(rows))


def tied(shard: int, rows: np.ndarray) -> np.ndarray:
    return (rows + shard) % 7 - 3.0


def constant(shard: int, rows: np.ndarray) -> np.ndarray:
    return np.full(len(rows), 0.25)


def loaded(root: Path, score: Scores, num_sequences: int = 300) -> Lake:
    lake = make_corpus(root, num_sequences=num_sequences)
    store.sync(make_run(lake, score=score))
    return lake


DECILES = """
select decile, min(score), max(score), avg(score), count(*), count(selected)
from (select ntile(10) over (order by s.score desc, s.sequence_id) as decile, s.score, x.sequence_id as selected
      from all_scores s left join selections x using (score_run_id, sequence_id))
group by decile order by decile
"""


@pytest.mark.parametrize("num_sequences", [3, 36, 300])
@pytest.mark.parametrize("score", [normal, tied, constant])
def test_scores_in_summary_are_those_of_every_row(tmp_path: Path, score: Scores, num_sequences: int) -> None:
    lake = loaded(tmp_path, score, num_sequences)
    deciles = ask(lake, "select decile, lowest, highest, mean, num_sequences, num_selected from decile_summaries order by decile")
    expected = ask(lake, DECILES)
    assert [row[:3] + row[4:] for row in deciles] == [row[:3] + row[4:] for row in expected]
    assert [row[3] for row in deciles] == pytest.approx([row[3] for row in expected], abs=1e-9)
    (summary,) = ask(lake, "select num_sequences, minimum, maximum, threshold, num_selected, mean, standard_deviation from run_summaries")
    (everything,) = ask(
        lake,
        """select count(*), min(score), max(score), any_value(threshold), any_value(num_selected), avg(score), stddev_pop(score)
           from all_scores join selection_counts using (score_run_id)""",
    )
    assert summary[:5] == everything[:5]
    assert summary[5:] == pytest.approx(everything[5:], abs=1e-9)


@pytest.mark.parametrize("score", [normal, tied, constant])
def test_the_histogram_holds_every_score_once(tmp_path: Path, score: Scores) -> None:
    lake = loaded(tmp_path, score)
    bins = np.array(ask(lake, "select bin, lowest, highest, num_sequences, num_selected from score_histograms order by bin"))
    scores = np.array(ask(lake, "select score from all_scores"))[:, 0]
    selected = np.array(ask(lake, "select score from selections"))[:, 0]
    assert (bins[:, 3].sum(), bins[:, 4].sum()) == (600, 120)
    if score is constant:
        assert bins.tolist() == [[0, 0.25, 0.25, 600, 120]]
        return
    assert len(bins) == 120
    if score is tied:  # every value has a bin of its own
        values, counts = np.unique(scores, return_counts=True)
        assert bins[bins[:, 3] > 0][:, 3].tolist() == counts.tolist()
        assert bins[bins[:, 4] > 0][:, 4].tolist() == np.unique(selected, return_counts=True)[1].tolist()
        assert len(values) == 7
        return
    edges = np.append(bins[:, 1], bins[-1, 2])
    assert np.diff(edges) == pytest.approx(np.full(120, (edges[-1] - edges[0]) / 120))
    assert {edges[0], edges[-1]} == {np.sort(scores)[0], np.sort(scores)[-1]}, "of 600 scores, a thousandth is none"
    for column, values in ((3, scores), (4, selected)):
        assert bins[:, column].tolist() == np.histogram(values, edges)[0].tolist()


def test_examples_are_of_their_category_and_of_their_document(tmp_path: Path) -> None:
    lake = loaded(tmp_path, normal)
    examples = ask(lake, "select category, rank, sequence_id, score, corpus, document_id from example_sequences order by category, rank")
    scores = dict(ask(lake, "select sequence_id, score from all_scores"))
    best = sorted(scores, key=lambda sequence: -scores[sequence])
    selected = {sequence for (sequence,) in ask(lake, "select sequence_id from selections")}
    of = {name: [row for row in examples if row[0] == name] for name in {row[0] for row in examples}}
    assert set(of) == {f"decile-{number:02d}" for number in range(1, 11)} | {"selected", "rejected", "best", "worst"}
    assert all([row[1] for row in rows] == list(range(1, 9)) for rows in of.values()), "eight of each"
    assert [row[2] for row in of["best"]] == best[:8]
    assert [row[2] for row in of["worst"]] == best[:-9:-1]
    for number in range(1, 11):
        assert {row[2] for row in of[f"decile-{number:02d}"]} < set(best[60 * (number - 1) : 60 * number])
    assert {row[2] for row in of["selected"]} < selected
    assert not {row[2] for row in of["rejected"]} & selected
    assert of["decile-10"] != sorted(of["decile-10"], key=lambda row: row[2]), "not the first ones of the corpus"
    for _, _, sequence, score, corpus, document in examples:
        assert (score, corpus) == (scores[sequence], "tiny")
        shard, row = divmod(sequence, ROWS_PER_SHARD)
        # Of three sequences the first is document 0's, the second half of each (the smaller number wins), the third document 1's.
        assert document == shard * ROWS_PER_SHARD + row // 3 * 2 + (row % 3 == 2)


def test_sources_domains_and_lengths_are_those_of_the_views(tmp_path: Path) -> None:
    lake = loaded(tmp_path, normal)
    selected = dict(
        ask(lake, "select source, sum(num_tokens) from selections join sequence_documents using (sequence_id, shard_id) group by source")
    )
    for kind in ("source", "domain"):
        view = ask(lake, f"select {kind}, num_documents, num_tokens, score from {kind}_scores order by {kind}")  # noqa: S608 - one of two words
        columns = f"{kind}, num_documents, num_tokens, score, num_selected_tokens"
        summary = ask(lake, f"select {columns} from {kind}_summaries order by {kind}")  # noqa: S608 - one of two words
        assert [row[:3] for row in summary] == [row[:3] for row in view]
        assert [row[3] for row in summary] == pytest.approx([row[3] for row in view], abs=1e-6)
        assert [row[4] for row in summary] == [selected["code"], selected["prose"]]
    lengths = ask(lake, "select bin, lowest_tokens, highest_tokens, num_documents, mean, q10, q50, q90 from length_summaries")
    scores = ask(lake, "select score from document_scores")
    quantiles = np.quantile(np.array(scores)[:, 0].astype(np.float32), [0.1, 0.5, 0.9], method="lower")
    assert lengths == [(4, 16, 31, 400, pytest.approx(np.mean(scores), abs=1e-6), *map(pytest.approx, quantiles.tolist()))]


def test_summaries_follow_what_changes_and_nothing_else_is_computed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = make_corpus(tmp_path)
    run = make_run(lake, num_rounds=2)
    store.sync(run)
    summarized = []
    real = store.loading.summaries._summarize_scores
    monkeypatch.setattr(
        store.loading.summaries, "_summarize_scores", lambda con, names: [summarized.append(names["owner"]), real(con, names)][1]
    )
    store.sync(run)
    assert summarized == []
    make_round(run, 2, lambda shard, rows: rows + 100.0)
    store.sync(run)
    assert summarized == ["demo-bliss-s0/round-02"]
    assert ask(lake, "select minimum from run_summaries order by score_run_id")[1] == (100.0,)


def test_overlaps_of_one_round_and_of_one_run(tmp_path: Path) -> None:
    lake = make_corpus(tmp_path)
    for run in (make_run(lake, num_rounds=2, score=normal), make_run(lake, "random", num_rounds=2)):
        store.sync(run)
    chosen: dict[str, set[int]] = {}
    for owner, sequence in ask(lake, "select score_run_id, sequence_id from selections"):
        chosen.setdefault(owner, set()).add(sequence)
    pairs = ask(lake, "select a, b, num_a, num_b, num_both, jaccard from overlap_summaries order by a, b")
    a1, a2, r1, r2 = (f"demo-{method}-s0/round-0{number}" for method in ("bliss", "random") for number in (1, 2))
    assert [row[:2] for row in pairs] == [(a1, a2), (a1, r1), (a2, r2), (r1, r2)]
    for a, b, num_a, num_b, num_both, jaccard in pairs:
        assert (num_a, num_b, num_both) == (12, 12, len(chosen[a] & chosen[b]))
        assert jaccard == pytest.approx(num_both / len(chosen[a] | chosen[b]))
    assert ask(lake, "select a, b from selection_overlap order by a") == [(a1, r1), (a2, r2)]
    make_round(lake.run("demo-bliss-s0"), 2, lambda shard, rows: -normal(shard, rows))
    store.sync(lake.run("demo-bliss-s0"))
    assert ask(lake, "select num_both from overlap_summaries where a = $a and b = $b", a=a1, b=a2) == [(0,)]
    (lake.run("demo-random-s0").round(2) / "selection" / "manifest.json").unlink()
    store.sync(lake.run("demo-random-s0"))
    assert ask(lake, "select a, b from overlap_summaries order by a, b") == [(a1, a2), (a1, r1)]


def test_kinds_of_score_runs(tmp_path: Path) -> None:
    lake = make_corpus(tmp_path)
    run = make_run(lake, score=normal)
    store.sync(run)
    make_further_scores(lake, "theirs", constant)
    assert store.load_further(lake, "tiny", "theirs")["published"]
    again = "demo-bliss-s0-round-01-0123abcd"
    assert {row[0] for row in ask(lake, "select score_run_id from scores")} == {ROUND}, "imported scores are nobody's newest"
    make_further_scores(lake, again, tied, of=(run, 1), shards=[1])
    store.sync_lake(lake)
    runs = "select score_run_id, kind, run, round, recipe, method, seed, num_sequences from score_runs order by score_run_id"
    assert ask(lake, runs) == [
        (ROUND, "round", "demo-bliss-s0", 1, "demo", "bliss", 0, 60),
        (f"scores/tiny/{again}", "rescored", "demo-bliss-s0", 1, "demo", "bliss", 0, 30),
        ("scores/tiny/theirs", "imported", "theirs", 0, "", "theirs", 0, 60),
    ]
    assert ask(lake, "select score_run_id, shard_id, count(*) from scores group by all order by shard_id") == [
        (ROUND, 0, 30),
        (f"scores/tiny/{again}", 1, 30),
    ]
    assert ask(lake, "select count(*) from latest_scores") == [(60,)]
    assert ask(lake, "select score_run_id from rounds") == [(ROUND,)]
    digests = ask(lake, "select count(distinct sequences_digest), min(length(sequences_digest)) from score_runs")
    assert digests == [(1, 64)]
    fingerprints = ask(lake, "select kind, selector_fingerprint <> '' from score_runs order by kind")
    assert fingerprints == [("imported", False), ("rescored", True), ("round", True)]


def test_further_scores_that_cannot_be_loaded_are_clear_errors(tmp_path: Path) -> None:
    lake = make_corpus(tmp_path)
    with pytest.raises(ValueError, match="missing or not finished"):
        store.load_further(lake, "tiny", "theirs")
    make_further_scores(lake, "theirs", lambda shard, rows: np.where(rows == 3, np.nan, 1.0))
    with pytest.raises(ValueError, match=r"scores/tiny/theirs: a score is not a finite number"):
        store.load_further(lake, "tiny", "theirs")
    assert not lake.score_store.exists()
