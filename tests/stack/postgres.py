"""A real PostgreSQL for the slow tests, from Debian's packages: a cluster of its own on one directory, on 127.0.0.1.

It refuses to run as root; where the tests do, its commands change to the user `postgres`, who must be able to reach the directory.
"""

import os
import shutil
import subprocess
from pathlib import Path

USER = "airflow"


def programs() -> Path | None:
    """The directory of the newest installed version's programs, or None."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else None


def missing() -> str:
    """What keeps it from running here; empty when nothing does."""
    return "" if programs() else "PostgreSQL is not installed (Debian: postgresql)"


def prepare(directory: Path, *, password: str, port: int) -> list[str]:
    """Make a database cluster below `directory` with the user and database `airflow`; returns the server's command."""
    binaries = programs()
    assert binaries is not None, missing()
    data = directory / "data"
    if not (data / "PG_VERSION").exists():
        data.mkdir(parents=True, exist_ok=True)
        password_file = directory / "password"
        password_file.write_text(password)
        if os.geteuid() == 0:
            for path in (directory, data, password_file):
                shutil.chown(path, "postgres", "postgres")
        initdb = [
            binaries / "initdb",
            "--pgdata",
            data,
            "--username",
            USER,
            "--auth",
            "scram-sha-256",
            "--pwfile",
            password_file,
            "--no-sync",
        ]
        _run([*_as_user(), *map(str, initdb)], directory)
        single = [binaries / "postgres", "--single", "-D", data, "postgres"]
        _run([*_as_user(), *map(str, single)], directory, stdin=f"create database {USER}\n")
        password_file.unlink()
    settings = {"listen_addresses": "127.0.0.1", "port": port, "unix_socket_directories": directory}
    options = [text for name, value in settings.items() for text in ("-c", f"{name}={value}")]
    return [*_as_user(), str(binaries / "postgres"), "-D", str(data), *options]


def _as_user() -> list[str]:
    return ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if os.geteuid() == 0 else []


def _run(command: list[str], directory: Path, stdin: str = "") -> None:
    done = subprocess.run(command, cwd=directory, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
