"""The finished smoke run of the session, and copies of it for the tests that change something."""

import shutil
from pathlib import Path

import pytest

from bliss_ops.lake import Lake


@pytest.fixture
def finished(finished_root: Path) -> Lake:
    """The finished lake, to be read only."""
    return Lake.open(finished_root)


@pytest.fixture
def copied(finished_root: Path, tmp_path: Path) -> Lake:
    """A copy of the finished lake that a test may damage."""
    shutil.copytree(finished_root, tmp_path / "lake")
    return Lake.open(tmp_path / "lake")
