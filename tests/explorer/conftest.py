"""One small lake for all tests of the explorer, and the explorer over it as a client sees it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from bliss_ops import store
from bliss_ops.explorer.app import create_app
from bliss_ops.explorer.guard import LOOPBACK
from bliss_ops.lake import Lake
from tests.lakes import make_corpus, make_further_scores, make_run


def make_lake(root: Path) -> Lake:
    """Two rounds by bliss, one by random, re-scored and imported scores of the same sequences; one document is a script."""
    lake = make_corpus(root)
    run = make_run(lake, "bliss", num_rounds=2)
    make_run(lake, "random")
    make_further_scores(lake, "demo-bliss-s0-round-01-0a1b2c3d", lambda shard, rows: shard - rows / 30, of=(run, 1))
    make_further_scores(lake, "elsewhere", lambda shard, rows: np.sin(rows + shard))
    store.sync_lake(lake)
    return lake


@pytest.fixture(scope="session")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return make_lake(tmp_path_factory.mktemp("explorer") / "lake")


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Slots and copies of this test alone."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def client(lake: Lake) -> Iterator[TestClient]:
    with TestClient(create_app(lake, hosts=LOOPBACK), base_url="http://127.0.0.1") as client:
        yield client
