"""A copy of the session's finished smoke run (methods random and bliss, two rounds each) that a test may damage."""

import shutil
from pathlib import Path

import pytest

from bliss_ops.lake import Lake


@pytest.fixture
def lake(finished_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    shutil.copytree(finished_root, tmp_path / "lake")
    return Lake.open(tmp_path / "lake")
