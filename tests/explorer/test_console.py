"""Statements of people: what is refused, what is cut off, and that the server answers others meanwhile."""

import asyncio
import json
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from starlette.testclient import TestClient

from bliss_ops.explorer import statement as statements
from bliss_ops.explorer.app import create_app
from bliss_ops.explorer.console import Limits
from bliss_ops.lake import Lake
from tests.lakes import SCRIPT

HEADERS = {"x-bliss-explorer": "1"}
FOR_MINUTES = "select count(*) from range(10_000_000) a, range(10_000_000) b where hash(a.range, b.range) = 1"


def answered(lake: Lake, directory: Path, statement: str) -> dict[str, Any]:
    limits = {name: getattr(Limits(), name) for name in ("rows", "characters", "seconds", "memory", "threads", "spill")}
    return statements.answer({"file": lake.score_store.path, "statement": statement, "csv": False, **limits}, directory)


def ask(client: TestClient, statement: str, action: str = "run") -> httpx.Response:
    return client.post(f"/sql/{action}", json={"id": uuid.uuid4().hex, "statement": statement}, headers=HEADERS)


def test_an_answer_has_columns_rows_and_types(client: TestClient) -> None:
    answer = ask(
        client,
        "select 'a' as name, 1.5::double as value, null as nothing, 'nan'::double as odd union all select 'b', 2, 3, 0 order by name",
    )
    assert answer.status_code == 200
    fields = answer.json()
    assert [(c["name"], c["is_number"]) for c in fields["columns"]] == [("name", False), ("value", True), ("nothing", True), ("odd", True)]
    assert fields["rows"] == [["a", "1.5", None, "nan"], ["b", "2", "3", "0"]]
    assert fields["is_cut"] is False


@pytest.mark.parametrize(
    "statement", ["describe scores", "show tables", "summarize score_runs", "explain select 1", "from rounds", "values (1)"]
)
def test_statements_that_read_are_run(client: TestClient, statement: str) -> None:
    assert ask(client, statement).json()["rows"]


@pytest.mark.parametrize(
    "statement",
    [
        "delete from all_scores",
        "insert into score_runs select * from score_runs",
        "update score_runs set seed = 1",
        "drop table all_scores",
        "create table t as select 1",
        "create temp table t as select 1",
        "attach '/tmp/other.duckdb' as other",
        "copy score_runs to '/tmp/stolen.csv'",
        "export database '/tmp/stolen'",
        "install httpfs",
        "load httpfs",
        "set threads = 64",
        "set memory_limit = '100GB'",
        "reset memory_limit",
        "pragma enable_external_access = true",
        "pragma database_list",
        "call enable_logging()",
        "use memory",
        "begin",
        "checkpoint",
        "vacuum",
        "prepare p as select 1",
        "select 1; select 2",
        "select 1; drop table all_scores",
        "explain analyze copy (select 1) to '/tmp/stolen.csv'",
        "explain analyze delete from all_scores",
        "select * from read_text('/etc/passwd')",
        "select * from read_csv('/etc/passwd')",
        "select * from '/etc/passwd'",
        "select * from glob('/*')",
        "select * from read_parquet('https://example.com/x.parquet')",
        "select * from sniff_csv('/etc/passwd')",
        "select * from enable_logging(storage = 'file', storage_path = '/tmp/stolen')",
        "select * from force_checkpoint('store')",
        "select getenv('HOME')",
        "select * from request",  # a variable of the process that runs it
        "",
        "-- nothing",
        "select",
    ],
)
def test_everything_else_is_refused(lake: Lake, scratch: Path, statement: str) -> None:
    """As the statement's process would: here in this one, to be quick."""
    before = Path(lake.score_store.path).read_bytes()
    assert list(answered(lake, scratch, statement)) == ["error"]
    assert not Path("/tmp/stolen.csv").exists()  # noqa: S108 - the very place the statements name
    assert Path(lake.score_store.path).read_bytes() == before


@pytest.mark.parametrize("statement", ["drop table all_scores", "attach '/tmp/other.duckdb' as other", "set threads = 64"])
def test_refusals_reach_the_page(client: TestClient, statement: str) -> None:
    refused = ask(client, statement)
    assert refused.status_code == 400
    assert "only one statement, and one that reads" in refused.json()["error"]


def test_files_of_other_stores_and_of_the_lake_cannot_be_read(lake: Lake, scratch: Path) -> None:
    for file in ("scores.working.duckdb", "runs/demo-bliss-s0/config.json", "corpora/tiny/documents/shard-00000.parquet"):
        path = Path(lake.root.path) / file
        assert path.exists()
        for function in ("read_text", "read_blob", "read_duckdb", "read_parquet", "read_json"):
            assert list(answered(lake, scratch, f"select * from {function}('{path}')")) == ["error"], (function, file)  # noqa: S608


def test_ten_million_rows_are_cut_to_what_is_shown(client: TestClient) -> None:
    begun = time.monotonic()
    fields = ask(client, "select range from range(10_000_000)").json()
    assert (len(fields["rows"]), fields["is_cut"]) == (1000, True)
    assert time.monotonic() - begun < 10


def test_a_long_cell_is_cut_and_text_stays_text(client: TestClient) -> None:
    fields = ask(client, f"select repeat('x', 1_000_000) as long, '{SCRIPT.replace(chr(39), chr(39) * 2)}' as script").json()
    assert len(fields["rows"][0][0]) == 2001
    assert fields["rows"][0][1] == SCRIPT  # JSON, which the page shows by textContent


def test_a_statement_that_needs_too_much_memory_says_so(client: TestClient) -> None:
    answer = ask(client, "select list(range) from range(100_000_000)")
    assert answer.status_code == 400
    assert "more than its 512MB of memory" in answer.json()["error"]


def test_csv_is_capped_and_says_so(lake: Lake) -> None:
    with TestClient(create_app(lake, limits=Limits(csv_rows=50))) as client:
        answer = ask(client, "select range as number, 'a,\"b' as text from range(10_000_000)", "csv")
        lines = answer.text.splitlines()
        assert (len(lines), lines[1], answer.headers["x-bliss-cut"]) == (51, '0,"a,""b"', "true")
        assert "attachment" in answer.headers["content-disposition"]
        assert ask(client, "select 1 as one", "csv").headers["x-bliss-cut"] == "false"
        assert ask(client, "drop table x", "csv").status_code == 400


def test_statements_are_only_taken_from_the_own_page(client: TestClient) -> None:
    body = {"id": uuid.uuid4().hex, "statement": "select 1"}
    assert client.post("/sql/run", json=body).status_code == 403
    assert client.post("/sql/run", json=body, headers=HEADERS | {"sec-fetch-site": "cross-site"}).status_code == 403
    assert client.post("/sql/cancel", json=body, headers={"origin": "https://evil.example"}).status_code == 403
    assert client.get("/sql/run").status_code == 404
    assert client.post("/sql/drop", json=body, headers=HEADERS).status_code == 400


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"statement": "select 1"}', b'{"id": 1, "statement": "select 1"}', b'"x"'])
def test_a_body_that_is_no_question_is_refused(client: TestClient, body: bytes) -> None:
    assert client.post("/sql/run", content=body, headers=HEADERS).status_code == 400


def test_a_body_that_is_too_long_is_refused_before_it_is_read_whole(client: TestClient) -> None:
    assert client.post("/sql/run", content=b"x" * 5_000_000, headers=HEADERS).status_code == 413


@pytest.mark.parametrize("identifier", ["../../etc", "0" * 31, "g" * 32, ""])
def test_an_identifier_is_no_path(client: TestClient, identifier: str) -> None:
    for action in ("run", "cancel"):
        assert client.post(f"/sql/{action}", json={"id": identifier, "statement": "select 1"}, headers=HEADERS).status_code == 400


@asynccontextmanager
async def connected(lake: Lake, limits: Limits) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(create_app(lake, limits=limits))
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1", timeout=60) as client:
        yield client


async def begin(client: httpx.AsyncClient, statement: str) -> tuple[str, "asyncio.Task[httpx.Response]"]:
    identifier = uuid.uuid4().hex
    task = asyncio.create_task(client.post("/sql/run", json={"id": identifier, "statement": statement}, headers=HEADERS))
    return identifier, task


def of_statements() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if "bliss_ops.explorer.statement" in child.cmdline()]


async def until_running(number: int) -> None:
    deadline = time.monotonic() + 20
    while len(of_statements()) < number:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


def test_a_statement_that_would_run_for_minutes_is_stopped_while_the_server_answers(lake: Lake) -> None:
    async def scene() -> None:
        async with connected(lake, Limits(seconds=2.0)) as client:
            begun = time.monotonic()
            _, task = await begin(client, FOR_MINUTES)
            await until_running(1)
            for _ in range(5):
                page_begun = time.monotonic()
                assert (await client.get("/")).status_code == 200
                assert time.monotonic() - page_begun < 1.5
            assert not task.done()
            answer = await task
            assert answer.status_code == 400
            assert "Stopped after 2 s" in answer.json()["error"]
            assert time.monotonic() - begun < 8
            assert of_statements() == []

    asyncio.run(scene())


def test_cancelling_ends_the_process(lake: Lake, scratch: Path) -> None:
    async def scene() -> None:
        async with connected(lake, Limits(seconds=60.0)) as client:
            identifier, task = await begin(client, FOR_MINUTES)
            await until_running(1)
            (process,) = of_statements()
            cancelled: Any = await client.post("/sql/cancel", json={"id": identifier}, headers=HEADERS)
            assert cancelled.json() == {"cancelled": True}
            assert (await task).json()["error"] == "Cancelled."
            assert not process.is_running()
            late = await client.post("/sql/cancel", json={"id": identifier}, headers=HEADERS)
            assert late.json() == {"cancelled": False}

    asyncio.run(scene())
    assert not list(scratch.glob("*/statement-*"))  # nothing is left behind


def test_only_so_many_statements_run_at_once(lake: Lake) -> None:
    async def scene() -> None:
        async with connected(lake, Limits(seconds=60.0, statements_at_once=2)) as client:
            begun = [await begin(client, FOR_MINUTES) for _ in range(2)]
            await until_running(2)
            _, third = await begin(client, "select 1")
            answer = await third
            assert answer.status_code == 429
            assert "2 statements are running already" in answer.json()["error"]
            for identifier, _ in begun:
                await client.post("/sql/cancel", json={"id": identifier}, headers=HEADERS)
            await asyncio.gather(*(task for _, task in begun))
            _, again = await begin(client, "select 1")
            assert (await again).status_code == 200

    asyncio.run(scene())


def test_closing_the_page_ends_its_statement(lake: Lake) -> None:
    """As a server tells it: the receiving side says that the client has hung up."""

    async def scene() -> None:
        app, sent = create_app(lake, limits=Limits(seconds=60.0)), []
        body = f'{{"id": "{uuid.uuid4().hex}", "statement": "{FOR_MINUTES}"}}'.encode()
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        hang_up = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await hang_up.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"host", b"127.0.0.1"), (b"x-bliss-explorer", b"1")]
        scope = {"type": "http", "method": "POST", "path": "/sql/run", "raw_path": b"/sql/run", "query_string": b"", "headers": headers}
        task = asyncio.create_task(app({**scope, "root_path": "", "scheme": "http", "http_version": "1.1"}, receive, send))
        await until_running(1)
        hang_up.set()
        await asyncio.wait_for(task, 10)
        assert of_statements() == []

    asyncio.run(scene())


def test_the_kernel_bounds_a_file_that_a_statement_writes(tmp_path: Path) -> None:
    """Should DuckDB's own limit on what it spills not hold."""
    code = (
        "import json, sys; from bliss_ops.explorer import statement; statement._limit(json.load(sys.stdin))\n"
        "with open('spilled', 'wb') as file: file.truncate(statement.FILE_BYTES); file.truncate(statement.FILE_BYTES + 1)"
    )
    request = json.dumps({"seconds": 20, "threads": 2})
    done = subprocess.run([sys.executable, "-c", code], input=request, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "File too large" in done.stderr
    assert (tmp_path / "spilled").stat().st_size == statements.FILE_BYTES
