"""A lake and the real stack over it, for one file of slow tests."""

from collections.abc import Iterator

import pytest

from bliss_ops.lake import Lake
from bliss_ops.stack import local
from bliss_ops.stack.state import State


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return Lake.open(tmp_path_factory.mktemp("lake"))


@pytest.fixture(scope="module")
def state(lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> Iterator[State]:
    state = local.up(lake, tmp_path_factory.mktemp("state"))
    try:
        yield state
    finally:
        local.down(state.layout.state_dir)
