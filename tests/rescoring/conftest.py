"""One lake with two corpora that fit each other and one round's score model, made once and copied by every test."""

import shutil
from pathlib import Path

import pytest

from bliss_ops.lake import Lake
from tests.corpus.corpora import rows, write_gz
from tests.rescoring.lakes import fit, ingest, tokenizer_of, write_shards


@pytest.fixture(scope="session")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rescoring")
    lake = Lake.open(root / "lake")
    validation = write_gz(root / "validation.json.gz", rows(6, start=900))
    small = ["--set", "ingest.vocab_size=512", "--set", "ingest.sequence_length=32"]
    ingest(lake, "own", write_shards(root / "own"), *small, validation=validation)
    fit(lake, num_rounds=2)
    ingest(lake, "new", write_shards(root / "new", start=500), *tokenizer_of(lake))
    return root


@pytest.fixture
def lake(_made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    """A copy at another address: what is in it must not depend on where it is."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    shutil.copytree(_made / "lake", tmp_path / "lake")
    return Lake.open(tmp_path / "lake")
