"""Hostile statements to the score store: nothing but its tables can be read, nothing can be written, no limit can be lifted."""
# ruff: noqa: E501, S608 - tables, and statements that have to be refused

import uuid
from collections.abc import Iterator
from pathlib import Path

import duckdb
import httpx
import pytest
from starlette.testclient import TestClient

from bliss_ops.explorer.app import create_app
from bliss_ops.explorer.console import Limits
from bliss_ops.explorer.guard import LOOPBACK
from bliss_ops.lake import Lake
from bliss_ops.names import quoted_identifier, quoted_text
from tests.hostile.commands import Said

READS = "only one statement, and one that reads"
CLOSED = "disabled by configuration"
ELSEWHERE = [
    "/etc/passwd",
    "secret.csv",
    "{folder}/secret.csv",
    "s3://bucket/x.parquet",
    "https://example.org/x.parquet",
    "/proc/self/environ",
]
READERS = ["read_text", "read_blob", "read_csv", "read_csv_auto", "read_json", "read_ndjson_objects", "read_parquet", "parquet_metadata",
           "parquet_schema", "sniff_csv", "glob", "read_duckdb"]  # fmt: skip
STATEMENTS = {
    # writes and changes of state
    "delete from scores": READS, "insert into scores values (1, 2)": READS, "update scores set score = 0": READS, "truncate scores": READS,
    "drop table scores": READS, "alter table scores add column x int": READS, "create table mine as select 1": READS, "create temp table t (a int)": READS,
    "create view v as select 1": READS, "create or replace macro f() as 1": READS, "comment on table scores is 'x'": READS,
    "merge into scores using scores s on true when matched then delete": READS, "with x as (delete from scores returning *) select * from x": "read-only",
    "select * from query('drop table scores')": "single SELECT", "select * from query('select 1; drop table scores')": "single SELECT",
    "select nextval('x')": "does not exist", "begin": READS, "commit": READS, "checkpoint": READS, "vacuum": READS, "analyze": READS,
    # more than one, and disguises
    "select 1; drop table scores": READS, "select 1;;select 2": READS, "/* */ drop table scores": READS, "-- x\ndrop table scores": READS,
    "explain analyze delete from scores": READS, "explain analyze insert into scores values (1, 1)": READS, "explain (format json) drop table scores": READS,
    "explain explain analyze delete from scores": "syntax error at or near \"explain\"", "select 1;\0drop table scores": "syntax error", "\0": "syntax error", "": READS, ";": READS,
    "prepare p as drop table scores": "not a preparable statement", "execute p": READS, "call force_checkpoint()": READS, "do $$ x $$": "syntax error",
    # files out
    "copy scores to '{folder}/out.csv'": READS, "copy (select 1) to '{folder}/out.parquet'": READS, "export database '{folder}/out'": READS,
    "explain analyze copy scores to '{folder}/out.csv'": READS, "select * from query('copy scores to ''{folder}/out.csv''')": "single SELECT",
    "pragma profiling_output='{folder}/out.json'": READS, "attach '{folder}/out.duckdb' as o": READS, "copy from database store to memory": READS,
    # files in
    "copy scores from '/etc/passwd'": READS, "import database '/etc'": READS, "attach '/etc/passwd' as o": READS,
    "explain analyze select * from read_text('/etc/passwd')": CLOSED, "summarize select * from read_text('/etc/passwd')": CLOSED,
    "describe select * from read_csv('/etc/passwd')": CLOSED, "select * from read_csv(['/etc/passwd'])": CLOSED,
    "with x as (from read_text('/etc/passwd')) from x": CLOSED, "select (select content from read_text('/etc/passwd'))": CLOSED,
    "select * from json_execute_serialized_sql(json_serialize_sql('from read_text(''/etc/passwd'')'))": CLOSED,
    # code, extensions, network, secrets, settings
    "load httpfs": READS, "install httpfs": READS, "install 'https://example.org/x.duckdb_extension'": READS, "force install spatial from community": READS,
    "update extensions": READS, "create secret (type s3, key_id 'x')": READS, "create persistent secret (type s3)": READS, "drop secret x": READS,
    "select getenv('PATH')": "does not exist",
    "select * from sqlite_scan('/x', 'y')": "sqlite", "select * from postgres_scan('host=127.0.0.1', 'a', 'b')": "postgres_scan",
    "select * from mysql_query('a', 'b')": "mysql", "select * from iceberg_scan('/x')": "iceberg", "select * from delta_scan('/x')": "delta",
    "select * from st_read('/etc/passwd')": "st_read", "select * from shell('id')": "does not exist", "select system('id')": "does not exist",
    "set threads = 64": READS, "reset memory_limit": READS, "set lock_configuration = false": READS, "set enable_external_access = true": READS,
    "pragma enable_external_access": READS, "set variable x = 1": READS, "use memory": READS, "detach store": READS,
    "select * from enable_logging('QueryLog', storage='file', storage_config={{'path': '{folder}/log'}})": "locked",
    "select * from enable_profiling()": "locked", "select * from arrow_scan(1, 2, 3)": "No function matches", "select 1::pointer": "does not exist",
    "select * from pandas_scan(1)": "No function matches", "select * from lake": "does not exist", "select * from con": "does not exist",
    "select * from create_external_resource('x')": "unknown resource type",
    # texts that are no statements
    "select '": "unterminated", "select " * 500: "syntax error", "select " + "(" * 20_000 + "1" + ")" * 20_000: "depth", "drop": "syntax error",
    "select " + "+".join(["1"] * 20_000): "depth", "\u202eselect 1": "syntax error", "select 1 from \U0001f4a9": "does not exist",
    "{{ 7 * 7 }}": "syntax error", "' or 1=1 --": "unterminated", "select * from information_schema.nothing": "does not exist",
}  # fmt: skip
STATEMENTS |= {f"select * from {reader}('{path}')": f'Cannot access file "{path}"' for reader in READERS for path in ELSEWHERE[:3]}
# A name without the ending of a format is a table's.
NO_FILE = {path: f"Table with name {path} does not exist" for path in ("/etc/passwd", "/proc/self/environ")}
STATEMENTS |= {
    text.format(path): NO_FILE.get(path, f'Cannot access file "{path}"')
    for path in ELSEWHERE
    for text in ("select * from '{}'", 'from "{}"')
}


def filled(text: str, folder: Path) -> str:
    """A statement, or what its refusal names, with the folder of the store."""
    return text.replace("{{'", "{'").replace("'}}", "'}").replace("{folder}", str(folder))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    with duckdb.connect(str(folder / "scores.duckdb")) as con:
        con.execute("create table scores as select range as sequence_id, range / 7.0 as score from range(100)")
    (folder / "secret.csv").write_text("a\nopen sesame\n")
    return folder


@pytest.mark.parametrize("statement", STATEMENTS, ids=lambda text: repr(text[:60]))
def test_a_statement(folder: Path, tmp_path: Path, capsys: Said, statement: str) -> None:
    from bliss_ops.cli import main

    before = (folder / "scores.duckdb").read_bytes()
    command = ["sql", "--lake", str(folder), "--format", "csv", "--output", str(tmp_path / "answer.csv"), "--", filled(statement, folder)]
    assert main(command) == 1
    message = capsys.readouterr().err
    assert message.startswith("bliss sql: ")
    assert "Traceback" not in message
    assert filled(STATEMENTS[statement], folder).lower() in message.lower()
    assert STATEMENTS[statement]
    assert "sesame" not in message
    assert sorted(path.name for path in folder.iterdir()) == ["scores.duckdb", "secret.csv"]
    assert (folder / "scores.duckdb").read_bytes() == before
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def console(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("scratch")))  # slots of these tests alone
        with TestClient(create_app(Lake.open(folder), hosts=LOOPBACK), base_url="http://127.0.0.1") as client:
            yield client


def ask(console: TestClient, statement: str, action: str = "run") -> httpx.Response:
    return console.post(f"/sql/{action}", json={"id": uuid.uuid4().hex, "statement": statement}, headers={"x-bliss-explorer": "1"})


@pytest.mark.parametrize(
    "statement",
    # a process each: all of them take a minute, so `make test` has every sixth
    [pytest.param(text, marks=[pytest.mark.slow] if number % 6 else []) for number, text in enumerate(STATEMENTS)],
    ids=lambda text: repr(text[:60]),
)
def test_a_statement_to_the_console(folder: Path, console: TestClient, statement: str) -> None:
    """Over HTTP, in the process of its own that a page's statement gets."""
    before, text = (folder / "scores.duckdb").read_bytes(), filled(statement, folder)
    answer = ask(console, text)
    is_long = len(text) > Limits().statement_bytes
    assert answer.status_code == (413 if is_long else 400)
    message = answer.json()["error"]
    assert ("at most 20,000 bytes" if is_long else filled(STATEMENTS[statement], folder).lower()) in message.lower()
    assert "Traceback" not in message
    assert "sesame" not in message
    assert sorted(path.name for path in folder.iterdir()) == ["scores.duckdb", "secret.csv"]
    assert (folder / "scores.duckdb").read_bytes() == before


@pytest.mark.parametrize("action", ["run", "csv"])
def test_the_console_still_answers(console: TestClient, action: str) -> None:
    assert ask(console, "drop table scores", action).status_code == 400
    answer = ask(console, "select count(*) from scores", action)
    assert (answer.status_code, "100" in answer.text) == (200, True)
    assert console.get("/static/explorer.css").status_code == 200


@pytest.mark.parametrize("name", ["", "a b", 'a"', "a;b", "a--", "1a", "a.b", "a\0", "ä", "a" * 64, "a)", "*", "a\n"])
def test_identifiers(name: str) -> None:
    with pytest.raises(ValueError, match="is not the name of a table or column"):
        quoted_identifier(name)


@pytest.mark.parametrize("text", ["", "'", "''", "a'b", "a\\'b", "a\nb", "$$", "--", "' or 1=1 --", "\u2019", "a;b"])
def test_a_quoted_text_is_that_text_again(text: str) -> None:
    assert duckdb.connect().execute(f"select {quoted_text(text)}").fetchone() == (text,)
