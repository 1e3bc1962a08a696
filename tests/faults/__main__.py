"""`python -m tests.faults [FAULT ...]`: run rows of the fault matrix; finished ones are kept in the results file and not run again."""

import argparse
import json
import signal
import sys
import tempfile
from pathlib import Path

from bliss_ops.cli import main as bliss
from bliss_ops.lake import Lake
from tests.faults import rows, table
from tests.faults.blows import FAULTS

RESULTS = Path(__file__).with_name("results.json")
DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"


def main() -> int:
    """0 when every row that was asked for is without a problem."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("faults", nargs="*", choices=[[], *FAULTS], help="rows; all that have no result when empty")
    parser.add_argument("--again", action="store_true", help="also rows that have a result")
    parser.add_argument("--seed", type=int, default=0, help="decides the moment of each blow")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--write", action="store_true", help="only put the results' tables into docs/reliability.md")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the cluster is taken down, whoever ends this
    if not arguments.write:
        _run(arguments)
    found = _read(arguments.results)
    if arguments.results == RESULTS and DOCUMENT.exists():
        table.write(DOCUMENT, list(found.values()))
    chosen = [found[name] for name in arguments.faults or found if name in found]
    return int(any(row.problems for row in chosen))


def _run(arguments: argparse.Namespace) -> None:
    asked = [FAULTS[name] for name in arguments.faults or FAULTS]
    left = [fault for fault in asked if arguments.again or fault.name not in _read(arguments.results)]
    with tempfile.TemporaryDirectory(prefix="bliss-reference-") as root:
        reference = _reference(root) if left else None
        while left:
            alike = [fault for fault in left if rows.needs(fault) == rows.needs(left[0])]
            with rows.scene_for(left[0]) as scene:
                for fault in alike:
                    print(f"---- {fault.name}: {fault.words}", flush=True)  # noqa: T201
                    row = rows.run(fault, reference, scene, seed=arguments.seed)
                    found = _read(arguments.results) | {fault.name: row}  # read again: another process may have added its rows
                    arguments.results.write_text(json.dumps([rows.as_json(each) for each in found.values()], indent=1) + "\n")
                    print(table.markdown([row]), flush=True)  # noqa: T201
            left = [fault for fault in left if fault not in alike]


def _reference(root: str) -> Lake:
    """The same work by one undisturbed process."""
    window = f"window_shards={rows.WINDOW_SHARDS}"
    assert bliss(["run", rows.RECIPE, "--methods", "bliss", "--set", "num_rounds=1", "--set", window, "--lake", root]) == 0
    assert bliss(["rescore", rows.RUN, "--round", "1", "--corpus", rows.RECIPE, "--lake", root]) == 0
    assert bliss(["store", "rebuild", "--lake", root]) == 0  # loads both
    return Lake.open(root)


def _read(results: Path) -> dict[str, rows.Row]:
    if not results.exists():
        return {}
    return {values["fault"]: rows.from_json(values) for values in json.loads(results.read_text())}


sys.exit(main())
