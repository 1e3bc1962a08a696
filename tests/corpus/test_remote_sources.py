"""Sources on an object store and over HTTP: the same documents as from disk, and clear words when they cannot be reached."""

import http.server
import json
import os
import threading
import time
from functools import partial

import pytest

from bliss_ops import pipeline
from tests.corpus.corpora import configure, contents, json_lines, rows, write_gz

BUCKET = "shards"


@pytest.fixture(scope="module", autouse=True)
def bucket(s3):
    s3.mkdir(BUCKET)


def ingest(lake, source):
    corpus = configure(lake, source=source)
    pipeline.discover(corpus)
    pipeline.extract(corpus)
    return corpus


def test_s3_gives_the_same_documents_as_disk(tmp_path, s3):
    for number in range(3):
        path = write_gz(tmp_path / "in" / f"a-{number:05d}.json.gz", rows(20, start=100 * number))
        s3.put_file(str(path), f"{BUCKET}/c4/{path.name}")
    local = ingest(tmp_path / "local", str(tmp_path / "in"))
    for number, source in enumerate((f"s3://{BUCKET}/c4/*.json.gz", f"s3://{BUCKET}/c4", f"s3://{BUCKET}/c4/")):
        remote = ingest(tmp_path / f"remote{number}", source)
        assert contents(remote.documents) == contents(local.documents)
    shards = json.loads((remote.source / "shards.json").read_bytes())
    assert [shard["uri"] for shard in shards] == [f"s3://{BUCKET}/c4/a-{number:05d}.json.gz" for number in range(3)]
    assert all(shard["checksum"] and shard["bytes"] for shard in shards)


def test_the_lake_itself_may_be_on_s3(tmp_path, s3):
    write_gz(tmp_path / "in" / "a.json.gz", rows(40))
    settings = {"source": str(tmp_path / "in"), "validation": {"name": "v", "source": str(tmp_path / "in" / "a.json.gz")}}
    corpora = [configure(root, **settings) for root in (tmp_path / "lake", f"s3://{BUCKET}/lake")]
    for corpus in corpora:
        pipeline.ingest(corpus.lake, corpus.name)
    there = corpora[1].sequences / "shard-00000.parquet"
    here = corpora[0].sequences / "shard-00000.parquet"
    assert there.read_bytes() == here.read_bytes()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (f"s3://{BUCKET}/gone.json.gz", "gone.json.gz does not exist: check bucket"),
        (f"s3://{BUCKET}/nothing/*.json.gz", "matches no file"),
        ("s3://nosuchbucket/a.json.gz", "s3://nosuchbucket/a.json.gz: bucket 'nosuchbucket' does not exist at http"),
        ("s3://nosuchbucket/*.json.gz", "nosuchbucket"),
    ],
)
def test_what_is_not_in_the_store(tmp_path, s3, source, message):
    with pytest.raises(ValueError, match=message):
        ingest(tmp_path / "lake", source)


def test_unreachable_endpoint_is_told_within_30_seconds(tmp_path, s3, monkeypatch):
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    s3fs.S3FileSystem.clear_instance_cache()
    begun = time.monotonic()
    with pytest.raises(ValueError, match=r"s3://shards/a\.json\.gz: nothing answers at http://127\.0\.0\.1:9 .*AWS_ENDPOINT_URL"):
        ingest(tmp_path / "lake", "s3://shards/a.json.gz")
    s3fs.S3FileSystem.clear_instance_cache()
    assert time.monotonic() - begun < 30


def test_store_that_vanishes_between_listing_and_reading(tmp_path, s3):
    path = write_gz(tmp_path / "a.json.gz", rows(5))
    s3.put_file(str(path), f"{BUCKET}/a.json.gz")
    corpus = configure(tmp_path / "lake", source=f"s3://{BUCKET}/a.json.gz")
    pipeline.discover(corpus)
    s3.rm(f"{BUCKET}/a.json.gz")
    type(s3).clear_instance_cache()
    with pytest.raises(ValueError, match=r"a\.json\.gz does not exist"):
        pipeline.extract(corpus)


def test_http(tmp_path):
    write_gz(tmp_path / "in" / "a.json.gz", rows(30))
    handler = partial(http.server.SimpleHTTPRequestHandler, directory=os.fspath(tmp_path / "in"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        host = f"http://127.0.0.1:{server.server_port}"
        remote = ingest(tmp_path / "remote", f"{host}/a.json.gz")
        with pytest.raises(ValueError, match=r"gone\.json\.gz (does not exist|cannot be reached)"):
            ingest(tmp_path / "other", f"{host}/gone.json.gz")
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert contents(remote.documents) == contents(ingest(tmp_path / "local", str(tmp_path / "in" / "a.json.gz")).documents)


def test_plain_lines_are_read_from_s3_too(tmp_path, s3):
    s3.pipe_file(f"{BUCKET}/plain/a.jsonl", json_lines(rows(20)))
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "a.jsonl").write_bytes(json_lines(rows(20)))
    remote, local = ingest(tmp_path / "remote", f"s3://{BUCKET}/plain"), ingest(tmp_path / "local", str(tmp_path / "plain"))
    assert contents(remote.documents) == contents(local.documents)
