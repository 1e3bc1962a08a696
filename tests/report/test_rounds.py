"""A page for every round: linked with its neighbours, kept as it is, made anew when what it shows has changed."""

import re
from pathlib import Path

import pytest

from bliss_ops import report
from bliss_ops.lake import Lake, Run
from bliss_ops.report import navigation
from tests.lakes import make_corpus, make_round, make_run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make_run(make_corpus(tmp_path, num_shards=4), num_rounds=3)


def page(run: Run, name: str) -> str:
    return (run.report / name).read_text(encoding="utf-8")


def links(html: str) -> list[str]:
    return re.findall(r'href="([^"]+)"', html)


def without_links(html: str) -> str:
    return re.sub(f"{navigation.BEGIN}.*{navigation.END}", "", html)


def test_each_round_has_a_page_linked_with_its_neighbours(run: Run) -> None:
    files, summary = report.write(run, 3, run.report)
    assert files == ["round-01.html", "round-02.html", "round-03.html", "index.html", "summary.json"]
    assert summary["round"] == 3
    assert page(run, "index.html") == page(run, "round-03.html")
    for number in (1, 2, 3):
        html = page(run, f"round-{number:02d}.html")
        assert f"round <b>{number}</b> of 3" in html
        assert html.count('rel="prev"') == (number > 1)
        assert html.count('rel="next"') == (number < 3)
        assert all((run.report / link).exists() for link in links(html))
    assert '<a rel="prev" href="round-01.html">' in page(run, "round-02.html")
    assert '<a rel="next" href="round-03.html">' in page(run, "round-02.html")


def test_a_finished_round_keeps_its_page_and_gets_a_link_to_the_next(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    report.write(run, 1, run.report)
    first = page(run, "round-01.html")
    assert links(first) == []
    made = []
    draw = report._page
    monkeypatch.setattr(report, "_page", lambda run, number, **more: (made.append(number), draw(run, number, **more))[1])
    report.write(run, 2, run.report)
    assert made == [2]
    assert without_links(page(run, "round-01.html")) == without_links(first)
    assert '<a rel="next" href="round-02.html">' in page(run, "round-01.html")


def test_a_page_whose_round_was_made_again_or_that_is_lost_is_made_again(run: Run) -> None:
    report.write(run, 2, run.report)
    assert "4.000" in page(run, "round-01.html")
    make_round(run, 1, lambda shard, rows: rows + 0.5 * shard, losses=(6.0, 4.5, 3.875))
    (run.report / "round-02.html").unlink()
    files, _ = report.write(run, 3, run.report)
    assert "3.875" in page(run, "round-01.html")
    assert all((run.report / file).exists() for file in files)


def test_what_cannot_be_counted_is_said(tmp_path: Path) -> None:
    lake: Lake = make_corpus(tmp_path)
    run = make_run(lake)
    report.write(run, 1, run.report)
    assert "Not counted: the corpus&#39;s validation set is not in the lake" in page(run, "index.html")
