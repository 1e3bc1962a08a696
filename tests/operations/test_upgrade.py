"""A lake that an earlier version wrote is used by this one: nothing is made again, the store opens, a new round goes on from it."""

import io
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from bliss_ops.cli import main
from bliss_ops.lake import Lake
from tests.operations.lakes import digests

FORMER = "f3983f5"  # the last commit before clean-up records, gates and the object-store layer
REPOSITORY = Path(__file__).parents[2]
RUN = "smoke-random-s0"


@pytest.mark.slow
def test_a_lake_of_a_former_version_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    archive = subprocess.run(["git", "archive", FORMER], cwd=REPOSITORY, capture_output=True, check=False)
    if archive.returncode != 0:
        pytest.skip(f"commit {FORMER} is not in this clone")
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(tmp_path / "former", filter="data")
    lake = Lake.open(tmp_path / "lake")
    settings = ["--set", "window_shards=3", "--set", "num_rounds=1"]
    command = [sys.executable, "-m", "bliss_ops.cli", "run", "smoke", "--methods", "random", "--lake", str(lake.root), *settings]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "former")}
    subprocess.run(command, cwd=tmp_path / "former", env=environment, check=True)
    before = digests(lake, RUN)
    root = ["--lake", str(lake.root)]
    assert main(["store", "check", *root]) == 0
    assert main(["run", "smoke", "--methods", "random", *settings, *root]) == 0
    now = digests(lake, RUN)
    assert {name: now[name] for name in before if name != "report"} == {name: value for name, value in before.items() if name != "report"}
    assert main(["extend", RUN, "--rounds", "2", "--run", *root]) == 0
    assert {name: value for name, value in digests(lake, RUN).items() if name in before and name != "report"} == {
        name: value for name, value in before.items() if name != "report"
    }
    assert main(["backup", str(tmp_path / "backup"), *root]) == 0
    assert main(["gc", "--older-than", "0s", "--delete", *root]) == 0
    assert main(["doctor", "--only", "lake", "--only", "duckdb", *root]) == 0
    assert main(["store", "rebuild", *root]) == 0
    assert main(["store", "check", *root]) == 0
