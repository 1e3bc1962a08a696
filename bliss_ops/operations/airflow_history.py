"""Airflow's own records of what it ran: old ones go by Airflow's own command.

`airflow db clean` knows which rows depend on which and keeps the last DAG run of every DAG. Where its database is: what the environment
says (a container of the compose file), else the SQLite file of the stack that `bliss up` made.
"""

import logging
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

log = logging.getLogger(__name__)

DATABASE = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"
MOST_SECONDS = 3600.0


def environment(state_dir: Path) -> dict[str, str]:
    """What an `airflow` command needs to find its database.

    Raises:
        ValueError: no database is known.
    """
    if os.environ.get(DATABASE):
        return dict(os.environ)
    home = state_dir.absolute() / "airflow"
    if not (home / "airflow.db").exists():
        raise ValueError(f"Airflow's database is not known: set {DATABASE}, or name the directory of `bliss up` with --state")
    return {**os.environ, "AIRFLOW_HOME": str(home), DATABASE: f"sqlite:///{home / 'airflow.db'}?timeout=60"}


def clean(state_dir: Path, older_than_seconds: float, *, delete: bool) -> None:
    """Delete records older than that, or, without `delete`, have Airflow print how many there are.

    Raises:
        ValueError: Airflow is not installed here, its database is not known, or its command fails; with its own last lines.
    """
    program = Path(sys.executable).parent / "airflow"
    if not program.exists():
        raise ValueError("Airflow is not installed here: run `airflow db clean` where its scheduler runs (docs/operations.md)")
    before = datetime.now(UTC) - timedelta(seconds=older_than_seconds)
    command = [str(program), "db", "clean", "--clean-before-timestamp", before.isoformat(timespec="seconds")]
    command += ["--yes", "--skip-archive"] if delete else ["--dry-run"]
    log.info("running %s", " ".join(command[1:]))
    result = subprocess.run(command, env=environment(state_dir), capture_output=True, text=True, timeout=MOST_SECONDS, check=False)
    sys.stderr.write(result.stdout)
    if result.returncode != 0:
        raise ValueError("`airflow db clean` failed:\n" + "\n".join((result.stderr or result.stdout).strip().splitlines()[-10:]))
