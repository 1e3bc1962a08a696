"""`bliss explore`: the explorer alone, for this machine's user."""

import argparse
import sys
from typing import Any

from bliss_ops.cli.arguments import add_command
from bliss_ops.lake import Lake


def add_commands(commands: Any) -> None:
    """The commands of this file."""
    explore = add_command(commands, "explore", serve, "Browse the scores in a web browser (127.0.0.1 only).")
    explore.add_argument("--port", type=int, default=8090, help="default: %(default)s; 0 takes any free one")


def serve(arguments: argparse.Namespace) -> int:
    """`bliss explore`."""
    try:
        from bliss_ops.explorer.server import serve as serve_explorer
    except ModuleNotFoundError as error:
        raise ValueError(f"{error.name} is not installed: pip install 'bliss-ops[explore]'") from error

    def ready(address: str) -> None:
        sys.stdout.write(f"The explorer is at {address} (Ctrl+C stops it)\n")
        sys.stdout.flush()

    serve_explorer(Lake.open(arguments.lake), arguments.port, ready)
    return 0
