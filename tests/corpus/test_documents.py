"""Extraction: rows, ids, rejects and counts; resumption; a full disk; nothing usable."""

import json
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from bliss_ops import pipeline, schemas
from bliss_ops.config import IngestConfig
from bliss_ops.corpus import documents
from tests.corpus.corpora import configure, contents, json_lines, rows, table, write_gz


def extract(tmp_path, shards, **settings):
    for name, lines in shards.items():
        write_gz(tmp_path / "in" / name, lines)
    corpus = configure(tmp_path / "lake", source=str(tmp_path / "in"), **settings)
    pipeline.discover(corpus)
    return corpus, pipeline.extract(corpus)


def test_documents_have_ids_labels_and_sizes(tmp_path):
    corpus, manifest = extract(tmp_path, {"a.json.gz": rows(3), "b-00000.json.gz": [{"text": "naïve"}]})
    first, second = (table(corpus.documents, f"shard-0000{n}.parquet") for n in (0, 1))
    assert first.schema.equals(schemas.DOCUMENTS)
    assert first["document_id"].to_pylist() == [0, 1, 2]
    assert first["domain"].to_pylist() == ["site0.example.org", "site1.example.org", "site2.example.org"]
    assert second.to_pylist() == [
        {"document_id": 10_000_000, "source": "b", "url": None, "domain": None, "timestamp": None, "text": "naïve", "num_bytes": 6}
    ]
    assert manifest.metrics["num_documents"] == 4
    assert {output.path: output.rows for output in manifest.outputs} == {
        "shard-00000.parquet": 3,
        "shard-00001.parquet": 1,
        "rejects/shard-00000.parquet": 0,
        "rejects/shard-00001.parquet": 0,
    }


def test_rejects_are_kept_and_counted_by_reason(tmp_path, caplog):
    lines = [rows(1)[0], b"not JSON at all", {"no": "text"}, {"text": " "}, b"{", rows(1)[0]]
    corpus, manifest = extract(tmp_path, {"a.json.gz": lines})
    rejects = table(corpus.documents, "rejects/shard-00000.parquet")
    assert rejects.schema.equals(schemas.REJECTS)
    assert rejects["line_number"].to_pylist() == [2, 3, 4, 5]
    assert rejects["raw"].to_pylist()[0].strip() == "not JSON at all"
    counts = {name: count for name, count in manifest.metrics.items() if name.startswith("rejected: ")}
    assert counts == {"rejected: not JSON": 2, "rejected: no text key": 1, "rejected: empty text": 1}
    assert manifest.metrics["num_rejects"] == 4
    assert "4 of 6 lines rejected" in caplog.text


def test_an_empty_shard_is_counted_and_warned_about(tmp_path, caplog):
    corpus, manifest = extract(tmp_path, {"a.json.gz": [], "b.json.gz": rows(2), "c.json.gz": [b"x"]})
    (tmp_path / "in" / "d.json").write_bytes(b"")
    assert manifest.metrics["num_empty_shards"] == 2
    assert manifest.metrics["num_documents"] == 2
    assert table(corpus.documents, "shard-00000.parquet").num_rows == 0
    assert caplog.text.count("has no usable document") == 2


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "the shards are empty"),
        ([b"x", {"text": ""}, {"text": 3}, b"y"], r"all 4 lines were rejected \(1 empty text, 2 not JSON, 1 text is not a string\)"),
    ],
)
def test_a_corpus_without_usable_document_is_an_error(tmp_path, lines, message):
    with pytest.raises(ValueError, match=f"no usable document in 1 shards: {message}"):
        extract(tmp_path, {"a.json.gz": lines})
    assert not (tmp_path / "lake" / "corpora" / "tiny" / "documents" / "manifest.json").exists()


def test_a_cut_shard_commits_nothing_and_the_rest_is_kept(tmp_path):
    for name in ("a.json.gz", "b.json.gz"):
        write_gz(tmp_path / "in" / name, rows(2000))
    whole = (tmp_path / "in" / "b.json.gz").read_bytes()
    (tmp_path / "in" / "b.json.gz").write_bytes(whole[: len(whole) // 2])
    corpus = configure(tmp_path / "lake", source=str(tmp_path / "in"))
    pipeline.discover(corpus)
    with pytest.raises(ValueError, match=r"b\.json\.gz is cut off after line \d+"):
        pipeline.extract(corpus)
    assert sorted(contents(corpus.documents)) == ["rejects/shard-00000.parquet", "shard-00000.parquet"]
    (tmp_path / "in" / "b.json.gz").write_bytes(whole)
    assert pipeline.extract(corpus).metrics["num_documents"] == 4000


def test_a_deleted_shard_alone_is_made_again_with_the_same_bytes(tmp_path):
    corpus, _ = extract(tmp_path, {f"{name}.json.gz": rows(50, start=n) for n, name in enumerate("abc")})
    before = contents(corpus.documents)
    untouched = (corpus.documents / "shard-00000.parquet").stat().st_mtime_ns
    (corpus.documents / "shard-00001.parquet").unlink()
    pipeline.extract(corpus)
    assert contents(corpus.documents) == before
    assert (corpus.documents / "shard-00000.parquet").stat().st_mtime_ns == untouched


def test_killed_midway_and_run_again_gives_the_undisturbed_bytes(tmp_path):
    shards = {f"{n:03d}.json.gz": rows(300, start=n * 1000) for n in range(30)}
    undisturbed, _ = extract(tmp_path / "one", shards)
    for name, lines in shards.items():
        write_gz(tmp_path / "two" / "in" / name, lines)
    corpus = configure(tmp_path / "two" / "lake", source=str(tmp_path / "two" / "in"))
    pipeline.discover(corpus)
    program = "\n".join(
        [
            "import sys",
            "from bliss_ops import pipeline",
            "from bliss_ops.lake import Lake",
            "pipeline.extract(Lake.open(sys.argv[1]).corpus('tiny'))",
        ]
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "two" / "lake")])
    while process.poll() is None and not (corpus.documents / "_shards" / "shard-00002.json").exists():
        time.sleep(0.002)
    process.kill()
    process.wait()
    assert not (corpus.documents / "manifest.json").exists(), "it was done before it was killed: give it more shards"
    pipeline.extract(corpus)
    assert contents(corpus.documents) == contents(undisturbed.documents)


def test_another_document_limit_fails_with_the_difference(tmp_path):
    extract(tmp_path, {"a.json.gz": rows(3)})
    corpus = configure(tmp_path / "lake", source=str(tmp_path / "in"), max_document_megabytes=1.0)
    with pytest.raises(ValueError, match=r"max_document_megabytes: was 10\.0, now 1\.0"):
        pipeline.extract(corpus)


def test_many_row_groups_stream_through(tmp_path, monkeypatch):
    monkeypatch.setattr(documents, "_BYTES_PER_GROUP", 2000)
    corpus, _ = extract(tmp_path, {"a.json.gz": rows(40)})
    written = table(corpus.documents, "shard-00000.parquet")
    assert written["text"].to_pylist() == [row["text"] for row in rows(40)]
    assert written["document_id"].to_pylist() == list(range(40))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte."""
    mount = shutil.which("mount")
    if os.geteuid() != 0 or mount is None:
        pytest.skip("mounting a small tmpfs takes root")
    path = tmp_path / "disk"
    path.mkdir()
    if subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", path], check=False, capture_output=True).returncode:
        pytest.skip("this machine does not let us mount a tmpfs")
    yield path
    subprocess.run(["umount", path], check=True)


def test_a_full_disk_names_the_file_and_leaves_no_part_of_it(tmp_path, small_disk):
    noise = [{"text": np.random.default_rng(n).bytes(10_000).hex()} for n in range(300)]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.json").write_bytes(json_lines(noise))
    corpus = configure(small_disk / "lake", source=str(tmp_path / "in"))
    pipeline.discover(corpus)
    with pytest.raises(OSError, match=r"the disk is full.*shard-00000\.parquet") as caught:
        pipeline.extract(corpus)
    assert not isinstance(caught.value, ValueError)
    left = [path.name for path in (small_disk / "lake").rglob("*") if path.is_file()]
    assert not [name for name in left if "shard-" in name]


def test_workers_can_be_made_without_the_pipeline(tmp_path):
    """What Ray calls: a worker from paths and settings, and its record."""
    corpus, _ = extract(tmp_path, {"a.json.gz": rows(3)})
    record = documents.make_worker(
        corpus.source, corpus.documents, IngestConfig.model_validate(json.loads(corpus.config.model_dump_json()))
    )(0)
    assert record.metrics["num_documents"] == 3
    assert [output.path for output in record.outputs] == ["shard-00000.parquet", "rejects/shard-00000.parquet"]
