"""The copy of a real Postgres database that `bliss backup --airflow` takes, restored by `pg_restore`."""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bliss_ops.operations import metadata
from bliss_ops.stack import services
from tests.stack import postgres

PASSWORD = "a password/with: signs@"


@pytest.fixture
def port() -> Iterator[int]:
    """A Postgres with the database `airflow`."""
    if reason := postgres.missing():
        pytest.skip(reason)
    directory = Path(tempfile.mkdtemp(prefix="bliss-postgres-"))
    directory.chmod(0o755)  # for the user that Postgres runs as
    number = services.free_port()
    server = subprocess.Popen(postgres.prepare(directory, password=PASSWORD, port=number), stderr=subprocess.DEVNULL)
    try:
        yield number
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(directory)


def _query(port: int, database: str, statement: str) -> str:
    program = postgres.programs() / "psql"  # type: ignore[operator]
    command = [program, "-h", "127.0.0.1", "-p", str(port), "-U", postgres.USER, "-d", database, "-tAc", statement]
    return subprocess.run(command, env={**os.environ, "PGPASSWORD": PASSWORD}, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.slow
def test_postgres_is_dumped_and_restored(port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(100):
        try:
            _query(port, "airflow", "create table dag_run as select 'round-01' as run_id")
            break
        except subprocess.CalledProcessError:
            time.sleep(0.2)
    binaries = postgres.programs()
    monkeypatch.setenv("PATH", f"{binaries}:{os.environ['PATH']}")
    address = f"postgresql+psycopg2://airflow:a%20password%2Fwith%3A%20signs%40@127.0.0.1:{port}/airflow"
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", address)
    file = metadata.dump(tmp_path, tmp_path)
    _query(port, "airflow", "create database again")
    command = [f"{binaries}/pg_restore", "-h", "127.0.0.1", "-p", str(port), "-U", postgres.USER, "--no-owner", "-d", "again", str(file)]
    subprocess.run(command, env={**os.environ, "PGPASSWORD": PASSWORD}, check=True)
    assert _query(port, "again", "select run_id from dag_run") == "round-01"
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", address.replace("a%20password", "another"))
    with pytest.raises(ValueError, match="pg_dump failed") as failure:
        metadata.dump(tmp_path, tmp_path)
    assert "another" not in str(failure.value)
