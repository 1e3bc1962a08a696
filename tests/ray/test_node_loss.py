"""A node lost in the middle of each stage that is spread over nodes: the files of an undisturbed run, and each shard once."""

import os
import shutil
import subprocess
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from upath import UPath

from bliss_ops import pipeline
from bliss_ops.lake import Lake, Run
from bliss_ops.launching import launch_here
from bliss_ops.manifest import Manifest, read_manifest
from bliss_ops.models import language
from bliss_ops.sharding import Metrics
from tests.bilevel import drivers, jobs
from tests.bilevel.drivers import REPOSITORY
from tests.corpus.corpora import contents, rows, write_gz
from tests.ray import scored
from tests.ray.watched import paused
from tests.rescoring.lakes import RUN, T, fit, ingest, tokenizer_of, write_shards
from tests.training import jobs as training_jobs

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(find_spec("pandas") is None, reason="ray.train needs pandas: pip install 'bliss-ops[ray]'"),
]

NUM_SHARDS = 6


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    (tmp_path / "watched").mkdir()
    return tmp_path / "watched"


def lose_a_node(stage: str, root: Path | str, watched: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.ray.lost_node", stage, str(root), str(watched)],
        env=environment | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    assert len(paused(watched)) == 2


def counts(manifest: Manifest) -> Metrics:
    """What a manifest says but for the speed."""
    return {name: value for name, value in manifest.metrics.items() if name != "tokens_per_second"}


@pytest.fixture(scope="module")
def scored_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = scored.make_run(tmp_path_factory.mktemp("scored"))
    pipeline.score(run, 1)
    return run


def test_score(scored_run: Run, tmp_path: Path, watched: Path) -> None:
    shutil.copytree(scored_run.lake.root.path, tmp_path / "lake", ignore=shutil.ignore_patterns("scores"))
    lose_a_node("score", tmp_path / "lake", watched)
    assert scored.hashes(Lake.open(tmp_path / "lake").run(scored.NAME)) == scored.hashes(scored_run)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A corpus of several shards, re-scored by a model of another corpus: everything made by one process."""
    root = tmp_path_factory.mktemp("lake")
    lake = Lake.open(root / "lake")
    settings = ["--set", "ingest.vocab_size=512", "--set", f"ingest.sequence_length={T}"]
    validation = write_gz(root / "validation.json.gz", rows(6, start=900))
    ingest(lake, "own", write_shards(root / "own"), *settings, validation=validation)
    fit(lake)
    ingest(lake, "many", write_shards(root / "many", NUM_SHARDS, start=2000, documents=60), *tokenizer_of(lake))
    pipeline.rescore(lake.run(RUN), 1, lake.corpus("many"))
    return lake


@pytest.mark.parametrize("stage", ["extract", "pack", "rescore"])
def test_a_sharded_stage(lake: Lake, tmp_path: Path, watched: Path, stage: str) -> None:
    shutil.copytree(lake.root.path, tmp_path / "lake")
    corpus, (scores,) = lake.corpus("many"), lake.further_score_names()
    artifact = {"extract": corpus.documents, "pack": corpus.sequences, "rescore": lake.further_scores(*scores)}[stage]
    again = UPath(tmp_path / "lake" / lake.relative(artifact))
    shutil.rmtree(again.path)
    lose_a_node(stage, tmp_path / "lake", watched)
    ours, theirs = (read_manifest(each, made_by="the test") for each in (again, artifact))
    assert ours.shards == list(range(NUM_SHARDS))
    assert (ours.outputs, counts(ours), ours.fingerprint) == (theirs.outputs, counts(theirs), theirs.fingerprint)
    assert contents(again) == contents(artifact)


def test_fit_goes_on_with_the_worker_that_is_left(tmp_path: Path, watched: Path) -> None:
    """Rounding differs: the last steps are one worker's. Adam divides by the square root of a tiny number, hence the tolerance."""
    jobs.write_candidates(tmp_path)
    launch_here(partial(jobs.train, str(tmp_path / "undisturbed"), drivers.SETTINGS), 2)
    lose_a_node("fit", tmp_path, watched)
    ours, theirs = (language.read_tensors(UPath(tmp_path / name / jobs.MODEL)) for name in ("job", "undisturbed"))
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-3, atol=1e-4)
    assert (tmp_path / "job" / "metrics.jsonl").read_text().count("\n") == (tmp_path / "undisturbed" / "metrics.jsonl").read_text().count(
        "\n"
    )


def test_pretrain_goes_on_with_the_worker_that_is_left(tmp_path: Path, watched: Path) -> None:
    """In float64, so what one worker adds up in another order shows in the last digits only."""
    for name in ("undisturbed", "job"):
        (tmp_path / name).mkdir()
    launch_here(partial(training_jobs.train, str(tmp_path / "undisturbed"), 6), 2)
    lose_a_node("pretrain", tmp_path / "job", watched)
    ours, theirs = (language.read_tensors(UPath(tmp_path / name / "state.safetensors")) for name in ("job", "undisturbed"))
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        torch.testing.assert_close(ours[name], expected, rtol=1e-6, atol=1e-9)
