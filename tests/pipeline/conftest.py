"""One finished smoke run, made once per test session and copied by the tests that change something."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bliss_ops.cli import main
from bliss_ops.lake import Lake


@pytest.fixture(scope="session")
def finished_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A lake in which `bliss run smoke` has finished: do not change it."""
    root = tmp_path_factory.mktemp("smoke") / "lake"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        assert main(["run", "smoke", "--lake", str(root)]) == 0
        yield root


@pytest.fixture
def finished(finished_root: Path) -> Lake:
    """The finished lake, to be read only."""
    return Lake.open(finished_root)


@pytest.fixture
def copied(finished_root: Path, tmp_path: Path) -> Lake:
    """A copy of the finished lake that a test may damage."""
    shutil.copytree(finished_root, tmp_path / "lake")
    return Lake.open(tmp_path / "lake")
