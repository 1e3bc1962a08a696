"""A consistent copy of Airflow's database while Airflow uses it: SQLite by its own backup call, Postgres by `pg_dump`."""

import os
import shutil
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from bliss_ops.operations.airflow_history import DATABASE, environment

SQLITE, POSTGRES = "airflow.db", "airflow.dump"
MOST_SECONDS = 3600.0


def dump(state_dir: Path, directory: Path) -> Path:
    """Write a copy of the database into `directory`; returns the file.

    Raises:
        ValueError: no database is known, it is of another kind, or a tool is missing or failed.
    """
    address = urlsplit(environment(state_dir)[DATABASE])
    kind = address.scheme.split("+")[0]
    if kind == "sqlite":
        return _sqlite(Path(unquote(address.path[1:] if address.path.startswith("//") else address.path)), directory / SQLITE)
    if kind in ("postgresql", "postgres"):
        program = shutil.which("pg_dump")
        if program is None:
            raise ValueError("pg_dump is not installed here: run it where Postgres is (docs/operations.md), or install postgresql-client")
        file = directory / POSTGRES
        command = [program, "--format=custom", "--no-owner", f"--file={file}", "--no-password"]
        command += [f"--host={address.hostname or 'localhost'}", f"--port={address.port or 5432}"]
        command += [f"--username={unquote(address.username or '')}"] if address.username else []
        command += [f"--dbname={unquote(address.path.lstrip('/'))}"]
        password = {"PGPASSWORD": unquote(address.password)} if address.password else {}  # not an argument: those can be seen by everybody
        result = subprocess.run(command, env={**os.environ, **password}, capture_output=True, text=True, timeout=MOST_SECONDS, check=False)
        if result.returncode != 0:
            raise ValueError(f"pg_dump failed: {result.stderr.strip()}")
        return file
    raise ValueError(f"Airflow's database is a {kind!r}: back it up with its own tools, `bliss backup` knows SQLite and Postgres")


def _sqlite(source: Path, target: Path) -> Path:
    if not source.exists():
        raise ValueError(f"{source} is not there: name the stack's directory with --state")
    with (
        closing(sqlite3.connect(f"{source.absolute().as_uri()}?mode=ro", uri=True, timeout=60)) as old,
        closing(sqlite3.connect(target)) as new,
    ):
        old.backup(new, pages=1000, sleep=0.05)
        (verdict,) = new.execute("pragma integrity_check").fetchone()
    if verdict != "ok":
        raise ValueError(f"{source} is damaged: {verdict}")
    return target
