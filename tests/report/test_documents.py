"""Documents in the report: domains, lengths, deciles with their texts, selected beside left out, all worked out by hand."""

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bliss_ops import report
from bliss_ops.lake import Lake, Run
from bliss_ops.report import documents
from bliss_ops.report.documents import DocumentFacts
from bliss_ops.report.facts import Facts
from tests.lakes import make_corpus, make_run
from tests.report.test_report import Page


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return make_corpus(tmp_path)


@pytest.fixture
def run(lake: Lake) -> Run:
    """The score is the row, and 1,000 more in shard 1, which is code: rows 18 to 29 of code are selected."""
    return make_run(lake, score=lambda shard, rows: rows + 1000.0 * shard)


@pytest.fixture
def facts(run: Run, tmp_path: Path) -> Iterator[DocumentFacts]:
    with Facts(run, 1, str(tmp_path)) as facts:
        yield DocumentFacts(facts)


def page(run: Run, round_number: int = 1) -> str:
    report.write(run, round_number, run.report)
    return Page((run.report / "index.html").read_text(encoding="utf-8")).text


def test_domains_are_ranked_by_their_token_weighted_score(facts: DocumentFacts) -> None:
    board = facts.leaderboard()
    assert (board.num_domains, board.num_ranked, board.enough_tokens) == (2, 2, 64)
    (best,), (worst,) = board.best, board.worst
    assert (best.name, best.score, best.num_documents, best.num_tokens, best.share_selected) == ("code.example", 1014.5, 20, 480, 0.4)
    assert (worst.name, worst.score, worst.share_selected) == ("prose.example", 14.5, 0.0)


def test_lengths_are_powers_of_two(facts: DocumentFacts) -> None:
    (band,) = facts.lengths()
    scores = [
        (16 * first + 8 * (first + 1)) / 24 + 1000 * shard + 1 / 3 * half * 4
        for shard in (0, 1)
        for first in range(0, 30, 3)
        for half in (0, 1)
    ]
    assert (band.name, band.num_members) == ("16\N{EN DASH}32", 40)
    assert [band.low, band.middle, band.high] == pytest.approx(np.quantile(scores, [0.1, 0.5, 0.9]).tolist())
    assert band.mean == pytest.approx(514.5)


def test_lengths_carry_their_unit_once() -> None:
    found = [documents._range(1 << power, 2 << power) for power in (0, 8, 9, 10, 17, 19, 20)]
    assert [name.replace("\N{EN DASH}", "-") for name in found] == ["1-2", "256-512", "512-1k", "1-2k", "128-256k", "512k-1M", "1-2M"]


def test_deciles_hold_a_tenth_each_and_examples_of_their_own(facts: DocumentFacts) -> None:
    deciles = facts.deciles()
    assert [decile.number for decile in deciles] == list(range(1, 11))
    assert [decile.num_sequences for decile in deciles] == [6] * 10
    assert [decile.num_selected for decile in deciles] == [6, 6] + [0] * 8
    assert (deciles[0].lowest, deciles[0].highest, deciles[0].mean) == (1024, 1029, 1026.5)
    assert (deciles[9].lowest, deciles[9].highest) == (0, 5)
    for decile in deciles:
        assert len(decile.examples) == 3
        assert all(decile.lowest <= example.score <= decile.highest for example in decile.examples)
        for example in decile.examples:  # sequence 3k and half of 3k+1 are document 2k, the rest is document 2k+1
            row = int(example.score) % 1000
            document = row // 3 * 2 + (row % 3 == 2)
            assert example.document_id % 10_000_000 in ((document, document + 1) if row % 3 == 1 else (document,))
            assert example.source == ("code" if example.score >= 1000 else "prose")
            assert f"document {example.document_id % 10_000_000}." in example.excerpt or "<script>" in example.excerpt


def test_equal_scores_share_one_decile(lake: Lake, tmp_path: Path) -> None:
    run = make_run(lake, score=lambda shard, rows: np.full(len(rows), 0.5))
    with Facts(run, 1, str(tmp_path)) as facts:
        (only,) = DocumentFacts(facts).deciles()
    assert (only.num_sequences, only.num_selected) == (60, 12)


def test_samples_are_of_either_side_and_the_same_every_time(facts: DocumentFacts) -> None:
    chosen, rest = facts.sides()
    assert len(chosen) == len(rest) == 5
    assert all(document.score >= 1018 for document in chosen)
    assert all(document.score < 1018 for document in rest)
    assert facts.sides() == (chosen, rest)


def test_the_page_shows_them(run: Run) -> None:
    text = page(run)
    assert re.search(r"Highest score documents tokens kept code.example \+1014.50 20 480 40% ", text)
    assert re.search(r"1 1029 to 1024 . 6 sequences, all selected", text)
    assert re.search(r"10 5 to 0 . 6 sequences, none selected", text)
    assert "Selected and left out, side by side" in text
    assert "16\N{EN DASH}32" in text


def test_a_corpus_of_one_domain_has_no_leaderboard(tmp_path: Path) -> None:
    run = make_run(make_corpus(tmp_path, num_shards=1))
    assert "There are not two domains with 64 tokens" in page(run)
