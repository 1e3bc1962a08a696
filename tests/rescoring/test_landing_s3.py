"""Landing from a bucket prefix into a lake on an object store."""

from pathlib import Path
from typing import Any

import pytest

from bliss_ops import landed, landing
from bliss_ops.lake import Lake
from tests.corpus.corpora import json_lines, rows


@pytest.fixture(autouse=True, scope="module")
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
        landed.create(lake.root / "landed" / "news" / "part-01.list", b"")


def test_a_key_that_ends_a_line_is_not_two_files(s3: Any) -> None:
    """A line feed would do, too, but the mock has no such keys."""
    lake, prefix = Lake.open("s3://lake/lines"), "s3://drop/lines"
    s3.pipe_file("drop/lines/news/b.json\u2028/data/private/x.json", json_lines(rows(4)))
    s3.pipe_file("drop/lines/news/c.json", json_lines(rows(4)))
    found = landing.land(lake, prefix, recipe="smoke", settle_seconds=0)
    assert [(part.corpus, part.num_files) for part in found.parts] == [("news", 1)]
    assert "'s3://drop/lines/news/b.json\\u2028/data/private/x.json'" in found.problems[0]


@pytest.mark.parametrize("late", [{2}, {3}, {1, 2}, {2, 3}, {1, 2, 3}])
def test_a_list_that_is_listed_late_is_not_taken_for_none(s3: Any, monkeypatch: pytest.MonkeyPatch, late: set[int]) -> None:
    name = f"late-{'-'.join(map(str, late))}"
    lake, prefix = Lake.open(f"s3://lake/{name}"), f"s3://drop/{name}"
    for number in (1, 2, 3):
        s3.pipe_file(f"drop/{name}/news/{number}.jsonl", json_lines(rows(4)))
        parts = landing.land(lake, prefix, recipe="smoke", settle_seconds=0).parts
    names, hidden = landed.names_in, {f"part-{number:02d}.list" for number in late}
    monkeypatch.setattr(landed, "names_in", lambda directory: [each for each in names(directory) if each not in hidden])
    assert landing.land(lake, prefix, recipe="smoke", settle_seconds=0).parts == parts
    assert [part.corpus for part in parts] == ["news", "news-part-02", "news-part-03"]
