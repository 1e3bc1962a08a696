"""Statements with named parameters, and transactions that roll back on any exception."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection


def execute(con: "DuckDBPyConnection", statement: str, parameters: Mapping[str, Any]) -> "DuckDBPyConnection":
    """Execute with those of `parameters` that the statement names: DuckDB refuses the others."""
    (parsed,) = con.extract_statements(statement)
    return con.execute(parsed, {name: parameters[name] for name in parsed.named_parameters})


@contextmanager
def transaction(con: "DuckDBPyConnection") -> Iterator[None]:
    """All of the block or nothing of it."""
    con.begin()
    try:
        yield
    except BaseException:
        con.rollback()
        raise
    con.commit()  # rolls back by itself where it fails, a full disk for example


def in_transaction(con: "DuckDBPyConnection", statements: tuple[str, ...], parameters: Mapping[str, Any]) -> None:
    """Several statements, each with those of `parameters` that it names."""
    with transaction(con):
        for statement in statements:
            execute(con, statement, parameters)
