"""Scores made elsewhere: what is taken, what is refused, and that they stand beside our own."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bliss_ops import store
from bliss_ops.exchange.imported import import_scores
from bliss_ops.lake import Corpus, Lake, shard_file
from bliss_ops.manifest import ArtifactMismatchError, find_manifest
from bliss_ops.sql import open_snapshot
from tests.lakes import make_corpus, make_run

SHARD = 10_000_000
EVERY = [shard * SHARD + row for shard in (0, 1) for row in range(30)]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return make_corpus(tmp_path / "lake")


@pytest.fixture
def corpus(lake: Lake) -> Corpus:
    return lake.corpus("tiny")


def parquet(path: Path, **columns: Any) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return str(path)


def written(corpus: Corpus, name: str, shard: int) -> dict[int, float]:
    table = pq.read_table(shard_file(corpus.lake.further_scores("tiny", name), shard).path)
    assert [str(kind) for kind in table.schema.types] == ["int64", "float"]
    return dict(zip(table["sequence_id"].to_pylist(), table["score"].to_pylist(), strict=True))


def test_scores_of_sequences_in_any_order_become_a_score_run(corpus: Corpus, tmp_path: Path) -> None:
    ids = np.random.default_rng(0).permutation(EVERY)
    manifest = import_scores(corpus, "outside", parquet(tmp_path / "s.parquet", sequence_id=ids, score=ids % SHARD * 0.5))
    assert (manifest.stage, manifest.identity["method"]) == ("import_scores", "outside")
    assert manifest.inputs == {"corpora/tiny/sequences-bpe512-16": find_manifest(corpus.sequences).digest}  # type: ignore[union-attr]
    assert manifest.metrics == {"num_sequences": 60, "num_candidates": 60, "source": ["s.parquet"]} | {
        "mean": pytest.approx(7.25),
        "standard_deviation": pytest.approx(np.std(np.arange(30) * 0.5)),
        "minimum": 0.0,
        "maximum": 14.5,
        "num_identical": 2,
        "num_at_ends": 58,  # of scores that are probabilities: 0 and from 1 on
    }
    for shard in (0, 1):
        assert written(corpus, "outside", shard) == {shard * SHARD + row: row * 0.5 for row in range(30)}


def test_scores_of_documents_become_token_weighted_means(corpus: Corpus, tmp_path: Path) -> None:
    """Document 0 has the score 1, document 1 has 4, document 2 none, document 3 has 10."""
    file = parquet(tmp_path / "d.parquet", doc=[3, 0, 1], quality=np.array([10, 1, 4], np.int16))
    manifest = import_scores(corpus, "by-document", file, id_name="document_id", id_column="doc", score_column="quality")
    # 0: document 0 alone; 1: half of each of 0 and 1; 2: document 1 alone; 3: document 2, unscored; 4: its half by 3; 5: document 3
    assert written(corpus, "by-document", 0) == {0: 1.0, 1: 2.5, 2: 4.0, 4: 10.0, 5: 10.0}
    assert manifest.shards == [0]
    assert (manifest.metrics["num_sequences"], manifest.metrics["num_candidates"]) == (5, 60)


def test_imported_and_own_scores_are_joined_in_sql(lake: Lake, corpus: Corpus, tmp_path: Path) -> None:
    store.sync(make_run(lake, score=lambda shard, rows: rows + 1000.0 * shard))
    import_scores(corpus, "outside", parquet(tmp_path / "s.parquet", sequence_id=EVERY[:40], score=[-float(i % SHARD) for i in EVERY[:40]]))
    both = """select count(*), sum(x.score + y.score) from all_scores x join all_scores y using (sequence_id)
              where x.score_run_id = 'demo-bliss-s0/round-01' and y.score_run_id = 'scores/tiny/outside'"""
    with open_snapshot(lake) as con:
        assert con.execute(both).fetchall() == [(40, 10 * 1000.0)]
        assert con.execute("select kind, method, round from score_runs where score_run_id like 'scores/%'").fetchall() == [
            ("imported", "outside", 0)
        ]
        assert con.execute("select distinct score_run_id from scores").fetchall() == [("demo-bliss-s0/round-01",)]


def test_the_same_scores_again_are_no_second_work_and_others_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    first = import_scores(corpus, "outside", parquet(tmp_path / "s.parquet", sequence_id=[1, 2], score=[0.5, 1.5]))
    moved = (tmp_path / "s.parquet").rename(tmp_path / "elsewhere.parquet")
    before = (corpus.lake.further_scores("tiny", "outside") / "shard-00000.parquet").stat().st_mtime_ns
    assert import_scores(corpus, "outside", str(moved)) == first
    assert (corpus.lake.further_scores("tiny", "outside") / "shard-00000.parquet").stat().st_mtime_ns == before
    with pytest.raises(ArtifactMismatchError, match=r"settings.content: was .*\n.*use another name; to make it again, delete"):
        import_scores(corpus, "outside", parquet(tmp_path / "t.parquet", sequence_id=[1, 2], score=[0.5, 2.5]))
    assert written(corpus, "outside", 0) == {1: 0.5, 2: 1.5}


def test_a_directory_or_a_glob_is_one_set_of_scores(corpus: Corpus, tmp_path: Path) -> None:
    for shard in (0, 1):
        mine = EVERY[30 * shard : 30 * shard + 30]
        parquet(tmp_path / "in" / f"{shard}.parquet", sequence_id=mine, score=[float(shard)] * 30)
    (tmp_path / "in" / "notes.txt").write_text("not Parquet")
    import_scores(corpus, "directory", str(tmp_path / "in"))
    import_scores(corpus, "glob", str(tmp_path / "in" / "*.parquet"))
    for shard in (0, 1):
        assert written(corpus, "directory", shard) == written(corpus, "glob", shard) == dict.fromkeys(EVERY[30 * shard :][:30], shard)


def test_batches_do_not_change_a_score(corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.random.default_rng(3).permutation(EVERY)
    file = parquet(tmp_path / "s.parquet", sequence_id=ids, score=np.sin(ids))
    import_scores(corpus, "whole", file)
    monkeypatch.setattr("bliss_ops.exchange.imported.BATCH_ROWS", 7)
    import_scores(corpus, "batched", file)
    for shard in (0, 1):
        assert written(corpus, "whole", shard) == written(corpus, "batched", shard)


BAD: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"id": [1], "score": [1.0]}, {}, r"has no column 'sequence_id' \(it has id, score\): name the right one with --id-column"),
    ({"sequence_id": [1], "value": [1.0]}, {}, "has no column 'score' .*: name the right one with --score-column"),
    ({"sequence_id": ["1"], "score": [1.0]}, {}, "column 'sequence_id' is string, but ids are integers"),
    ({"sequence_id": [1.0], "score": [1.0]}, {}, "column 'sequence_id' is double, but ids are integers"),
    ({"sequence_id": [1], "score": ["high"]}, {}, "column 'score' is string, but scores are numbers"),
    ({"sequence_id": [1, 2, 1], "score": [1.0, 2.0, 3.0]}, {}, "1 rows of shard 0 repeat a sequence_id, the first is 1"),
    (
        {"sequence_id": [1, 30, 31], "score": [1.0] * 3},
        {},
        r"2 of the 3 ids of shard 0 are no sequence_id of corpus 'tiny', the first is 30",
    ),
    ({"sequence_id": [1, 2 * SHARD], "score": [1.0] * 2}, {}, "1 of 2 ids in .* are no sequence_id"),
    ({"sequence_id": [25], "score": [1.0]}, {"id_name": "document_id", "id_column": "sequence_id"}, "25: an id is its shard times"),
    ({"sequence_id": [-1], "score": [1.0]}, {}, "ids are not negative, but there is -1"),
    ({"sequence_id": [1, 2], "score": [1.0, float("nan")]}, {}, r"1 scores in rows 0 to 2 are not finite .* the first is nan of id 2"),
    ({"sequence_id": [1], "score": [float("inf")]}, {}, "the first is inf of id 1"),
    ({"sequence_id": [1], "score": [1e300]}, {}, "not finite float32 numbers"),
    ({"sequence_id": [1, None], "score": [1.0, 2.0]}, {}, "1 of rows 0 to 2 have no 'sequence_id'"),
    ({"sequence_id": [1], "score": pa.array([None], pa.float64())}, {}, "have no 'score'"),
    ({"sequence_id": pa.array([], pa.int64()), "score": pa.array([], pa.float32())}, {}, "scores no sequence of corpus 'tiny'"),
]


@pytest.mark.parametrize(("columns", "options", "message"), BAD, ids=[message[:40] for _, _, message in BAD])
def test_what_cannot_be_used_is_refused_before_anything_is_written(
    corpus: Corpus, tmp_path: Path, columns: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        import_scores(corpus, "bad", parquet(tmp_path / "s.parquet", **columns), **options)
    assert not corpus.lake.further_scores("tiny", "bad").exists()


def test_files_that_are_not_there_or_not_parquet(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "s.parquet").write_text("id,score\n1,2\n")
    with pytest.raises(ValueError, match=r"s.parquet is not a complete Parquet file"):
        import_scores(corpus, "bad", str(tmp_path / "s.parquet"))
    with pytest.raises(ValueError, match="does not exist: check the path"):
        import_scores(corpus, "bad", str(tmp_path / "none.parquet"))
    with pytest.raises(ValueError, match=r"names no Parquet file: give a file, a glob in quotes, or a directory"):
        import_scores(corpus, "bad", str(tmp_path / "*.none"))
    with pytest.raises(ValueError, match=r"'../up' is not a valid name"):
        import_scores(corpus, "../up", str(tmp_path / "s.parquet"))
    with pytest.raises(ValueError, match="use one of sequence_id, document_id"):
        import_scores(corpus, "bad", str(tmp_path / "s.parquet"), id_name="url")  # type: ignore[arg-type]


def test_a_corpus_that_was_ingested_again_has_other_scores(lake: Lake, corpus: Corpus, tmp_path: Path) -> None:
    file = parquet(tmp_path / "s.parquet", sequence_id=[1, 2], score=[0.5, 1.5])
    import_scores(corpus, "outside", file)
    make_corpus(tmp_path / "lake", num_sequences=33)
    with pytest.raises(ArtifactMismatchError, match=r"inputs.corpora/tiny/sequences-bpe512-16"):
        import_scores(corpus, "outside", file)
