"""The report: what it shows, what it says when something is missing, and that text from the corpus stays text."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bliss_ops import pipeline, report, schemas
from bliss_ops.lake import Lake, Run, write_parquet
from tests.lakes import make_corpus, make_run


def written(run: Run, round_number: int = 1) -> tuple[str, dict[str, Any]]:
    """The page and the summary, after the files have been written."""
    files, summary = report.write(run, round_number, run.report)
    assert files == [*(f"round-{number:02d}.html" for number in range(1, round_number + 1)), "index.html", "summary.json"]
    assert json.loads((run.report / "summary.json").read_text()) == summary
    return (run.report / "index.html").read_text(encoding="utf-8"), summary


class Page(HTMLParser):
    """Counts elements, collects the visible text, and remembers elements left open."""

    VOID = frozenset({"meta", "br", "line", "path", "rect", "circle"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.counts: dict[str, int] = {}
        self.text = ""
        self.attributes: list[tuple[str, str]] = []
        self.feed(html)
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.text += " "
        self.counts[tag] = self.counts.get(tag, 0) + 1
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.text += data


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return make_corpus(tmp_path)


def test_the_headline_compares_the_run_with_random(lake: Lake) -> None:
    run = make_run(lake, compare_with=("demo-random-s0",), losses=(6.0, 4.5, 4.0))
    make_run(lake, "random", losses=(6.0, 4.9, 4.25))
    html, summary = written(run)
    expected = {
        "validation_loss": 4.0,
        "compared_with": "demo-random-s0",
        "compared_validation_loss": 4.25,
        "difference": -0.25,
        "equal_steps": 20,
        "difference_at_equal_steps": -0.25,
        "num_candidates": 60,
        "num_selected": 12,
        "num_tokens": 192,
        "warning": "",
    }
    assert {name: summary[name] for name in expected} == expected
    page = Page(html)
    assert "The best 20% of 60 sequences" in page.text
    assert "0.250 below" in page.text
    assert "difference +0.000 \N{MINUS SIGN}0.400 \N{MINUS SIGN}0.250" in page.text
    assert "Not a fair comparison" not in page.text


def test_the_page_is_complete_and_needs_nothing_else(lake: Lake) -> None:
    run = make_run(lake, compare_with=("demo-random-s0",))
    make_run(lake, "random")
    page = Page(written(run)[0])
    assert page.open == []
    assert page.counts["svg"] == 1 + 1 + 2 + 4 + 2, "race, histogram, a strip per source, four training curves, lengths, overlap"
    assert "script" not in page.counts
    loading = {name for name, value in page.attributes if name in ("src", "href", "srcset", "action", "onload", "onerror")}
    assert loading == set()
    for expected in ("prose", "code", "bilevel.num_steps", "corpora/tiny/documents", "compare_with"):
        assert expected in page.text


def test_text_of_the_corpus_is_shown_as_text(lake: Lake) -> None:
    run = make_run(lake, score=lambda shard, rows: np.where((shard == 1) & (rows < 2), 9.0, -rows / 10.0))
    html, _ = written(run)
    assert "<script" not in html
    assert "&lt;script&gt;alert(&#39;a document is text &amp; nothing else&#39;)&lt;/script&gt;" in html


def test_best_and_worst_documents_are_in_order_of_their_token_weighted_score(lake: Lake) -> None:
    run = make_run(lake, score=lambda shard, rows: rows + 1000.0 * shard)
    text = Page(written(run)[0]).text
    best, worst = text.split("Lowest scores")
    assert re.findall(r"(\w+) document (\d+)\.", best.split("Highest scores")[1])[:3] == [("code", "19"), ("code", "18"), ("code", "17")]
    assert re.findall(r"(\w+) document (\d+)\.", worst)[:3] == [("prose", "0"), ("prose", "1"), ("prose", "2")]
    assert "+1028.67 code" in best, "16 tokens at 1029 and 8 at 1028"


def test_the_subset_is_broken_down_by_source(lake: Lake) -> None:
    run = make_run(lake, score=lambda shard, rows: rows + 1000.0 * shard)
    text = Page(written(run)[0]).text
    assert re.search(r"code 30 .*?40% 50\.0% 100\.0%", text)
    assert re.search(r"prose 30 .*?0% 50\.0% 0\.0%", text)


@pytest.mark.parametrize(
    ("score", "message"),
    [
        (lambda shard, rows: np.full(len(rows), 0.5), "All scores are equal"),
        (lambda shard, rows: 0.5 + 1e-5 * rows, "nearly constant: nine in ten"),
        (lambda shard, rows: (rows % 4).astype(float), "Only 4 distinct scores for 60 sequences"),
    ],
)
def test_scores_that_rank_nothing_are_warned_of(lake: Lake, score: Any, message: str) -> None:
    html, summary = written(make_run(lake, score=score))
    assert message in summary["warning"]
    assert message in Page(html).text


def test_sound_scores_are_not_warned_of(lake: Lake) -> None:
    for scale, shift in ((1.0, 0.0), (0.02, 5.0), (1000.0, -1e5)):
        run = make_run(lake, score=lambda shard, rows, s=scale, d=shift: d + s * np.random.default_rng(shard).normal(size=len(rows)))
        assert written(run)[1]["warning"] == ""


def test_ties_at_the_threshold_are_reported(lake: Lake) -> None:
    run = make_run(lake, score=lambda shard, rows: np.where(rows < 10, 1.0, -rows.astype(float)))
    html, summary = written(run)
    assert summary["share_of_ties_kept"] == 12 / 20
    assert summary["share_tied"] == 1.0
    assert "20 sequences are tied; 12 of them" in Page(html).text


def test_a_random_run_says_what_does_not_apply(lake: Lake) -> None:
    text = Page(written(make_run(lake, "random"))[0]).text
    assert "A uniformly random 20% of 60 sequences" in text
    assert "The method random has no outer training loop" in text
    assert "Random scores say nothing about the text" in text
    assert "nothing to draw beside this one" in text


def test_comparisons_that_are_not_there_are_named(lake: Lake) -> None:
    run = make_run(lake, compare_with=("demo-random-s0", "no-such-run"))
    make_run(lake, "random", finished=False)
    html, summary = written(run)
    assert summary["difference"] is None
    assert "demo-random-s0 is not finished yet." in Page(html).text
    assert "no-such-run is not configured in this lake." in Page(html).text


def test_a_run_that_is_not_evaluated_yet_can_be_reported(lake: Lake) -> None:
    html, summary = written(make_run(lake, finished=False))
    assert summary["validation_loss"] is None
    assert "has not been evaluated yet" in Page(html).text


def test_a_comparison_of_other_settings_is_called_unfair(lake: Lake) -> None:
    run = make_run(lake, compare_with=("demo-random-s1",))
    make_run(lake, "random", seed=1)
    assert "demo-random-s1 differs in seed, not only in its method" in Page(written(run)[0]).text


def test_every_validation_set_is_compared_for_itself(lake: Lake) -> None:
    run, other = make_run(lake, compare_with=("demo-random-s0",)), make_run(lake, "random")
    assert "for itself" not in Page(written(run)[0]).text, "a set alone has nothing to be told from"
    for each, books in ((run, 3.5), (other, 3.75)):
        path = each.round(1) / "evaluation" / "results.parquet"
        rows = pq.read_table(path.path).to_pylist()
        rows.append({"task": "validation:books", "metric": "loss", "value": books, "standard_error": 0.01, "num_examples": 8})
        write_parquet(path, pa.Table.from_pylist(rows, schema=schemas.EVALUATION))
    html, summary = written(run)
    assert summary["validation_losses"] == {"books": 3.5}
    assert re.search(r"for itself .* books 3\.500 3\.750 .0\.250", Page(html).text)


def test_several_rounds_get_a_table(lake: Lake) -> None:
    run = make_run(lake, num_rounds=2, compare_with=("demo-random-s0",))
    make_run(lake, "random", num_rounds=2, losses=(6.0, 4.8, 4.5))
    html, summary = written(run, 2)
    assert summary["round"] == 2
    assert re.search(r"Round by round .* 1 4\.000 54\.6 4\.500 .0\.500 2 4\.000", Page(html).text)


def test_without_scores_the_missing_command_is_named(lake: Lake) -> None:
    run = make_run(lake)
    (run.round(1) / "scores" / "manifest.json").unlink()
    with pytest.raises(ValueError, match="bliss score demo-bliss-s0 --round 1"):
        report.write(run, 1, run.report)


def test_the_report_stage_runs_again_only_when_something_changed(lake: Lake) -> None:
    run = make_run(lake, compare_with=("demo-random-s0",))
    first = pipeline.report(run, 1)
    assert first is not None
    assert pipeline.report(run, 1) == first
    make_run(lake, "random")
    again = pipeline.report(run, 1)
    assert again is not None
    assert again.metrics["compared_validation_loss"] == 4.0


def test_a_lake_on_an_object_store_can_be_reported(tmp_path: Path) -> None:
    run = make_run(make_corpus(f"memory://{tmp_path.name}"))
    assert "demo-bliss-s0" in written(run)[0]
