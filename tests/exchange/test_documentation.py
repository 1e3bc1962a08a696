"""The examples of docs/queries.md and docs/exchange.md work as printed."""

import re
from pathlib import Path
from typing import Any

import datasets
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bliss_ops import queries, store
from bliss_ops.cli import build_parser
from tests.exchange.conftest import make_lake
from tests.lakes import make_run

DOCS = Path(__file__).parents[2] / "docs"


def blocks(page: str, language: str) -> list[str]:
    found = re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    assert found, f"{page} has examples"
    return found


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a `lake` and a file of scores, as the pages assume."""
    here = tmp_path_factory.mktemp("here")
    lake = make_lake(here / "lake", here / "source")
    store.sync(make_run(lake, score=lambda shard, rows: rows // 8 % 3 + 0.001 * rows))
    pq.write_table(pa.table({"sequence_id": [1, 2, 3], "score": [0.5, 1.5, 2.5]}), here / "quality.parquet")
    return here


def test_python_and_sql(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(here)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", here / "cache")
    names: dict[str, Any] = {}
    for block in blocks("exchange.md", "python") + blocks("queries.md", "python"):
        exec(block, names)  # noqa: S102 - what a reader would do
    assert names["manifest"].metrics["num_documents"] == len(names["documents"]) > 0
    assert {row["domain"] for row in names["rows"]} == {"a.example", "b.example"}
    assert "a.example" in capsys.readouterr().out
    names["con"].close()

    con = duckdb.connect()
    for block in blocks("queries.md", "sql"):
        answer = con.execute(block).fetchall()
    assert {row[0] for row in answer} == {"a.example", "b.example"}
    (together,) = blocks("exchange.md", "sql")
    assert [row[0] for row in con.execute(together).fetchall()] == [3, 2, 1]


def test_commands_are_those_of_the_command_line() -> None:
    parser = build_parser()
    for page in ("queries.md", "exchange.md"):
        for line in "".join(blocks(page, "sh")).splitlines():
            words = [word.strip('"') for word in line.split("#")[0].split()]
            assert words[0] == "bliss"
            arguments = parser.parse_args(words[1:])
            if getattr(arguments, "query", None):
                query = queries.load(arguments.query)
                assert {item.partition("=")[0] for item in arguments.param} <= {one.name for one in query.parameters}


def test_every_query_is_on_the_page() -> None:
    page = (DOCS / "queries.md").read_text(encoding="utf-8")
    assert [name for name in queries.names() if f"`bliss sql --query {name}`" not in page and f"--query {name}" not in page] == []
