"""The pipeline with its lake on a real S3 server (Swift, behind the proxy): as on a disk, also while the store fails for a time.

Slow. What an object store does to the smoke recipe's artifacts is compared with the session's finished local run of it.
"""

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from upath import UPath

from bliss_ops import object_store, pipeline
from bliss_ops.cli import main
from bliss_ops.configure import configure_corpus, configure_run
from bliss_ops.lake import Lake, names_in, sweep_temporary_files, write_bytes
from bliss_ops.manifest import find_manifest
from bliss_ops.object_store import errors, file_system
from bliss_ops.recipes import load_recipe
from tests.artifacts import manifests
from tests.s3.faulty_proxy import FaultyProxy
from tests.stack import swift

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(bool(swift.missing()), reason=swift.missing() or "Swift is there"),
]

ROOT = "s3://lake/here"
ALL = "select score_run_id, sequence_id, score from all_scores order by score_run_id, sequence_id"


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyProxy]:
    import s3fs

    with (
        swift.swift(tmp_path_factory.mktemp("swift")) as server,
        FaultyProxy(server.endpoint) as proxy,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in {**server.environment, "AWS_ENDPOINT_URL": proxy.endpoint}.items():
            patch.setenv(name, value)
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("scratch")))  # the loader's working file is kept there
        s3fs.S3FileSystem().mkdir("lake")
        yield proxy


@pytest.fixture(autouse=True)
def _no_faults(proxy: FaultyProxy) -> None:
    proxy.clear()
    proxy.forget()


def same(lake: Lake, other: Lake, prefix: str = "") -> int:
    """Asserts that what both lakes hold below the prefix is of one fingerprint and one content; how many artifacts that are."""
    ours, theirs = ({name: each for name, each in manifests(where).items() if name.startswith(prefix)} for where in (lake, other))
    assert ours.keys() == theirs.keys()
    assert {name: each.fingerprint for name, each in ours.items()} == {name: each.fingerprint for name, each in theirs.items()}
    assert {name: each.digest for name, each in ours.items()} == {name: each.digest for name, each in theirs.items()}
    return len(ours)


def answer(lake: Lake, statement: str, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()  # what was said before
    assert main(["sql", statement, "--format", "csv", "--lake", str(lake.root)]) == 0
    return capsys.readouterr().out


def test_two_rounds_leave_what_they_leave_on_a_disk(proxy: FaultyProxy, finished_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    local, lake = Lake.open(finished_root), Lake.open(ROOT)
    assert main(["run", "smoke", "--lake", ROOT]) == 0
    assert same(lake, local) > 20
    assert answer(lake, ALL, capsys) == answer(local, ALL, capsys)
    proxy.forget()
    assert main(["run", "smoke", "--lake", ROOT]) == 0
    assert not {"DELETE", "UPLOAD_PART"} & proxy.counts().keys(), "the same command twice does no second work"
    assert main(["store", "check", "--lake", ROOT]) == 0


def test_every_selector(proxy: FaultyProxy, finished_root: Path, tmp_path: Path) -> None:
    """One round each, of the corpus that is there, with one warm-up: the same on a copy of the local lake."""
    shutil.copytree(finished_root, tmp_path / "lake")
    for method in ("random", "dsir", "classifier", "perplexity", "less", "mates"):
        for root in (ROOT, str(tmp_path / "lake")):
            lake = Lake.open(root)
            run = configure_run(lake, "smoke", method, 0, overrides={"num_rounds": 1}, name=f"one-{method}")
            pipeline.run_round(lake, run.name, 1)
        assert same(Lake.open(ROOT), Lake.open(tmp_path / "lake"), f"runs/one-{method}") >= 9


def test_exports_and_rescoring(proxy: FaultyProxy, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lake, run = Lake.open(ROOT), "smoke-bliss-s0"
    for format_name in ("jsonl", "parquet", "nanogpt", "megatron"):
        for output in (f"s3://lake/out/{format_name}", str(tmp_path / format_name)):
            assert main(["export", run, "--round", "1", "--format", format_name, "--output", output, "--lake", ROOT]) == 0
        there = UPath(f"s3://lake/out/{format_name}")
        names = [name for name in names_in(there) if name not in ("begun.json", "manifest.json", "_shards")]
        assert names
        for name in names:
            assert (there / name).read_bytes() == (tmp_path / format_name / name).read_bytes()
    assert main(["rescore", run, "--round", "1", "--corpus", "smoke", "--lake", ROOT]) == 0
    ((corpus, name),) = lake.further_score_names()
    assert main(["load-scores", corpus, name, "--lake", ROOT]) == 0
    assert main(["store", "check", "--lake", ROOT]) == 0


def test_a_stage_outlives_30_seconds_of_errors(proxy: FaultyProxy, finished_root: Path, caplog: pytest.LogCaptureFixture) -> None:
    lake = Lake.open("s3://lake/outage")
    configure_corpus(lake, load_recipe("smoke"))
    pipeline.discover(lake.corpus("smoke"))
    rules = [proxy.fail(503, path="outage", seconds=10), proxy.fail(500, path="outage", seconds=20), proxy.hang(path="outage", seconds=30)]
    with caplog.at_level(logging.WARNING, logger="bliss_ops"):
        pipeline.extract(lake.corpus("smoke"))
    assert all(rule.num_hits for rule in rules)
    assert "try 2 in" in caplog.text
    assert same(lake, Lake.open(finished_root), "corpora/smoke/documents") == 1


def test_a_stage_that_the_store_has_failed_resumes(
    proxy: FaultyProxy, finished_root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(object_store.RETRY_SECONDS, "2")
    assert main(["train-tokenizer", "smoke", "--lake", "s3://lake/outage"]) == 0
    proxy.fail(503, method="PUT", path=r"sequences.*/shard-00003\.parquet")
    assert main(["pack", "smoke", "--lake", "s3://lake/outage"]) == 1
    said = capsys.readouterr().err
    assert "bliss pack: s3://lake/outage/corpora/smoke/sequences" in said
    assert "the same command resumes" in said
    corpus = Lake.open("s3://lake/outage").corpus("smoke")
    assert find_manifest(corpus.sequences) is None
    proxy.clear()
    proxy.forget()
    assert main(["pack", "smoke", "--lake", "s3://lake/outage"]) == 0
    again = [request for request in proxy.requests if request.method == "PUT" and "shard-00000.parquet" in request.path]
    assert not again, "shards that were done are not made again"
    assert same(corpus.lake, Lake.open(finished_root), "corpora/smoke/sequences") == 1


def test_large_files(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_system, "PART_BYTES", 5 * 2**20)
    content, path = os.urandom(23 * 2**20 + 1), UPath(ROOT) / "large"
    proxy.cut_upload(path="partNumber=3", count=1)
    write_bytes(path, content)
    proxy.cut_download(method="GET", path="large", count=2)
    assert path.read_bytes() == content
    proxy.cut_download(method="POST", path="uploadId", count=1)  # the answer to the completion is lost
    write_bytes(path, content[::-1])
    assert path.read_bytes() == content[::-1]
    path.fs.call_s3("create_multipart_upload", Bucket="lake", Key="here/killed/large")
    sweep_temporary_files(UPath(ROOT) / "killed")
    assert len(path.fs.list_multipart_uploads("lake")) == 1, "it may belong to a writer that is alive"
    sweep_temporary_files(UPath(ROOT) / "killed", older_than_seconds=-5)
    assert not path.fs.list_multipart_uploads("lake")


def test_what_the_server_itself_refuses(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(errors.BucketMissingError, match="bucket 'nowhere' does not exist at"):
        UPath("s3://nowhere/a").read_bytes()
    with pytest.raises(errors.BucketMissingError, match="bucket 'nowhere' does not exist at"):
        UPath("s3://nowhere/a").is_file()
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-3")
    with pytest.raises(FileNotFoundError):  # botocore signs again for the region that the refusal names
        (UPath(ROOT) / "a").read_bytes()
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(errors.AccessDeniedError, match="AWS_SECRET_ACCESS_KEY"):
        (UPath(ROOT) / "a").read_bytes()
