"""`bliss`: one sub-command per stage, and the few that put stages together; a file of this folder for each group of commands.

Errors a user can fix are one paragraph on stderr and exit code 1; anything else is ours and shows its traceback.
"""

import argparse
import logging
import sys
from collections.abc import Sequence

from bliss_ops import __version__, release
from bliss_ops.cli import exchange, explore, gates, operations, plan, reports, rescoring, runs, scores, stack, stages, store

# in the order of `bliss --help`
GROUPS = (runs, plan, gates, reports, scores, store, exchange, explore, rescoring, stack, operations, stages)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=sys.stderr, force=True)
    try:
        release.check()
        return arguments.command(arguments) or 0
    except (ValueError, OSError) as error:
        if arguments.traceback:
            raise
        sys.stderr.write(f"bliss {arguments.subcommand}: {_printable(str(error))}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"bliss {arguments.subcommand}: interrupted; the same command resumes\n")
        return 130


def _printable(message: str) -> str:
    """A message may quote what came from elsewhere: what would steer the terminal or forge lines of a log is spelled out."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in message)


def build_parser() -> argparse.ArgumentParser:
    """Every sub-command with its arguments."""
    parser = argparse.ArgumentParser(prog="bliss", description="Learn which pretraining sequences help, keep the best, train on them.")
    parser.add_argument("--version", action="version", version=f"bliss {__version__}")
    commands = parser.add_subparsers(dest="subcommand", required=True, metavar="COMMAND")
    for group in GROUPS:
        group.add_commands(commands)
    return parser
