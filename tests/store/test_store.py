"""The score store: exactly-once loading, snapshots that readers can trust, and views on numbers worked out by hand."""

import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest

from bliss_ops import store
from bliss_ops.lake import Lake, Run
from bliss_ops.sql import open_snapshot
from bliss_ops.store import working
from bliss_ops.store.check import Checked, check
from tests.lakes import make_corpus, make_further_scores, make_round, make_run

BLISS, RANDOM = "demo-bliss-s0/round-01", "demo-random-s0/round-01"


def ask(lake: Lake, statement: str) -> list[tuple[Any, ...]]:
    with open_snapshot(lake) as con:
        rows: list[tuple[Any, ...]] = con.execute(statement).fetchall()
        return rows


def contents(lake: Lake) -> dict[str, list[tuple[Any, ...]]]:
    names = ("loads", "score_runs", "all_scores", "scores", "selections", "evaluations", "rounds", "sequence_documents", "document_scores")
    return {name: sorted(ask(lake, f"select * from {name}"), key=repr) for name in names}  # noqa: S608 - names from the line above


def hand_made(shard: int, rows: np.ndarray) -> np.ndarray:
    """Scores 1, 2, 3 in shard 0 and 10, 20, 30 in shard 1."""
    return (rows + 1) * (10.0 if shard else 1.0)


def test_every_sequence_is_loaded_once_and_a_second_sync_does_nothing(tmp_path: Path) -> None:
    lake = make_corpus(tmp_path)
    run = make_run(lake)
    first = store.sync(run)
    assert first["published"]
    assert ask(lake, "select count(*), count(distinct sequence_id) from scores") == [(60, 60)]
    assert ask(lake, "select sum(num_tokens), count(distinct document_id) from sequence_documents") == [(60 * 16, 40)]
    published_at = lake.score_store.stat().st_mtime_ns
    second = store.sync(run)
    assert second == {"num_loaded": 0, "num_skipped": first["num_loaded"], "num_rows": 0, "published": False}
    assert lake.score_store.stat().st_mtime_ns == published_at


def test_a_changed_shard_replaces_the_old_one_and_only_that_one(tmp_path: Path) -> None:
    lake = make_corpus(tmp_path)
    run = make_run(lake, score=hand_made, finished=False)
    store.sync(run)
    before = ask(lake, "select score from scores where shard_id = 0 order by sequence_id")
    make_round(run, 1, lambda shard, rows: hand_made(shard, rows) + 5.0 * shard, finished=False)
    again = store.sync(run)
    # One shard of scores, its selection, the new threshold, and the score run's time when a second has passed.
    assert again["num_rows"] in (30 + 12 + 1, 30 + 12 + 2)
    assert ask(lake, "select count(*), min(score), max(score) from scores where shard_id = 1") == [(30, 15.0, 305.0)]
    assert ask(lake, "select score from scores where shard_id = 0 order by sequence_id") == before


def test_shards_that_an_artifact_no_longer_has_leave_the_store(tmp_path: Path) -> None:
    lake = make_corpus(tmp_path)
    run = make_run(lake, score=hand_made, finished=False)
    store.sync(run)
    assert ask(lake, "select distinct shard_id from selections") == [(1,)]
    make_round(run, 1, lambda shard, rows: -hand_made(shard, rows) - 100.0 * shard, finished=False)
    store.sync(run)
    assert ask(lake, "select distinct shard_id from selections") == [(0,)]


def test_scores_are_the_newest_of_methods_that_read_the_text(tmp_path: Path) -> None:
    lake = make_corpus(tmp_path)
    for run in (make_run(lake), make_run(lake, "random")):
        store.sync(run)
    assert ask(lake, "select score_run_id, count(*) from all_scores group by 1 order by 1") == [(BLISS, 60), (RANDOM, 60)]
    assert ask(lake, "select distinct score_run_id, count(*) over () from scores") == [(BLISS, 60)]
    assert ask(lake, "select method, count(*) from latest_scores group by 1 order by 1") == [("bliss", 60), ("random", 60)]
    store.sync(make_run(lake, seed=1))  # not older than seed 0, and later in the alphabet
    assert ask(lake, "select distinct score_run_id, count(*) over () from scores") == [("demo-bliss-s1/round-01", 60)]


def test_views_against_numbers_worked_out_by_hand(tmp_path: Path) -> None:
    lake = make_corpus(tmp_path, num_sequences=3)
    store.sync(make_run(lake, score=hand_made))
    prose = [(16 * 1 + 8 * 2) / 24, (8 * 2 + 16 * 3) / 24]
    code = [10 * score for score in prose]
    documents = ask(lake, "select document_id, score, num_tokens, num_sequences, source from document_scores order by document_id")
    assert documents == [
        (0, pytest.approx(prose[0]), 24, 2, "prose"),
        (1, pytest.approx(prose[1]), 24, 2, "prose"),
        (10_000_000, pytest.approx(code[0]), 24, 2, "code"),
        (10_000_001, pytest.approx(code[1]), 24, 2, "code"),
    ]
    assert ask(lake, "select domain, score, num_documents from domain_scores order by domain") == [
        ("code.example", pytest.approx(20.0), 2),
        ("prose.example", pytest.approx(2.0), 2),
    ]
    assert ask(lake, "select source, score, num_tokens from source_scores order by source") == [
        ("code", pytest.approx(20.0), 48),
        ("prose", pytest.approx(2.0), 48),
    ]
    assert ask(lake, "select decile, highest from score_deciles order by decile limit 3") == [(1, 30.0), (2, 20.0), (3, 10.0)]
    rounds = ask(lake, "select run, round, num_sequences, num_selected, threshold, validation_loss, perplexity from rounds")
    assert rounds == [("demo-bliss-s0", 1, 6, 1, 30.0, 4.0, pytest.approx(np.exp(4.0)))]


def test_selection_overlap_counts_shared_sequences(tmp_path: Path) -> None:
    lake = make_corpus(tmp_path)
    best_of_code = make_run(lake, score=hand_made, finished=False)
    the_same_but_one = make_run(
        lake, seed=1, score=lambda shard, rows: np.where((shard == 1) & (rows == 29), -1.0, hand_made(shard, rows)), finished=False
    )
    for run in (best_of_code, the_same_but_one):
        store.sync(run)
    assert ask(lake, "select num_a, num_b, num_both, jaccard from selection_overlap") == [(12, 12, 11, pytest.approx(11 / 13))]


def test_rebuilding_from_parquet_gives_the_same_store(tmp_path: Path) -> None:
    lake = make_corpus(tmp_path)
    for run in (make_run(lake, num_rounds=2), make_run(lake, "random")):
        store.sync(run)
    before = contents(lake)
    store.rebuild(lake)
    assert contents(lake) == before
    working.working_file(lake).unlink()
    assert store.sync(lake.run("demo-random-s0"))["published"]
    assert contents(lake) == before, "a lost working file is filled from every run, not only the one being loaded"


def test_a_working_file_of_another_version_is_filled_again(tmp_path: Path) -> None:
    lake = make_corpus(tmp_path)
    run = make_run(lake)
    store.sync(run)
    before = contents(lake)
    with duckdb.connect(str(working.working_file(lake))) as con:
        con.execute("alter table selections drop column score")
        con.execute("update state set digest = 'of another version' where name = 'tables'")
    store.sync(run)
    assert contents(lake) == before


def test_a_run_that_was_deleted_leaves_with_the_next_load_of_another(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whole or half loaded; documents and spans go with the last scores that stand on them."""
    lake = make_corpus(tmp_path)
    make_further_scores(lake, "theirs", hand_made, shards=[1])
    store.load_further(lake, "tiny", "theirs")
    alone = contents(lake)
    for seed in (0, 1):
        store.sync(make_run(lake, seed=seed))
    with duckdb.connect(str(working.working_file(lake))) as con:
        con.execute("delete from score_runs where seed = 1")
    for seed in (0, 1):
        shutil.rmtree(str(lake.run(f"demo-bliss-s{seed}").path))
    store.load_further(lake, "tiny", "theirs")
    assert contents(lake) == alone
    assert "demo-bliss-s1/round-01 leaves the store, its scores are no longer in the lake" in caplog.text
    with duckdb.connect(str(working.working_file(lake)), read_only=True) as con:
        assert con.execute("select distinct score_run_id from all_scores").fetchall() == [("scores/tiny/theirs",)]


def test_unfinished_scores_are_not_loaded(tmp_path: Path) -> None:
    lake = make_corpus(tmp_path)
    run = make_run(lake)
    (run.round(1) / "scores" / "manifest.json").unlink()
    store.sync(run)
    assert ask(lake, "select count(*) from all_scores") == [(0,)]


@pytest.mark.parametrize("num_queries", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_readers_in_a_loop_never_fail_and_never_see_half_a_load(tmp_path: Path, num_queries: int) -> None:
    """Queries, each on a connection of its own, while runs are loaded and published one after the other."""
    lake = make_corpus(tmp_path, num_sequences=300, num_shards=4)
    store.sync(make_run(lake, seed=0))
    reader = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(READER), str(tmp_path), str(num_queries)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert reader.stdout is not None
    assert reader.stdout.readline() == "reading\n"
    for seed in range(1, 5):
        store.sync(make_run(lake, seed=seed))
    seen, _ = reader.communicate("stop\n", timeout=300)
    assert reader.returncode == 0, seen
    counts = [int(count) for count in seen.split()]
    assert len(counts) >= num_queries
    assert set(counts) <= {1200 * loaded for loaded in range(1, 6)}
    assert counts == sorted(counts)
    assert len(set(counts)) > 1, "the reader saw more than one snapshot"


READER = """
    import select, sys
    from bliss_ops.lake import Lake
    from bliss_ops.sql import open_snapshot
    print("reading", flush=True)
    num_queries, stop = 0, False
    while num_queries < int(sys.argv[2]) or not stop:
        stop = stop or bool(select.select([sys.stdin], [], [], 0)[0])
        with open_snapshot(Lake.open(sys.argv[1])) as con:
            (count,) = con.execute("select count(*) from all_scores").fetchone()
            (promised,) = con.execute("select sum(num_sequences) from score_runs").fetchone()
            (summarized,) = con.execute("select sum(num_sequences) from decile_summaries").fetchone()
            assert count == promised == summarized, (count, promised, summarized)
        num_queries += 1
        print(count)
"""


def test_the_snapshot_is_in_the_format_that_duckdb_1_5_reads(tmp_path: Path) -> None:
    lake = make_corpus(tmp_path)
    store.sync(make_run(lake))
    with open_snapshot(lake) as con:
        assert con.execute("select tags['storage_version'] from duckdb_databases() where database_name = 'store'").fetchone() == (
            "v1.5.0+",
        )


def test_a_loader_killed_before_publishing_is_made_up_for(tmp_path: Path) -> None:
    lake = make_corpus(tmp_path)
    run = make_run(lake)
    script = f"""
        import os, signal
        from bliss_ops import store
        from bliss_ops.lake import Lake
        store.publish = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        store.sync(Lake.open({str(tmp_path)!r}).run({run.name!r}))
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=False)
    assert killed.returncode == -9
    assert not lake.score_store.exists()
    again = store.sync(run)
    assert (again["num_loaded"], again["published"]) == (0, True), "what was committed is not loaded twice"
    assert ask(lake, "select count(*) from scores") == [(60,)]


def test_a_damaged_shard_leaves_its_old_rows_and_the_old_snapshot(tmp_path: Path) -> None:
    lake = make_corpus(tmp_path)
    run = make_run(lake)
    store.sync(run)
    before = contents(lake)
    make_round(run, 1, hand_made)
    (run.round(1) / "scores" / "shard-00001.parquet").write_bytes(b"not Parquet")
    with pytest.raises(ValueError, match=r"shard-00001.parquet is not the file its manifest recorded"):
        store.sync(run)
    assert contents(lake) == before
    make_round(run, 1, hand_made)
    store.sync(run)
    assert ask(lake, "select max(score) from scores") == [(300.0,)]


def hold(lake: Lake, seconds: float) -> "subprocess.Popen[str]":
    """Another process that has the working file open for writing."""
    script = "import duckdb, sys, time; con = duckdb.connect(sys.argv[1]); print('open', flush=True); time.sleep(float(sys.argv[2]))"
    arguments = [sys.executable, "-c", script, str(working.working_file(lake)), str(seconds)]
    holder = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "open\n"
    return holder


def test_a_second_loader_waits_for_the_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lake = make_corpus(tmp_path)
    run = make_run(lake)
    caplog.set_level("INFO")
    with hold(lake, 1.0):
        store.sync(run)
    assert "another process is loading" in caplog.text
    assert ask(lake, "select count(*) from scores") == [(60,)]


def test_a_loader_that_never_lets_go_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = make_corpus(tmp_path)
    run = make_run(lake)
    monkeypatch.setattr(working, "WAIT_SECONDS", 0.3)
    with hold(lake, 30) as holder:
        with pytest.raises(ValueError, match=r"another process still holds .*scores\.working\.duckdb"):
            store.sync(run)
        holder.kill()


def test_a_damaged_working_file_is_a_clear_error(tmp_path: Path) -> None:
    lake = make_corpus(tmp_path)
    run = make_run(lake)
    working.working_file(lake).write_bytes(b"x" * 20_000)
    with pytest.raises(ValueError, match="bliss store rebuild"):
        store.sync(run)


def test_leftovers_of_a_killed_publication_are_removed(tmp_path: Path) -> None:
    lake = make_corpus(tmp_path)
    leftover = tmp_path / ".scores.duckdb.abcdef.tmp"
    leftover.write_bytes(b"half a snapshot")
    store.sync(make_run(lake))
    assert not leftover.exists()
    assert [path.name for path in tmp_path.glob("*scores.duckdb*")] == ["scores.duckdb"]


def test_a_lake_on_an_object_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working.tempfile, "gettempdir", lambda: str(tmp_path))
    lake = make_corpus(f"memory://{tmp_path.name}")
    run: Run = make_run(lake)
    make_run(lake, "random")
    assert store.sync(run)["published"]
    assert working.working_file(lake).is_relative_to(tmp_path)
    assert ask(lake, "select count(*) from all_scores") == [(120,)], "another machine may have loaded meanwhile, so all runs are looked at"
    assert not store.sync(run)["published"]


def test_a_snapshot_on_s3_is_replaced_as_a_whole(s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(working.tempfile, "gettempdir", lambda: str(tmp_path))
    s3.mkdir("lake")
    lake = make_corpus("s3://lake/here")
    run = make_run(lake)
    assert store.sync(run)["published"]
    with open_snapshot(lake) as before:
        make_round(run, 1, hand_made)
        assert store.sync(run)["published"]
        assert before.execute("select max(score) < 10 from scores").fetchone() == (True,), "a reader keeps the snapshot it has"
    assert ask(lake, "select max(score) from scores") == [(300.0,)]
    assert list(check(lake, Checked())) == []
    working.working_file(lake).unlink()  # another machine
    assert list(check(lake, Checked())) == []
    store.rebuild(lake)
    assert ask(lake, "select count(*), max(score) from scores") == [(60, 300.0)]
