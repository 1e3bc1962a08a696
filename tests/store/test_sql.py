"""`bliss sql`: formats, refusals, and what it must not be able to do."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bliss_ops import store
from bliss_ops.lake import Lake
from bliss_ops.sql import ROWS_ON_TERMINAL, run_query
from tests.lakes import make_corpus, make_run


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    lake = make_corpus(tmp_path_factory.mktemp("lake"), num_sequences=60)
    store.sync(make_run(lake))
    return lake


def test_a_table_on_the_terminal(lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    run_query(lake, "select count(*) as num_sequences, 'a [bold]word' as text, null as nothing from scores")
    shown = capsys.readouterr().out
    assert "num_sequences" in shown
    assert "120" in shown
    assert "a [bold]word" in shown


def test_a_long_table_is_cut_with_a_note(lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    run_query(lake, "select sequence_id from scores order by sequence_id desc")
    shown = capsys.readouterr().out
    assert shown.count("100000") == 60
    assert f"The first {ROWS_ON_TERMINAL} rows" in shown


def test_rows_wider_than_the_output_are_not_wrapped(lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    run_query(lake, "select * from rounds")
    lines = [line for line in capsys.readouterr().out.splitlines() if "demo-bliss-s0" in line]
    assert len(lines) == 1
    assert "demo-bliss-s0/round-01" in lines[0]


QUESTION = "select sequence_id, score, 'quoted, \"text\"' as note from scores order by sequence_id"


def test_csv_json_and_parquet_hold_the_same_rows(lake: Lake, tmp_path: Path) -> None:
    for name in ("csv", "json", "parquet"):
        run_query(lake, QUESTION, name, str(tmp_path / f"out.{name}"))  # type: ignore[arg-type]
    with (tmp_path / "out.csv").open(newline="") as file:
        from_csv = [(int(row["sequence_id"]), float(row["score"]), row["note"]) for row in csv.DictReader(file)]
    from_json = [tuple(row.values()) for row in json.loads((tmp_path / "out.json").read_text())]
    from_parquet = [tuple(row.values()) for row in pq.read_table(tmp_path / "out.parquet").to_pylist()]
    assert len(from_csv) == 120
    assert from_csv == from_json == from_parquet


def test_an_empty_result_is_still_well_formed(lake: Lake, tmp_path: Path) -> None:
    for name in ("csv", "json", "parquet"):
        run_query(lake, "select sequence_id from scores where false", name, str(tmp_path / f"out.{name}"))  # type: ignore[arg-type]
    assert (tmp_path / "out.csv").read_text() == "sequence_id\n"
    assert json.loads((tmp_path / "out.json").read_text()) == []
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 0


def test_formats_go_to_standard_output_too(lake: Lake, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    for name in ("csv", "json", "parquet"):
        script = (
            f"from bliss_ops.lake import Lake; from bliss_ops.sql import run_query; run_query(Lake.open(), 'select 1 as one', {name!r})"
        )
        subprocess.run([sys.executable, "-c", script], env=os.environ | {"BLISS_LAKE": str(lake.root)}, check=True)
    shown = capfdbinary.readouterr().out
    assert shown.startswith(b'one\n1\n[\n{"one": 1}\n]\nPAR1')
    assert shown.endswith(b"PAR1")


@pytest.mark.parametrize(
    "statement",
    [
        "delete from all_scores",
        "insert into state values ('a', 'b')",
        "create table mine as select 1",
        "select 1; drop table all_scores",
        "attach 'other.duckdb' as other",
        "copy scores to 'scores.csv'",
        "set lock_configuration = false",
        "pragma database_list",
        "",
    ],
)
def test_only_single_reading_statements_are_run(lake: Lake, statement: str) -> None:
    with pytest.raises(ValueError, match="only one statement, and one that reads"):
        run_query(lake, statement)


def test_other_files_cannot_be_read(lake: Lake, tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="disabled by configuration"):
        run_query(lake, f"select * from read_csv('{tmp_path}/secret.csv')")  # noqa: S608 - that it cannot be read is the test
    with pytest.raises(ValueError, match="disabled by configuration"):
        run_query(lake, f"select * from '{lake.root}/runs/demo-bliss-s0/round-01/scores/shard-00000.parquet'")  # noqa: S608


def test_an_error_in_the_sql_is_said_plainly(lake: Lake) -> None:
    with pytest.raises(ValueError, match="scroes"):
        run_query(lake, "select * from scroes")
    with pytest.raises(ValueError, match="Could not convert"):
        run_query(lake, "select source::integer from documents", "csv")


def test_a_failed_export_leaves_no_file(lake: Lake, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Could not convert"):
        run_query(lake, "select source::integer from documents", "parquet", str(tmp_path / "out.parquet"))
    assert list(tmp_path.iterdir()) == []


def test_without_a_snapshot_the_way_out_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no score store .*`bliss run`"):
        run_query(Lake.open(tmp_path), "select 1")


def test_an_unknown_format_is_refused(lake: Lake) -> None:
    with pytest.raises(ValueError, match="use one of table, csv, json, parquet"):
        run_query(lake, "select 1", "xlsx")  # type: ignore[arg-type]
