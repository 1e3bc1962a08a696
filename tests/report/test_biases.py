"""What the report says of scores that sort by length, by source, or hardly at all."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from bliss_ops import report, schemas
from bliss_ops.lake import Lake, Run, shard_file, write_parquet
from bliss_ops.sharding import ROWS_PER_SHARD
from tests.lakes import T, make_corpus, make_run, produce


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return make_corpus(tmp_path)


def summary_of(run: Run) -> dict[str, Any]:
    return report.write(run, 1, run.report)[1]


def noise(shard: int, rows: np.ndarray) -> np.ndarray:
    return np.random.default_rng(shard).normal(size=len(rows))


def test_spread_within_sources_by_hand(lake: Lake) -> None:
    # +-1 around 0 in one source and around 2 in the other: variance 1 within, 1 between
    summary = summary_of(make_run(lake, score=lambda shard, rows: 2.0 * shard + np.where(rows % 2, 1.0, -1.0)))
    assert summary["variance_by_source"] == pytest.approx(0.5)
    assert summary["within_source_spread"] == pytest.approx(0.5**0.5)
    assert summary["length_correlation"] == 0, "all documents are of one length"
    assert [line.split(".")[0] for line in summary["cautions"]] == ["Ties decide"]


def test_sound_scores_have_no_cautions(lake: Lake) -> None:
    assert summary_of(make_run(lake, score=noise))["cautions"] == []


def test_a_score_that_only_tells_sources_apart_is_called_so(lake: Lake) -> None:
    run = make_run(lake, score=lambda shard, rows: 100.0 * shard + noise(shard, rows))
    (caution,) = summary_of(run)["cautions"]
    assert caution.startswith("The score tells sources apart, and little else.")
    assert "bilevel.num_steps" in caution
    assert "The score tells sources apart, and little else." in (run.report / "index.html").read_text()


@pytest.mark.parametrize(("sign", "kind"), [(1, "long"), (-1, "short")])
def test_a_score_that_follows_length_is_called_so(lake: Lake, sign: int, kind: str) -> None:
    """Spans rewritten so that document k of a shard fills one, two or three sequences."""
    corpus = lake.corpus("tiny")
    document_R = np.repeat(np.arange(15), np.tile([1, 2, 3], 5))[:30]  # of each row; 1 + 2 + 3 rows, five times

    def sequences(directory: Any) -> tuple[list[str], dict[str, Any]]:
        for shard in (0, 1):
            first = shard * ROWS_PER_SHARD
            columns = {"sequence_id": first + np.arange(30), "document_id": first + document_R, "num_tokens": np.full(30, T)}
            write_parquet(shard_file(directory / "spans", shard), pa.table(columns, schema=schemas.SPANS))
        return [f"{folder}shard-{shard:05d}.parquet" for shard in (0, 1) for folder in ("", "spans/")], {"num_sequences": 60}

    produce(lake, corpus.sequences, "pack", sequences, shards=(0, 1))
    length_R = np.bincount(document_R)[document_R]
    summary = summary_of(make_run(lake, score=lambda shard, rows: sign * length_R + 0.1 * noise(shard, rows)))
    assert sign * summary["length_correlation"] > 0.9
    (caution,) = summary["cautions"]
    assert f"mostly {kind} documents are kept" in caution


def fidelity_of(run: Run, sign: float) -> None:
    """40 probes whose influence is the score, or its opposite."""
    import pyarrow.parquet as pq

    with shard_file(run.round(1) / "scores", 0).open("rb") as file:
        table = pq.read_table(file)
    score = table["score"].to_numpy()

    def make(directory: Any) -> tuple[list[str], dict[str, Any]]:
        columns = {"sequence_id": table["sequence_id"], "influence": sign * score.astype(float), "score": score}
        write_parquet(directory / "influences.parquet", pa.table(columns, schema=schemas.INFLUENCES))
        metrics = {"spearman": sign, "spearman_standard_error": 0.01, "num_probes": 30, "num_seen": 3, "momentum_influence": 0.0}
        return ["influences.parquet"], metrics | {"measured": True, "model": "warmed-up proxy", "shape": "tiny-neox-64"}

    produce(run.lake, run.round(1) / "fidelity", "fidelity", make)


def test_inverted_scores_are_called_inverted(lake: Lake) -> None:
    run = make_run(lake, score=noise)
    fidelity_of(run, -1.0)
    report_summary = summary_of(run)
    (caution,) = report_summary["cautions"]
    assert caution.startswith("The scores are inverted.")
    assert "bilevel.score_learning_rate" in caution
    assert report_summary["fidelity"]["by_source"] == {"prose": pytest.approx(-1.0)}
    page = (run.report / "index.html").read_text()
    assert "The scores are inverted." in page
    assert "3 of the probes were also seen in bilevel training" in page


def test_faithful_scores_are_not(lake: Lake) -> None:
    run = make_run(lake, score=noise)
    fidelity_of(run, 1.0)
    assert summary_of(run)["cautions"] == []


def test_random_scores_are_never_called_inverted(lake: Lake) -> None:
    run = make_run(lake, "random", score=noise)
    fidelity_of(run, -1.0)
    assert summary_of(run)["cautions"] == []


def test_a_run_without_fidelity_names_the_command(lake: Lake) -> None:
    run = make_run(lake)
    summary_of(run)
    assert "Not measured yet: run `bliss fidelity demo-bliss-s0 --round 1`." in (run.report / "index.html").read_text()
