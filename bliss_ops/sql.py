"""`bliss sql`: one question to the published score store, in SQL or by name, answered as a table, CSV, JSON or Parquet.

The snapshot is opened read-only, without access to other files or the network, and only statements that read are run. Rows are
fetched in batches, so exporting fifty million scores needs no more memory than printing ten.
"""

import csv
import json
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, TYPE_CHECKING, Any, Literal, cast, get_args

from upath import UPath

from bliss_ops import queries
from bliss_ops.lake import Lake, atomic_file, is_local
from bliss_ops.names import quoted_text

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

Format = Literal["table", "csv", "json", "parquet"]
ROWS_ON_TERMINAL = 100
BATCH_ROWS = 10_000
# Closing external access forbids all of this already; two locks are better than one.
NOTHING_MORE: dict[str, Any] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "allow_persistent_secrets": False,
}
_EXPLAIN = re.compile(r"\s*explain(\s+analyze)?\s*(\([^)]*\))?", re.IGNORECASE)


def run_query(lake: Lake, statement: str, format: Format = "table", output: str | None = None) -> None:  # noqa: A002 - the option's name
    """Run one reading statement on the snapshot and write its result to the terminal, or to the file `output`.

    Raises:
        ValueError: no snapshot yet, a statement that does not read, an error in the SQL, or an unknown format.
    """
    _check_format(format)
    with open_snapshot(lake) as con, _errors_of_the_statement():
        check_reads(con, statement)
        _answer(con, statement, {}, format, output)


def run_named(
    lake: Lake,
    name: str,
    parameters: Mapping[str, str],
    format: Format = "table",  # noqa: A002 - the option's name
    output: str | None = None,
) -> None:
    """Run one of the named queries as `run_query` does; `parameters` are as written on the command line.

    Raises:
        ValueError: as `run_query`, and an unknown query or parameter; the message has the choices.
    """
    _check_format(format)
    query = queries.load(name)
    with open_snapshot(lake) as con, _errors_of_the_statement():
        _answer(con, query.sql, query.bind(con, parameters), format, output)


def ask(lake: Lake, name: str, **parameters: str | float) -> "pa.Table":
    """The answer of a named query as an Arrow table: `ask(Lake.open("lake"), "domains", limit=5).to_pylist()`."""
    query = queries.load(name)
    with open_snapshot(lake) as con, _errors_of_the_statement():
        values = query.bind(con, {key: str(value) for key, value in parameters.items()})
        return cast("pa.Table", con.sql(query.sql, params=values).to_arrow_table())


def _check_format(format: Format) -> None:  # noqa: A002 - the option's name
    if format not in get_args(Format):
        raise ValueError(f"format {format!r} does not exist: use one of {', '.join(get_args(Format))}")


def _answer(con: "DuckDBPyConnection", statement: str, values: dict[str, Any], format_name: str, output: str | None) -> None:
    if format_name == "table" and output is None:
        _print_table(con.execute(statement, values))
    elif output is None:
        _write(con, statement, values, format_name, sys.stdout.buffer)
    else:
        with atomic_file(UPath(Path(output).absolute())) as temporary, temporary.open("wb") as file:
            _write(con, statement, values, "csv" if format_name == "table" else format_name, file)


@contextmanager
def open_snapshot(lake: Lake) -> "Iterator[DuckDBPyConnection]":
    """A read-only connection to the snapshot that can reach nothing else. A snapshot on an object store is copied here first.

    Raises:
        ValueError: nothing has been published yet.
    """
    snapshot = lake.score_store
    if not snapshot.is_file():
        raise ValueError(
            f"there is no score store at {snapshot} yet: `bliss run` makes it (or name another lake with --lake or BLISS_LAKE)"
        )
    with TemporaryDirectory(prefix="bliss-sql-") as scratch:
        local = Path(snapshot.path)
        if not is_local(snapshot):
            local = Path(scratch) / snapshot.name
            snapshot.fs.get_file(snapshot.path, str(local))
        con = connect_read_only(local, scratch, memory_limit="2GB")
        try:
            yield con
        finally:
            con.close()


def connect_read_only(file: Path, scratch: str, *, memory_limit: str, **settings: str | int) -> "DuckDBPyConnection":
    """A connection to one DuckDB file that can read it, spill to `scratch`, and do nothing else; its settings are locked."""
    import duckdb

    config: dict[str, Any] = {"temp_directory": scratch, "memory_limit": memory_limit, "python_enable_replacements": False} | NOTHING_MORE
    # In a database of its own memory, so that two connections of one process need not agree on their settings.
    con = duckdb.connect(":memory:", config=config | settings)
    try:
        con.execute(f"attach {quoted_text(file)} as store (read_only)")
        con.execute("use store")
        con.execute("set enable_external_access = false")
        con.execute("set lock_configuration = true")
    except duckdb.Error:
        con.close()
        raise
    return con


def check_reads(con: "DuckDBPyConnection", statement: str) -> None:
    """Refuse what is not one statement that reads; `explain analyze` runs what it explains, so that has to read too.

    Raises:
        ValueError: it is something else; the message says what can be run.
    """
    import duckdb

    kinds = _kinds(con, statement)
    if kinds == [duckdb.StatementType.EXPLAIN]:
        kinds = _kinds(con, _EXPLAIN.sub("", statement, count=1))
    if kinds != [duckdb.StatementType.SELECT]:  # describe, show, summarize are SELECTs to DuckDB
        raise ValueError("only one statement, and one that reads, can be run: select, with, from, describe, summarize, show, explain")


def _kinds(con: "DuckDBPyConnection", statement: str) -> list[Any]:
    try:
        return [each.type for each in con.extract_statements(statement)]
    except ValueError:  # a kind that DuckDB's Python package has no word for, such as `update extensions`
        return []


@contextmanager
def _errors_of_the_statement() -> Iterator[None]:
    """DuckDB's message without its traceback; a failed cast only shows while rows are fetched."""
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        raise ValueError(f"the score store refused this statement: {error}") from error


def _print_table(result: "DuckDBPyConnection") -> None:
    """A table, or one block per row where a table would not fit the terminal; never more than a screenful or so of rows."""
    from rich import box
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Table

    names = [column[0] for column in result.description or []]
    is_number = [
        "INT" in str(column[1]) or str(column[1]).startswith(("FLOAT", "DOUBLE", "DECIMAL")) for column in result.description or []
    ]
    rows = result.fetchmany(ROWS_ON_TERMINAL + 1)
    table = Table(box=box.SIMPLE_HEAD, header_style="bold")
    for name, number in zip(names, is_number, strict=True):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for row in rows[:ROWS_ON_TERMINAL]:
        table.add_row(*map(_cell, row))
    console = Console()
    width = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    if width <= console.width:
        console.print(table)
    elif not console.is_terminal:  # a pipe or a log wraps nothing
        Console(width=width).print(table)
    else:
        for row in rows[:ROWS_ON_TERMINAL]:
            block = Table.grid(padding=(0, 2))
            for name, value in zip(names, row, strict=True):
                block.add_row(f"[bold]{name}", _cell(value))
            console.print(block, "")
    if len(rows) > ROWS_ON_TERMINAL:
        console.print(f"The first {ROWS_ON_TERMINAL} rows; --format csv|json|parquet writes all of them.")


def _write(con: "DuckDBPyConnection", statement: str, values: dict[str, Any], format_name: str, file: IO[bytes]) -> None:
    """All rows to `file`; JSON is one array, a row per line."""
    if format_name == "parquet":
        import pyarrow.parquet as pq

        # A relation streams its batches; `execute` would hold the whole result (600 MB against 120 for 40 million rows).
        reader = con.sql(statement, params=values).to_arrow_reader(BATCH_ROWS)
        assert reader is not None  # a reading statement has a result
        with pq.ParquetWriter(file, reader.schema, compression="zstd") as writer:
            for batch in reader:
                writer.write_batch(batch)
        return
    result = con.execute(statement, values)
    names = [column[0] for column in result.description or []]
    text = _Text(file)
    if format_name == "csv":
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(names)
        while rows := result.fetchmany(BATCH_ROWS):
            lines.writerows(rows)
        return
    separator = "[\n"
    while rows := result.fetchmany(BATCH_ROWS):
        for row in rows:
            text.write(separator + json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False, default=str))
            separator = ",\n"
    text.write("[]\n" if separator == "[\n" else "\n]\n")


class _Text:
    """UTF-8 onto a binary file that stays open (standard output is not ours to close)."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file

    def write(self, text: str) -> int:
        return self.file.write(text.encode("utf-8", "backslashreplace"))


def _cell(value: object) -> str:
    from rich.markup import escape

    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else escape(str(value))
