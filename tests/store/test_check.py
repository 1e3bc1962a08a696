"""`bliss store check` and `bliss store rebuild`: one line for each thing that is wrong, with the way out, and nothing when all is well."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pytest

from bliss_ops import store
from bliss_ops.cli import main as bliss
from bliss_ops.lake import Lake
from bliss_ops.store import working
from tests.lakes import make_corpus, make_further_scores, make_round, make_run
from tests.store.test_faults import tables_of

ROUND = "demo-bliss-s0/round-01"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two rounds, another method and imported scores, all loaded."""
    root = tmp_path_factory.mktemp("template")
    lake = make_corpus(root)
    make_run(lake, num_rounds=2)
    make_run(lake, "random")
    make_further_scores(lake, "theirs", lambda _, rows: rows * 1.0)
    store.sync_lake(lake)
    return root


@pytest.fixture
def lake(template: Path, tmp_path: Path) -> Lake:
    shutil.copytree(template, tmp_path / "lake")
    return Lake.open(tmp_path / "lake")


def check(lake: Lake, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[str]]:
    code = bliss(["store", "check", "--lake", str(lake.root)])
    return code, capsys.readouterr().out.splitlines()


def change(file: Path, *statements: str) -> None:
    with duckdb.connect(str(file)) as con:
        for statement in statements:
            con.execute(statement)


def change_both(lake: Lake, *statements: str) -> None:
    for file in (working.working_file(lake), Path(str(lake.score_store))):
        change(file, *statements)


def test_all_is_well(lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(lake, capsys) == (0, ["store check: all is well: 4 score runs, 21 files, 402 rows"])


Damage = Callable[[Lake], None]


def cut_a_shard(lake: Lake) -> None:
    os.truncate(str(lake.run("demo-bliss-s0").round(1) / "scores" / "shard-00001.parquet"), 300)


def delete_a_shard(lake: Lake) -> None:
    (lake.run("demo-bliss-s0").round(1) / "scores" / "shard-00001.parquet").unlink()


def delete_rows(lake: Lake) -> None:
    change_both(lake, "delete from all_scores where score_run_id = 'demo-bliss-s0/round-01' and sequence_id = 7")


def change_a_row(lake: Lake) -> None:
    change_both(lake, "update all_scores set score = score + 1 where score_run_id = 'demo-bliss-s0/round-01' and sequence_id = 7")


def swap_two_documents(lake: Lake) -> None:
    change_both(lake, "update spans set document_id = 1 - document_id where document_id in (0, 1)")


def add_rows_of_nobody(lake: Lake) -> None:
    change_both(lake, "insert into all_scores values ('nobody/round-01', 0, 1, 0.5)")


def delete_a_run(lake: Lake) -> None:
    shutil.rmtree(str(lake.run("demo-random-s0").path))


def change_the_scores(lake: Lake) -> None:
    make_round(lake.run("demo-bliss-s0"), 1, lambda shard, rows: rows * 2.0 + shard)


def take_the_selection_back(lake: Lake) -> None:
    (lake.run("demo-bliss-s0").round(1) / "selection" / "manifest.json").unlink()


def change_the_corpus(lake: Lake) -> None:
    make_corpus(lake.root, num_sequences=36)


def change_a_summary(lake: Lake) -> None:
    change_both(lake, "delete from decile_summaries where score_run_id = 'demo-bliss-s0/round-01' and decile = 3")


def change_the_snapshot_alone(lake: Lake) -> None:
    change(Path(str(lake.score_store)), "update evaluations set value = 0")


def half_load_a_run(lake: Lake) -> None:
    """As a loader leaves it that is killed before the last row."""
    of_run = "'demo-bliss-s0/round-01'"
    change(
        working.working_file(lake),
        f"delete from score_runs where score_run_id = {of_run}",  # noqa: S608 - the name above
        f"delete from loads where kind = 'score_runs' and owner = {of_run}",  # noqa: S608
    )


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (cut_a_shard, "shard-00001.parquet is not the file its manifest recorded: it was cut or rewritten since. Its sha256 is"),
        (delete_a_shard, "shard-00001.parquet is missing: run `bliss score demo-bliss-s0 --round 1` again"),
        (delete_rows, f"scores of {ROUND}, shard 0: the ledger has 30 rows, the table 29: run `bliss store rebuild`"),
        (change_a_row, f"scores of {ROUND}, shard 0: the rows in the table are not those of "),
        (swap_two_documents, "spans of tiny/sequences-bpe512-16, shard 0: the rows in the table are not those of "),
        (add_rows_of_nobody, "scores of nobody/round-01, shard 0: rows are in the table that the ledger knows nothing of"),
        (delete_a_run, "demo-random-s0/round-01: in the store with no Parquet behind it (evaluations: 1, score_runs: 1, scores: 2, "),
        (change_the_scores, f"{ROUND}: not in the snapshot as in Parquet (score_runs: 1, scores: 2, selection_counts: 1, "),
        (
            take_the_selection_back,
            f"{ROUND}: in the store but no longer in its directory (selection_counts: 1, selections: ",
        ),
        (change_the_corpus, f"{ROUND}: in the store of former content of its corpus (evaluations: 1, "),
        (change_a_summary, f"{ROUND}: its summaries are not of what is loaded"),
        (change_the_snapshot_alone, "table evaluations of the snapshot is not that of the working file"),
        (half_load_a_run, f"{ROUND}: was loaded in part only and is left out of the snapshot: run `bliss load demo-bliss-s0 --round 1`"),
    ],
)
@pytest.mark.parametrize("mend", ["as told", "rebuild"])
def test_what_is_wrong_is_found_and_can_be_mended(
    lake: Lake, capsys: pytest.CaptureFixture[str], damage: Damage, line: str, mend: str
) -> None:
    damage(lake)
    code, lines = check(lake, capsys)
    assert code == 1
    told = [shown for shown in lines if line in shown]
    assert told, lines
    assert lines[-1].startswith(f"store check: {len(lines) - 1} problem")
    if damage in (cut_a_shard, delete_a_shard):
        make_round(lake.run("demo-bliss-s0"), 1, lambda shard, rows: rows + shard)
        told = ["then run `bliss load demo-bliss-s0 --round 1`"]
    for command in re.findall("`bliss (load[^`]*|store rebuild)`", " ".join(told)) if mend == "as told" else ["store rebuild"]:
        whole = "load demo-random-s0 --round 1" if command == "load" else command  # "for any round": of one that is loaded already
        assert bliss([*whole.split(), "--lake", str(lake.root)]) == 0
    capsys.readouterr()
    code, lines = check(lake, capsys)
    assert code == 0, lines


def test_a_directory_that_cannot_be_read_is_one_problem_and_stops_nothing(lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    (lake.run("demo-random-s0").path / "config.json").write_text("{}")
    code, lines = check(lake, capsys)
    assert code == 1
    assert "demo-random-s0" in lines[0]
    store.sync_lake(lake)
    assert len({row[0] for row in tables_of(lake)["score_runs"]}) == 4


def test_a_check_before_the_first_load_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_corpus(tmp_path)
    assert bliss(["store", "check", "--lake", str(tmp_path)]) == 1
    assert "bliss load" in capsys.readouterr().err


def test_rebuilding_replaces_a_damaged_working_file(lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    before = tables_of(lake)
    working.working_file(lake).write_bytes(np.random.default_rng(0).bytes(50_000))
    assert bliss(["store", "rebuild", "--lake", str(lake.root)]) == 0
    assert tables_of(lake) == before


def test_readers_keep_the_old_snapshot_while_a_rebuild_fails(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    before = tables_of(lake)

    def fail(*_: object) -> None:
        assert tables_of(lake) == before
        raise KeyboardInterrupt

    monkeypatch.setattr(store.overlaps, "refresh", fail)
    with pytest.raises(KeyboardInterrupt):
        store.rebuild(lake)
    monkeypatch.undo()
    assert tables_of(lake) == before
    store.sync(lake.run("demo-bliss-s0"))
    assert tables_of(lake) == before, "the next load of any run fills the rest of an unfinished rebuild"
