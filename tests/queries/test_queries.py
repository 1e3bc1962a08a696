"""Every named query on a lake small enough to work the answer out by hand.

Two shards of 30 sequences and 20 documents; of every two documents the first fills sequence 3k and half of 3k+1, the other the
rest. Shard 0 is `prose`, shard 1 `code`; documents are of January, February and March in turn.
"""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from bliss_ops import queries, store
from bliss_ops.lake import Lake
from bliss_ops.sql import ask, run_named
from tests.evaluation.answers import rows_of
from tests.lakes import make_corpus, make_further_scores, make_run

SHARD = 10_000_000
UP, DOWN, OUTSIDE = "demo-bliss-s0/round-01", "demo-random-s0/round-01", "scores/tiny/outside"


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """bliss: the row number, code 1,000 higher, so it keeps rows 18 to 29 of code. random: the rows the other way round."""
    lake = make_corpus(tmp_path_factory.mktemp("lake"))
    first, second = [-1.0, -2.0], [-2.0, -1.0]  # which of two choices is likelier; the first is the right one
    worse = rows_of("piqa", [first, second, second, first], [0] * 4, step=20)
    better = rows_of("piqa", [first, first, second, [-9.0, -1.5]], [0] * 4, step=20)
    make_run(lake, "random", score=lambda shard, rows: 29.0 - rows + 0 * shard, losses=(6.0, 4.5, 4.2), answers=worse)
    make_run(lake, score=lambda shard, rows: rows + 1000.0 * shard, losses=(6.0, 4.5, 4.0), answers=better)
    make_further_scores(lake, "outside", lambda shard, rows: np.where(rows == 5, 100.0, rows.astype(float)), shards=[0])
    store.sync_lake(lake)
    return lake


def rows(lake: Lake, name: str, **parameters: Any) -> list[dict[str, Any]]:
    return ask(lake, name, **parameters).to_pylist()


def test_every_query_is_a_question_with_an_order(lake: Lake) -> None:
    assert len(queries.names()) >= 15
    for name in queries.names():
        query = queries.load(name)
        assert query.question.endswith("?"), name
        assert re.search(r"^order by ", query.sql, re.MULTILINE), f"{name} says in which order its rows come"
        assert all(f"${one.name}" in query.sql for one in query.parameters), name
        needed = {one.name: {"domain": "code.example", "tokens": 160}[one.name] for one in query.parameters if one.default is None}
        assert ask(lake, name, **needed).num_columns > 1, name


def test_score_runs(lake: Lake) -> None:
    found = {row["score_run_id"]: row for row in rows(lake, "score-runs")}
    assert set(found) == {UP, DOWN, OUTSIDE}
    assert (found[UP]["kind"], found[UP]["num_sequences"], found[UP]["num_selected"], found[UP]["threshold"]) == ("round", 60, 12, 1018.0)
    assert (found[UP]["mean"], found[UP]["minimum"], found[UP]["maximum"]) == (514.5, 0, 1029)
    assert (found[OUTSIDE]["kind"], found[OUTSIDE]["method"], found[OUTSIDE]["num_selected"]) == ("imported", "outside", None)


def test_domains(lake: Lake) -> None:
    code, prose = rows(lake, "domains", min_tokens=0)
    assert (code["domain"], code["score"], prose["domain"], prose["score"]) == ("code.example", 1014.5, "prose.example", 14.5)
    assert (code["num_documents"], code["num_tokens"], code["num_selected_tokens"], code["share_selected"]) == (20, 480, 192, 0.4)
    assert rows(lake, "domains", min_tokens=481) == []
    assert len(rows(lake, "domains", min_tokens=480, limit=1)) == 1


def test_best_documents(lake: Lake) -> None:
    best = rows(lake, "best-documents", domain="code.example", limit=2)
    assert [row["document_id"] for row in best] == [SHARD + 19, SHARD + 18]
    assert [row["score"] for row in best] == pytest.approx([(8 * 1028 + 16 * 1029) / 24, (16 * 1027 + 8 * 1028) / 24])
    assert best[0]["num_tokens"] == 24
    assert best[0]["url"] == "https://code.example/19"
    assert rows(lake, "best-documents", domain="code.example", min_tokens=25) == []


def test_disagreements(lake: Lake) -> None:
    spread = {UP: np.std([row + 1000 * shard for shard in (0, 1) for row in range(30)]), DOWN: np.std(range(30))}
    first, second = rows(lake, "disagreements", limit=2)  # newest (bliss) and previous (random): the first row of prose, the last of code
    assert (first["sequence_id"], first["score_a"], first["score_b"]) == (0, 0, 29)
    assert (second["sequence_id"], second["score_a"], second["score_b"]) == (SHARD + 29, 1029, 0)
    assert second["difference"] == pytest.approx(514.5 / spread[UP] + 14.5 / spread[DOWN])
    assert (second["source"], second["url"]) == ("code", "https://code.example/19")
    swapped = rows(lake, "disagreements", a=DOWN, b=UP, limit=1)[0]
    assert (swapped["score_a"], swapped["difference"]) == (29, pytest.approx(-first["difference"]))
    assert len(rows(lake, "disagreements", limit=1000)) == 60
    assert 5 < len(rows(lake, "disagreements", limit=1000, sample=15)) < 30


def test_disagreeing_sources(lake: Lake) -> None:
    spread = np.std([row + 1000 * shard for shard in (0, 1) for row in range(30)])
    found = {row["source"]: row for row in rows(lake, "disagreeing-sources")}
    assert found["code"]["difference"] == pytest.approx(500 / spread)
    assert (found["code"]["share_selected_a"], found["code"]["share_selected_b"]) == (0.4, pytest.approx(0.2))


def test_threshold(lake: Lake) -> None:
    around = rows(lake, "threshold", limit=2)
    expected = [(SHARD + 19, 1019, True, 1), (SHARD + 18, 1018, True, 0), (SHARD + 17, 1017, False, -1), (SHARD + 16, 1016, False, -2)]
    assert [(row["sequence_id"], row["score"], row["is_selected"], row["margin"]) for row in around] == expected
    assert {row["threshold"] for row in around} == {1018.0}
    tied = rows(lake, "threshold", score_run=DOWN, limit=3)  # both shards have the same scores: 12 kept, six values twice
    assert [(row["sequence_id"], row["score"], row["is_selected"]) for row in tied[:3]] == [
        (SHARD + 4, 25, True),
        (5, 24, True),
        (SHARD + 5, 24, True),
    ]
    assert [(row["num_ties_at_threshold"], row["num_ties_kept"]) for row in tied[:1]] == [(2, 2)]


def test_lengths(lake: Lake) -> None:
    (only,) = rows(lake, "lengths")
    assert (only["lowest_tokens"], only["highest_tokens"], only["num_documents"]) == (16, 31, 40)
    assert only["mean"] == pytest.approx(514.5)


def test_task_results(lake: Lake) -> None:
    up, down = rows(lake, "task-results", task="piqa")
    assert (up["run"], up["value"], up["step"], up["num_tokens"], up["num_examples"]) == ("demo-bliss-s0", 0.5, 20, 1280, 4)
    assert (down["run"], down["value"], down["standard_error"]) == ("demo-random-s0", 0.5, pytest.approx((1 / 12) ** 0.5))
    bits = rows(lake, "task-results", metric="bits_per_byte", task="average")
    assert {row["run"]: row["value"] for row in bits} == pytest.approx(
        {"demo-bliss-s0": (1 + 1 + 2 + 9) / 16 / np.log(2), "demo-random-s0": (1 + 2 + 2 + 1) / 16 / np.log(2)}
    )
    assert len(rows(lake, "task-results")) == 4


def test_question_changes(lake: Lake) -> None:
    changed = rows(lake, "question-changes")
    assert [(row["question"], row["is_right_a"], row["is_right_b"], row["difference"]) for row in changed] == [
        (3, False, True, -8.0),
        (1, True, False, 1.0),
    ]
    assert rows(lake, "question-changes", a=DOWN, b=DOWN) == []
    assert rows(lake, "question-changes", task="sciq") == []
    assert len(rows(lake, "question-changes", limit=1)) == 1


def test_overlap(lake: Lake) -> None:
    """bliss keeps rows 18 to 29 of code, random rows 0 to 5 of both shards: nothing in common."""
    (row,) = rows(lake, "overlap")
    assert (row["a"], row["b"], row["num_a"], row["num_b"], row["num_both"], row["jaccard"]) == (UP, DOWN, 12, 12, 0, 0)
    assert row["share_of_b_if_random"] == 0.2
    (swapped,) = rows(lake, "overlap", a=DOWN, b=UP)
    assert (swapped["a"], swapped["b"]) == (DOWN, UP)


def test_overlap_sources(lake: Lake) -> None:
    found = {row["source"]: row for row in rows(lake, "overlap-sources")}
    assert (found["code"]["share_a"], found["code"]["share_b"], found["code"]["difference"]) == (1.0, 0.5, 0.5)
    assert (found["prose"]["num_selected_tokens_a"], found["prose"]["num_selected_tokens_b"]) == (0, 96)


def test_drift(lake: Lake) -> None:
    """Documents by row modulo 3; a document's score is its row times 1.5 plus a third, plus a third more for odd ones."""
    score = {}
    for row in range(20):
        first = row // 2 * 3  # of the three sequences that the pair of documents fills
        score[row] = (16 * first + 8 * (first + 1)) / 24 if row % 2 == 0 else (8 * (first + 1) + 16 * (first + 2)) / 24
    selected = {row: 24 if row >= 12 else 0 for row in range(20)}  # of code: rows 18 to 29 are documents 12 to 19
    found = rows(lake, "drift")
    assert [row["month"] for row in found] == ["2024-01", "2024-02", "2024-03"]
    for number, row in enumerate(found):
        mine = [one for one in range(20) if one % 3 == number]
        assert row["score"] == pytest.approx(np.mean([score[one] + 1000 * shard for one in mine for shard in (0, 1)]))
        assert (row["num_documents"], row["share_of_tokens"]) == (2 * len(mine), pytest.approx(len(mine) / 20))
        assert row["share_selected"] == pytest.approx(sum(selected[one] for one in mine) / (48 * len(mine)))
    sampled = rows(lake, "drift", sample=20)
    assert [row["month"] for row in sampled] == ["2024-01", "2024-02", "2024-03"]
    assert [row["score"] for row in sampled] != [row["score"] for row in found]
    assert found[0]["change"] is None
    assert found[1]["change"] == pytest.approx(found[1]["score"] - found[0]["score"])


def test_near_constant_sources(lake: Lake, tmp_path: Path) -> None:
    """Rows 0 to 29 in pieces: one of rows 3k and 3k+2, two of 3k+1. Its spread against that of everything."""
    pieces = [row for row in range(30) for _ in range(2 if row % 3 == 1 else 1)]
    share = np.std(pieces) / np.std([row + 1000 * shard for shard in (0, 1) for row in range(30)])
    found = rows(lake, "near-constant-sources")
    assert {(row["source"], row["num_pieces"]) for row in found} == {("prose", 40), ("code", 40)}
    assert [row["share_of_spread"] for row in found] == pytest.approx([share] * 2)
    assert rows(lake, "near-constant-sources", most_spread=share / 2) == []
    assert rows(lake, "near-constant-sources", score_run=DOWN) == []


def test_agreement(lake: Lake) -> None:
    found = {(row["a"], row["b"]): row for row in rows(lake, "agreement")}
    assert set(found) == {(UP, DOWN), (UP, OUTSIDE), (DOWN, OUTSIDE)}
    assert found[UP, OUTSIDE]["num_sequences"] == 30
    mine, theirs = list(range(30)), [29 if row == 5 else row - (row > 5) for row in range(30)]
    assert found[UP, OUTSIDE]["spearman"] == pytest.approx(np.corrcoef(mine, theirs)[0, 1])
    assert found[DOWN, OUTSIDE]["spearman"] == pytest.approx(-found[UP, OUTSIDE]["spearman"])
    sampled = rows(lake, "agreement", sample=15)
    assert 1 < sampled[0]["num_sequences"] < 30


def test_evaluations(lake: Lake) -> None:
    best, random = rows(lake, "evaluations")
    assert (best["method"], best["value"], best["difference_from_random"]) == ("bliss", 4.0, pytest.approx(-0.2))
    assert (random["method"], random["value"], random["difference_from_random"]) == ("random", 4.2, 0.0)
    assert rows(lake, "evaluations", metric="perplexity")[0]["value"] == pytest.approx(np.exp(4.0))


def test_incomplete(lake: Lake) -> None:
    (only,) = rows(lake, "incomplete")
    assert (only["score_run_id"], only["num_shards_scored"], only["num_shards_known"]) == (OUTSIDE, 1, 2)
    assert only["lacks"] == "scores of other shards"


def test_a_round_that_is_not_evaluated_is_incomplete(tmp_path: Path) -> None:
    lake = make_corpus(tmp_path)
    store.sync(make_run(lake, finished=False))
    assert [row["lacks"] for row in rows(lake, "incomplete")] == ["evaluation"]


@pytest.mark.parametrize("num_sequences", [1, 12, 30, 31, 59, 60])
def test_budget(lake: Lake, num_sequences: int) -> None:
    (row,) = rows(lake, "budget", tokens=16 * num_sequences + 15)
    everything = sorted((row + 1000.0 * shard for shard in (0, 1) for row in range(30)), reverse=True)
    assert (row["num_sequences"], row["threshold"], row["share"]) == (num_sequences, everything[num_sequences - 1], num_sequences / 60)


@pytest.mark.parametrize("keep", [1, 2, 17, 300, 1199, 1200])
def test_budget_is_exact_where_scores_crowd(tmp_path: Path, keep: int) -> None:
    """Heavy tails and ties: most of the 1,200 scores share a few bins of the histogram."""
    lake = make_corpus(tmp_path, num_sequences=600)
    generator = np.random.default_rng(1)
    scores = {shard: np.round(generator.standard_cauchy(600), 1).astype(np.float32) for shard in (0, 1)}
    store.sync(make_run(lake, score=lambda shard, rows: scores[shard][rows]))
    (row,) = rows(lake, "budget", tokens=16 * keep)
    assert row["threshold"] == np.sort(np.concatenate(list(scores.values())))[-keep]


def test_imported_and_own_scores_join_in_sql(lake: Lake) -> None:
    from bliss_ops.sql import open_snapshot

    statement = """select corr(x.score, y.score), count(*) from all_scores x join all_scores y using (sequence_id)
                   where x.score_run_id = $a and y.score_run_id = $b and x.sequence_id <> 5"""
    with open_snapshot(lake) as con:
        assert con.execute(statement, {"a": UP, "b": OUTSIDE}).fetchone() == (pytest.approx(1.0), 29)


# ---- how they are called ---------------------------------------------------------------------------------------------


def test_unknown_names_and_parameters_are_refused_with_the_choices(lake: Lake) -> None:
    with pytest.raises(ValueError, match="there is no query 'domain': use one of agreement, best-documents, budget"):
        ask(lake, "domain")
    with pytest.raises(ValueError, match=r"'domains' has no parameter 'top'; it has:\n  score_run .*\n  min_tokens .*\n  limit"):
        ask(lake, "domains", top=3)
    with pytest.raises(ValueError, match="--param limit=ten: that is no integer"):
        ask(lake, "domains", limit="ten")
    with pytest.raises(ValueError, match=r"'budget' needs --param tokens=\.\.\."):
        ask(lake, "budget")
    with pytest.raises(ValueError, match=f"the store has no such score run; it has {UP}, {DOWN}, {OUTSIDE}"):
        ask(lake, "domains", score_run="demo-bliss-s1/round-01")
    assert rows(lake, "best-documents", domain="' or 1=1 --") == [], "values are bound, not pasted"


def test_without_another_score_run_there_is_no_previous_one(tmp_path: Path) -> None:
    lake = make_corpus(tmp_path)
    store.sync(make_run(lake))
    with pytest.raises(ValueError, match=f"there is no other score run of the sequences of '{UP}'"):
        ask(lake, "overlap")


def test_formats_are_those_of_any_statement(lake: Lake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_named(lake, "domains", {"min_tokens": "0"}, "csv", str(tmp_path / "out.csv"))
    lines = (tmp_path / "out.csv").read_text().splitlines()
    assert lines[0].startswith("domain,score,")
    assert lines[1].startswith("code.example,1014.5,20,480,192,0.4")
    run_named(lake, "domains", {"min_tokens": "0"}, "parquet", str(tmp_path / "out.parquet"))
    assert duckdb.read_parquet(str(tmp_path / "out.parquet")).fetchall()[1][0] == "prose.example"
    run_named(lake, "domains", {"min_tokens": "0"})
    assert "code.example" in capsys.readouterr().out


def bliss(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "bliss_ops.cli", *arguments], capture_output=True, text=True, check=False)


def test_the_command_line_lists_and_asks(lake: Lake) -> None:
    listed = bliss("sql", "--list").stdout
    assert "domains\n  Which domains are most helpful?\n  score_run (score run, default newest)" in listed
    asked = bliss("sql", "--lake", str(lake.root), "--query", "domains", "--param", "min_tokens=0", "--format", "json")
    assert '"domain": "code.example", "score": 1014.5' in asked.stdout
    refused = bliss("sql", "--lake", str(lake.root), "--query", "domains", "--param", "limit")
    assert (refused.returncode, refused.stderr) == (1, "bliss sql: --param 'limit': write NAME=VALUE, for example limit=5\n")
    assert bliss("sql", "--lake", str(lake.root), "select 1", "--query", "domains").returncode == 2
