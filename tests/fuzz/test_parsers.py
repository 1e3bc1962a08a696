"""Every parser on random and on mutated well formed input, the same input at every run; and every input that has once broken one."""

import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import targets

REPOSITORY = Path(__file__).parents[2]
SLOW_TO_START = {"model-configs", "safetensors"}  # import transformers and torch
FOUND = json.loads((Path(__file__).parent / "found.json").read_text())  # target -> inputs in hexadecimal


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What is fuzzed warns thousands of times."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def mutated(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """A seed with a few bytes replaced, cut out or put in; or bytes of any kind."""
    edits = st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 4), st.binary(max_size=4)), min_size=1, max_size=6)

    def edit(seed: bytes, changes: list[tuple[int, int, bytes]]) -> bytes:
        for at, cut, put in changes:
            at %= len(seed) + 1
            seed = seed[:at] + put + seed[at + cut :]
        return seed

    anything = st.binary(max_size=200)
    return st.one_of(anything, st.builds(edit, st.sampled_from(seeds), edits)) if seeds else anything


@pytest.mark.parametrize("target", targets.TARGETS)
def test_only_documented_errors(target: str) -> None:
    seeds = targets.seeds(target)

    @settings(
        max_examples=30 if target in SLOW_TO_START else 80,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(mutated(seeds))
    def check(data: bytes) -> None:
        targets.run(target, data)

    for seed in seeds:
        targets.run(target, seed)
    check()


@pytest.mark.parametrize(("target", "data"), [(target, data) for target, found in FOUND.items() for data in found])
def test_what_was_found_stays_mended(target: str, data: str) -> None:
    targets.run(target, bytes.fromhex(data))


@pytest.mark.slow
@pytest.mark.parametrize("target", targets.TARGETS)
def test_atheris_finds_nothing_in_ten_seconds(target: str, tmp_path: Path) -> None:
    pytest.importorskip("atheris")
    begun = time.monotonic()
    command = [sys.executable, "-m", "tests.fuzz.atheris_run", target, f"-artifact_prefix={tmp_path}/", "-max_total_time=10"]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "stat::number_of_executed_units" in done.stderr or "Done" in done.stderr
    assert time.monotonic() - begun < 200
