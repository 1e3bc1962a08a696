"""`bliss gc` of re-scored corpora: the superseded set goes, from Parquet and from the score store; and of an object store."""

from pathlib import Path
from typing import Any

import pytest

from bliss_ops import pipeline, store
from bliss_ops.cli import main
from bliss_ops.collected import find_collected
from bliss_ops.lake import Lake
from bliss_ops.operations import collecting
from bliss_ops.operations.retention import Policy, plan
from bliss_ops.rescoring import pending
from bliss_ops.sql import open_snapshot
from bliss_ops.store.check import Checked, check
from tests.corpus.corpora import rows, write_gz
from tests.lakes import make_corpus, make_run
from tests.operations.lakes import contents
from tests.rescoring.lakes import RUN, fit, ingest, tokenizer_of, write_shards

NOW = Policy(older_than_seconds=0, kinds=("scores",))


@pytest.fixture(scope="module")
def rescored(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """A corpus that two rounds of one run have scored: the second set supersedes the first."""
    root = tmp_path_factory.mktemp("rescored")
    lake = Lake.open(root / "lake")
    small = ["--set", "ingest.vocab_size=512", "--set", "ingest.sequence_length=32"]
    ingest(lake, "own", write_shards(root / "own"), *small, validation=write_gz(root / "validation.json.gz", rows(6, start=900)))
    fit(lake, num_rounds=2)
    ingest(lake, "new", write_shards(root / "new", start=500), *tokenizer_of(lake))
    for number in (1, 2):
        pipeline.rescore(lake.run(RUN), number, lake.corpus("new"))
    for corpus, name in lake.further_score_names():
        pipeline.load_scores(lake.corpus(corpus), name)
    return lake


def in_store(lake: Lake) -> list[str]:
    with open_snapshot(lake) as con:
        return [name for (name,) in con.execute("select score_run_id from score_runs order by 1").fetchall()]


def problems(lake: Lake) -> list[str]:
    return list(check(lake, Checked()))


def test_superseded_scores_go_and_come_back(rescored: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    lake, before = rescored, contents(rescored, "scores")
    older, newer = in_store(lake)
    assert "round-01" in older
    found = plan(lake, NOW)
    assert [item.address for item in found.items] == [older]
    assert collecting.collect(lake, found.items).problems == []
    assert in_store(lake) == [newer]
    assert problems(lake) == []
    store.rebuild(lake)
    assert in_store(lake) == [newer]
    assert problems(lake) == []
    assert plan(lake, NOW).items == []
    assert not any(pair.num_missing for pair in pending(lake, corpora=["new"], runs=[RUN]))  # the nightly look finds nothing to do
    assert main(["rescore", RUN, "--round", "1", "--corpus", "new", "--lake", str(lake.root)]) == 0
    capsys.readouterr()
    assert main(["load-scores", *older.split("/")[1:], "--lake", str(lake.root)]) == 1
    assert f"run `bliss remake {older}`" in capsys.readouterr().err
    assert main(["remake", older, "--lake", str(lake.root)]) == 0
    assert {address: sha256 for address, sha256 in contents(lake, "scores").items() if address.endswith(".parquet")} == {
        address: sha256 for address, sha256 in before.items() if address.endswith(".parquet")
    }
    assert main(["load-scores", *older.split("/")[1:], "--lake", str(lake.root)]) == 0
    assert in_store(lake) == [older, newer]
    assert problems(lake) == []


def test_of_two_rounds_to_keep_nothing_goes(rescored: Lake) -> None:
    assert plan(rescored, Policy(older_than_seconds=0, kinds=("scores",), keep_rounds=2)).items == []


def test_a_lake_on_an_object_store(s3: Any, tmp_path: Path) -> None:
    s3.mkdir("clean")
    lake = make_corpus("s3://clean/lake")
    make_run(lake, "random", num_rounds=2)
    for number in (1, 2):
        s3.pipe_file(f"clean/lake/runs/demo-random-s0/round-0{number}/subset/shard-00000.parquet", b"tokens")
    _finish_by_hand(lake)
    upload = s3.call_s3("create_multipart_upload", Bucket="clean", Key="lake/runs/x/state.safetensors")
    s3.call_s3(
        "upload_part", Bucket="clean", Key="lake/runs/x/state.safetensors", UploadId=upload["UploadId"], PartNumber=1, Body=b"a" * 100
    )
    s3.call_s3("create_multipart_upload", Bucket="clean", Key="not-the-lake/x")
    found = plan(lake, Policy(older_than_seconds=0))  # the mock says that every upload began in 2010
    assert [(item.kind, item.address, item.num_bytes) for item in found.items if item.kind != "subsets"] == [
        ("uploads", "runs/x/state.safetensors", 100)
    ]
    assert [item.address for item in found.items if item.kind == "subsets"] == ["runs/demo-random-s0/round-01/subset"]
    assert collecting.collect(lake, found.items).problems == []
    assert not (lake.run("demo-random-s0").round(1) / "subset" / "shard-00000.parquet").exists()
    assert (lake.run("demo-random-s0").round(2) / "subset" / "shard-00000.parquet").exists()
    assert find_collected(lake.run("demo-random-s0").round(1) / "subset") is not None
    left = s3.call_s3("list_multipart_uploads", Bucket="clean")["Uploads"]
    assert [one["Key"] for one in left] == ["not-the-lake/x"]


def _finish_by_hand(lake: Lake) -> None:
    """The artifacts that a round without models lacks."""
    from bliss_ops.manifest import find_manifest
    from bliss_ops.operations.retention import OF_A_ROUND
    from tests.lakes import produce

    run = lake.run("demo-random-s0")
    for number in (1, 2):
        for name in OF_A_ROUND:
            directory = run.round(number) / name
            files = ["shard-00000.parquet"] if name == "subset" else []
            if find_manifest(directory) is None:
                produce(lake, directory, name, lambda _, files=files: (files, {}))
