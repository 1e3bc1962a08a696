"""Landing from a bucket prefix into a lake on an object store."""

from pathlib import Path
from typing import Any

import pytest

from bliss_ops import landing
from bliss_ops.lake import Lake
from tests.corpus.corpora import json_lines, rows


@pytest.fixture(autouse=True)
def buckets(s3: Any) -> None:
    for bucket in ("drop", "lake"):
        s3.mkdir(bucket)


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
    with pytest.raises(ValueError, match="s3://nowhere/in: bucket 'nowhere' does not exist"):
        landing.look("s3://nowhere/in")
    with pytest.raises(FileExistsError):
        landing._create(lake.root / "landed" / "news" / "part-01.list", b"")
