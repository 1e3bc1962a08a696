"""`bliss doctor`: everything this product stands on, looked at in a few seconds, and the fix beside each finding."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

import bliss_ops
from bliss_ops.operations import checks_lake, checks_machine, checks_servers
from bliss_ops.operations.findings import Check, Finding, run_checks

SECONDS = 60.0
CONSTRAINTS = Path(bliss_ops.__file__).resolve().parents[1] / "constraints.txt"  # of a clone; an installed package has none


@dataclass(frozen=True)
class Places:
    """Where to look; None takes what the environment says, or the stack that is up."""

    lake: str | None = None
    state_dir: Path = Path(".bliss")
    run: str | None = None  # whose plan is held against the disk
    ray: str | None = None  # address of the Jobs API
    airflow: str | None = None


def checks(places: Places) -> dict[str, Check]:
    """Every check by its name, in the order they are shown."""
    # Here and not in the checks: packages whose modules import each other cannot be imported by several threads at the same time.
    for module in ("bliss_ops.stack.state", "bliss_ops.store", "bliss_ops.sql", "bliss_ops.planning"):
        import_module(module)
    state_dir = places.state_dir.absolute()
    return {
        "versions": partial(checks_machine.versions, CONSTRAINTS),
        "ports": partial(checks_machine.ports, state_dir),
        "disk": partial(checks_machine.disk, places.lake, state_dir, places.run),
        "memory": checks_machine.memory,
        "gpu": checks_machine.gpu,
        "ray": partial(checks_servers.ray, state_dir, places.ray),
        "airflow": partial(checks_servers.airflow, state_dir, places.airflow),
        "s3": partial(checks_lake.object_store, places.lake),
        "duckdb": partial(checks_lake.duckdb, places.lake),
        "lake": partial(checks_lake.records, places.lake),
    }


def examine(places: Places, *, only: list[str] | None = None, seconds: float = SECONDS) -> Iterator[Finding]:
    """What the checks find; each that has no answer within `seconds` is a finding itself.

    Raises:
        ValueError: a check is named that does not exist.
    """
    there = checks(places)
    if unknown := set(only or ()) - there.keys():
        raise ValueError(f"{', '.join(sorted(unknown))}: no such check; there are {', '.join(there)}")
    return run_checks({name: check for name, check in there.items() if not only or name in only}, seconds=seconds)
