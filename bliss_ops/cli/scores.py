"""`bliss sql`: asking the score store."""

import argparse
from typing import Any

from bliss_ops.cli.arguments import add_command
from bliss_ops.lake import Lake


def add_commands(commands: Any) -> None:
    """The commands of this file."""
    sql = add_command(commands, "sql", query, "Ask the published score store, read-only.")
    sql.add_argument("statement", help='for example "select * from domain_scores limit 10"')
    sql.add_argument("--format", choices=("table", "csv", "json", "parquet"), default="table")
    sql.add_argument("--output", help="file to write instead of the terminal")


def query(arguments: argparse.Namespace) -> int:
    """`bliss sql`."""
    from bliss_ops.sql import run_query

    run_query(Lake.open(arguments.lake), arguments.statement, format=arguments.format, output=arguments.output)
    return 0
