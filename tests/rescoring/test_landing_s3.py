"""Landing from a bucket prefix into a lake on an object store."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bliss_ops import landing
from bliss_ops.lake import Lake
from tests.corpus.corpora import json_lines, rows

moto_server = pytest.importorskip("moto.server")


@pytest.fixture
def s3() -> Iterator[Any]:
    """A mock S3 on the loopback interface with the buckets `drop` and `lake`."""
    import s3fs

    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        store = s3fs.S3FileSystem()
        for bucket in ("drop", "lake"):
            store.mkdir(bucket)
        yield store
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_objects_below_a_prefix_become_corpora(s3: Any, tmp_path: Path) -> None:
    lake, prefix = Lake.open("s3://lake/here"), "s3://drop/in"
    assert landing.land(lake, prefix, settle_seconds=0) == landing.Landing()  # an empty prefix is not an error
    s3.pipe_file("drop/in/news/a.jsonl", json_lines(rows(40)))
    s3.pipe_file("drop/in/news/notes.txt", b"not a shard")
    (part,) = landing.land(lake, prefix, recipe="smoke", settle_seconds=0).parts
    assert (part.corpus, part.list_file) == ("news", "s3://lake/here/landed/news/part-01.list")
    landing.ingest(lake, part)
    assert landing.is_ingested(lake.corpus("news"))

    s3.pipe_file("drop/in/news/b.jsonl", json_lines(rows(40, start=50)))
    (part,) = landing.land(lake, prefix, settle_seconds=0).parts
    assert (part.corpus, part.num_files) == ("news-part-02", 1)
    s3.pipe_file("drop/in/news/a.jsonl", json_lines(rows(40, start=1)))
    (problem,) = landing.land(lake, prefix, settle_seconds=0).problems
    assert "s3://drop/in/news/a.jsonl was written anew" in problem
    with pytest.raises(ValueError, match="s3://nowhere/in does not exist"):
        landing.look("s3://nowhere/in")
    with pytest.raises(FileExistsError):
        landing._create(lake.root / "landed" / "news" / "part-01.list", b"")
