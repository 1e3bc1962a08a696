"""A corpus of real text, ingested by the real pipeline, and a run that selected some of its sequences."""

from pathlib import Path

import numpy as np
import pytest

from bliss_ops import pipeline
from bliss_ops.lake import Lake, Run
from tests.corpus import corpora
from tests.lakes import T, make_run


def make_lake(root: Path, source: Path) -> Lake:
    """Two shards of the same documents under other urls, so both have the same number of sequences."""
    for shard in range(2):
        documents = [
            {"text": corpora.text_of(number, sentences=1 + number % 4), "url": f"https://{'ab'[shard]}.example/{number}"}
            for number in range(30)
        ]
        corpora.write_gz(source / f"part-{shard}.json.gz", documents)
    corpus = corpora.configure(root, source=f"{source}/*.json.gz", sequence_length=T)
    for stage in pipeline.CORPUS_STAGES[:-2]:  # all but the validation set and the gates
        stage.do(corpus)
    return corpus.lake


@pytest.fixture(scope="package")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return make_lake(tmp_path_factory.mktemp("lake"), tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="package")
def run(lake: Lake) -> Run:
    """Neighbouring sequences are chosen in runs of about ten, so some documents are selected whole and others are cut."""
    return make_run(lake, score=lambda shard, rows: np.sin(rows / 7.0 + shard) + rows * 1e-5)
