"""Between rounds and between runs: what stayed, entered and left, and how much of their selections runs share."""

import re
from pathlib import Path

import duckdb
import numpy as np
import pytest

from bliss_ops import report
from bliss_ops.lake import Lake, Run
from bliss_ops.manifest import read_manifest
from bliss_ops.report import changes
from bliss_ops.report.facts import Facts
from tests.lakes import make_corpus, make_round, make_run, produce
from tests.report.test_report import Page


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return make_corpus(tmp_path)


def two_rounds(lake: Lake) -> Run:
    """Round 1 keeps rows 18 to 29 of code; round 2 rows 24 to 29 of both."""
    run = make_run(lake, num_rounds=2, score=lambda shard, rows: rows + 1000.0 * shard)
    make_round(run, 2, lambda shard, rows: rows + 0.5 * shard)
    return run


def page(run: Run, round_number: int = 1) -> str:
    report.write(run, round_number, run.report)
    return Page((run.report / "index.html").read_text(encoding="utf-8")).text


def test_what_stayed_entered_and_left_is_counted_by_source(lake: Lake, tmp_path: Path) -> None:
    run = two_rounds(lake)
    with Facts(run, 2, str(tmp_path)) as facts:
        changed = changes.since_the_round_before(run, 2, facts, facts.sources())
    found = {one.source: (one.num_stayed, one.num_entered, one.num_left) for one in changed.exchanged}
    assert found == {"code": (6, 0, 6), "prose": (0, 6, 0)}
    kept = {one.source: (one.before, one.now) for one in changed.kept}
    assert kept == {"code": (0.4, 0.2), "prose": (0.0, 0.2)}
    text = page(run, 2)
    html = (run.report / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'<rect class="(\w+)"[^>]*><title>(\w+): (\d+) sequences', html) == [
        ("stayed", "code", "6"),
        ("left", "code", "6"),
        ("entered", "prose", "6"),
    ]
    assert re.search(r"code 40.0% 20.0% \N{MINUS SIGN}20.0 points", text)
    assert re.search(r"prose 0.0% 20.0% \+20.0 points", text)


def test_the_first_round_has_none_before_it(lake: Lake) -> None:
    assert "Since the round before" not in page(two_rounds(lake), 1)


def test_rounds_with_other_candidates_compare_by_source_alone(lake: Lake) -> None:
    run = two_rounds(lake)
    here = run.round(1)
    made = read_manifest(here / "selection", made_by="select").metrics
    for name in ("scores", "selection"):  # as if round 1 had been offered shard 1 alone
        produce(lake, here / name, name, lambda directory: (["shard-00001.parquet"], made), shards=[1])
    after = run.round(2)
    counts = {"num_candidates": 30, "num_selected": 6, "threshold": 24.0, "num_ties_at_threshold": 1, "num_ties_kept": 1, "num_tokens": 96}
    produce(lake, after / "scores", "score", lambda directory: (["shard-00000.parquet"], {}), shards=[0])
    produce(lake, after / "selection", "select", lambda directory: (["shard-00000.parquet"], counts), shards=[0])
    text = page(run, 2)
    assert "chose among different candidates" in text
    assert re.search(r"prose \N{EN DASH} 20.0% \N{EN DASH}", text)
    assert re.search(r"code 40.0% \N{EN DASH} \N{EN DASH}", text)


def test_a_round_before_that_is_gone_is_said(lake: Lake) -> None:
    run = two_rounds(lake)
    (run.round(1) / "selection" / "manifest.json").unlink()
    assert "Nothing to compare with: round 1 has no finished selection." in page(run, 2)


def test_overlap_is_the_share_of_the_row(lake: Lake) -> None:
    a = make_run(lake, score=lambda shard, rows: rows + 1000.0 * shard)
    b = make_run(lake, "random", score=lambda shard, rows: rows + 0.5 * shard)
    c = make_run(lake, "dsir", score=lambda shard, rows: np.where(shard == 0, rows, -1.0 * rows))
    found, shares = changes.overlap(duckdb.connect(), [a, b, c, lake.run("not-there")], 1)
    assert found == [a, b, c]
    assert shares == [[1, 0.5, 0], [0.5, 1, 0.5], [0, 0.5, 1]]


def test_the_page_has_the_matrix_of_the_runs_compared_with(lake: Lake) -> None:
    make_run(lake, "random", score=lambda shard, rows: rows + 0.5 * shard)
    run = make_run(lake, compare_with=("demo-random-s0",), score=lambda shard, rows: rows + 1000.0 * shard)
    assert "What the selections share" in page(run)
    html = (run.report / "index.html").read_text(encoding="utf-8")
    assert re.findall(r'<rect class="cell"[^>]*><title>([^<]+)<', html) == ["1 demo-bliss-s0, 2: 50%", "2 demo-random-s0, 1: 50%"]
    assert "What the selections share" not in page(make_run(lake, "dsir"))
