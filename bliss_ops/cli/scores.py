"""`bliss sql`: asking the score store."""

import argparse
import sys
from typing import Any

from bliss_ops import queries
from bliss_ops.cli.arguments import add_command
from bliss_ops.lake import Lake


def add_commands(commands: Any) -> None:
    """The commands of this file."""
    sql = add_command(commands, "sql", query, "Ask the published score store, read-only.")
    what = sql.add_mutually_exclusive_group(required=True)
    what.add_argument("statement", nargs="?", help='for example "select * from domain_scores limit 10"')
    what.add_argument("--query", metavar="NAME", help="a named query instead of a statement")
    what.add_argument("--list", action="store_true", help="list the named queries with the questions they answer")
    sql.add_argument("--param", action="append", default=[], metavar="NAME=VALUE", help="a parameter of the named query; repeatable")
    sql.add_argument("--format", choices=("table", "csv", "json", "parquet"), default="table")
    sql.add_argument("--output", help="file to write instead of the terminal")


def query(arguments: argparse.Namespace) -> int:
    """`bliss sql`."""
    from bliss_ops.sql import run_named, run_query

    if arguments.list:
        sys.stdout.write("".join(f"{one.name}\n  {one.question}\n{one.usage}\n\n" for one in map(queries.load, queries.names())))
        return 0
    if arguments.query is None:
        if arguments.param:
            raise ValueError("--param belongs to --query NAME; write the values of a statement of your own into it")
        run_query(Lake.open(arguments.lake), arguments.statement, format=arguments.format, output=arguments.output)
        return 0
    run_named(Lake.open(arguments.lake), arguments.query, _parameters(arguments.param), format=arguments.format, output=arguments.output)
    return 0


def _parameters(items: list[str]) -> dict[str, str]:
    values = {}
    for item in items:
        name, separator, value = item.partition("=")
        if not separator:
            raise ValueError(f"--param {item!r}: write NAME=VALUE, for example limit=5")
        values[name.strip()] = value
    return values
