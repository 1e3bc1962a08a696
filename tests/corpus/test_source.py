"""Sources: what is found, in which order, how it is named, and what is said when there is nothing."""

import json

import pytest

from bliss_ops import pipeline
from bliss_ops.corpus.source import expand, label_of
from bliss_ops.manifest import ArtifactMismatchError
from tests.corpus.corpora import configure, rows, write_gz


def listing(corpus):
    return json.loads((corpus.source / "shards.json").read_bytes())


def test_a_glob_is_listed_in_order_with_labels_and_content(tmp_path):
    for name in ("b-00001.json.gz", "b-00000.json.gz", "c4-train.00000-of-00003.json.gz"):
        write_gz(tmp_path / "in" / name, rows(2))
    (tmp_path / "in" / "notes.txt").write_text("not a shard")
    corpus = configure(tmp_path / "lake", source=str(tmp_path / "in" / "*.json.gz"))
    manifest = pipeline.discover(corpus)
    shards = listing(corpus)
    assert [shard["uri"].rsplit("/", 1)[1] for shard in shards] == ["b-00000.json.gz", "b-00001.json.gz", "c4-train.00000-of-00003.json.gz"]
    assert [shard["source"] for shard in shards] == ["b", "b", "c4-train"]
    assert [shard["shard"] for shard in shards] == [0, 1, 2]
    assert all(shard["bytes"] > 0 and shard["checksum"].startswith("sha256:") for shard in shards)
    assert manifest.metrics["num_shards"] == 3


def test_directory_takes_what_can_be_read_and_a_path_takes_one(tmp_path):
    one = write_gz(tmp_path / "deep" / "a.jsonl.gz", rows(1))
    write_gz(tmp_path / ".hidden" / "b.jsonl.gz", rows(1))
    (tmp_path / "README.md").write_text("about")
    assert expand(str(tmp_path)) == [str(one)]
    assert expand(str(one)) == [str(one)]


def test_a_name_with_glob_characters_is_still_a_path(tmp_path):
    path = write_gz(tmp_path / "a[1].json.gz", rows(1))
    assert expand(str(path)) == [str(path)]


def test_relative_paths_become_absolute(tmp_path, monkeypatch):
    path = write_gz(tmp_path / "a.json.gz", rows(1))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert expand("../a.json.gz") == [str(path)]


def test_changed_content_changes_the_digest_and_fails_downstream(tmp_path):
    path = write_gz(tmp_path / "a.json.gz", rows(5))
    corpus = configure(tmp_path / "lake", source=str(path))
    before = pipeline.discover(corpus)
    pipeline.extract(corpus)
    write_gz(path, rows(6))
    (corpus.source / "manifest.json").unlink()
    after = pipeline.discover(corpus)
    assert after.digest != before.digest
    with pytest.raises(ArtifactMismatchError, match="source"):
        pipeline.extract(corpus)


@pytest.mark.parametrize(
    ("uri", "label"),
    [
        ("/d/c4-train.00000-of-00003.json.gz", "c4-train"),
        ("s3://b/books.json.gz", "books"),
        ("data/documentation-00001.json.gz", "documentation"),
        ("https://h/train-00000-of-00007-0123456789abcdef.parquet", "train"),
        ("wikitext2-valid.jsonl.zst", "wikitext2-valid"),
        ("part_00012.jsonl", "part"),
        ("0000.parquet", "0000"),
        ("https://h/a.json.gz?download=1", "a"),
    ],
)
def test_label(uri, label):
    assert label_of(uri) == label


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{tmp}/*.json.gz", r"\*\.json\.gz' matches no file"),
        ("{tmp}/gone.json.gz", r"gone\.json\.gz does not exist: check the path"),
        ("{tmp}/empty", "matches no file"),
        ("{tmp}/page.html", r"page\.html cannot be read: files must end in \.json\.gz"),
        ("{tmp}/p*.html", r"page\.html cannot be read"),
        ("file:///etc/passwd", "plain path"),
        ("ftp://host/a.json.gz", "not an address that can be read: use a local path"),
        ("memory://a.json.gz", "not an address"),
        ("simplecache::https://host/a.json.gz", "not an address"),
        ("s3://", "not an address"),
        ("S3://bucket/a.json.gz", "not an address"),
        ("hf://gpt2", "not an address"),
        ("http://127.0.0.1:9/a.json.gz", r"127\.0\.0\.1:9/a\.json\.gz cannot be reached .*check the address"),
    ],
)
def test_nothing_to_read_is_an_error_that_names_it(tmp_path, source, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "page.html").write_text("<html>")
    with pytest.raises(ValueError, match=message):
        pipeline.discover(configure(tmp_path / "lake", source=source.replace("{tmp}", str(tmp_path))))
    assert not list(tmp_path.rglob("manifest.json"))


def test_permission_denied_names_the_file(tmp_path):
    path = write_gz(tmp_path / "a.json.gz", rows(1))
    (tmp_path / "a.json.gz").unlink()
    path.symlink_to(path.name)  # a link to itself: an OSError that root gets too
    with pytest.raises(ValueError, match=r"a\.json\.gz"):
        expand(str(path))


def test_a_list_names_the_files_of_a_corpus(tmp_path):
    one, two = write_gz(tmp_path / "b" / "one.json.gz", rows(1)), write_gz(tmp_path / "beside.jsonl.gz", rows(1))
    chosen = tmp_path / "chosen.list"
    chosen.write_text(f"# mine\n\n{two.name}\n  {one}\n")
    assert expand(str(chosen)) == sorted([str(one), str(two)])
    corpus = configure(tmp_path / "lake", source=str(chosen))
    pipeline.discover(corpus)
    assert [shard["source"] for shard in listing(corpus)] == ["one", "beside"]
    assert pipeline.extract(corpus).metrics["num_documents"] == 2


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "names no file"),
        (b"# only a comment\n", "names no file"),
        (b"a.json.gz\na.json.gz\n", "names .*a.json.gz twice"),
        (b"notes.txt\n", "notes.txt, named in .*x.list, cannot be read"),
        (b"ftp://example.org/a.json.gz\n", "is not an address that can be read"),
        (b"\xff\xfe\x00", "is not a list of addresses"),
    ],
)
def test_a_list_that_cannot_be_read_is_named(tmp_path, content, message):
    (tmp_path / "x.list").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        expand(str(tmp_path / "x.list"))
    with pytest.raises(ValueError, match=r"no\.list does not exist"):
        expand(str(tmp_path / "no.list"))


def test_a_listed_file_that_is_missing_is_named(tmp_path):
    (tmp_path / "x.list").write_text("gone.json.gz\n")
    with pytest.raises(ValueError, match=r"gone\.json\.gz does not exist"):
        pipeline.discover(configure(tmp_path / "lake", source=str(tmp_path / "x.list")))
