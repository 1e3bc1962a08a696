"""Hostile corpus files: bombs, endless lines, lies about size, lists and links that lead elsewhere. Refused by name, in bounded memory."""
# ruff: noqa: E501 - tables

import gzip
import json
import os
import pickle
import resource
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bliss_ops.corpus import bounds
from bliss_ops.corpus.bounds import Bounds
from bliss_ops.corpus.readers import Document, Reject, read_records
from bliss_ops.corpus.source import expand
from bliss_ops.corpus.tokenizer import Tokenizer

MEGABYTE = 1 << 20


def gzip_bomb(path: Path, megabytes: int, content: bytes = b" ") -> Path:
    """A small file of so many plain megabytes."""
    packer, block = zlib.compressobj(9, wbits=31), content * (MEGABYTE // len(content))
    with path.open("wb") as file:
        for _ in range(megabytes):
            file.write(packer.compress(block))
        file.write(packer.flush())
    return path


def test_ten_gigabytes_in_ten_megabytes_stop_at_a_limit(tmp_path: Path) -> None:
    """In a process of its own, whose memory the kernel bounds: one line without end, and lines without end."""
    for content in (b" ", b'{"text": "' + b"a" * 1011 + b'"}\n'):
        member = gzip_bomb(tmp_path / "part.gz", 64, content).read_bytes()
        bomb = tmp_path / "bomb.json.gz"
        with bomb.open("wb") as file:
            for _ in range(10_240 // 64):  # members of one gzip file: ten gigabytes
                file.write(member)
        assert bomb.stat().st_size < 25 * MEGABYTE
        code = f"""
import resource, sys
from bliss_ops.corpus.readers import read_records
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    for record in read_records({str(bomb)!r}, 10_000_000): pass
except ValueError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
        said, megabytes = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.splitlines()
        assert "bomb.json.gz unpacks to more than 200 times its size" in said
        assert "raise ingest.max_expansion" in said
        assert int(megabytes) < 250  # a line of at most 61 MB, its buffers, a block


def test_zstandard_bombs_too(tmp_path: Path) -> None:
    with pa.CompressedOutputStream(str(tmp_path / "a.json.zst"), "zstd") as stream:
        for _ in range(200):
            stream.write(b" " * MEGABYTE)
    with pytest.raises(ValueError, match="unpacks to more than 200 times"):
        list(read_records(str(tmp_path / "a.json.zst"), 10_000_000))


def test_what_compresses_well_and_is_small_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(b'{"text": "the same line"}\n' * 100_000))
    assert sum(isinstance(record, Document) for record in read_records(str(tmp_path / "a.json.gz"), 1000)) == 100_000


@pytest.mark.parametrize("ending", [".jsonl", ".json.gz", ".json.zst"])
def test_a_file_may_not_be_larger_than_a_file_may_be(tmp_path: Path, ending: str) -> None:
    lines = b"".join(json.dumps({"text": os.urandom(300).hex()}).encode() + b"\n" for _ in range(4000))
    path = tmp_path / f"a{ending}"
    path.write_bytes(gzip.compress(lines) if ending.endswith("gz") else lines)
    if ending.endswith("zst"):
        path.write_bytes(pa.compress(lines, "zstd", asbytes=True))
    with pytest.raises(ValueError, match=r"has more than 0\.002 GB: split it"):
        list(read_records(str(path), 10_000, Bounds(file_bytes=2_000_000)))


def test_what_grows_after_it_was_listed_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n' * 10)
    with pytest.raises(ValueError, match="has more than the 100 bytes it was listed with"):
        list(read_records(str(tmp_path / "a.jsonl"), 1000, Bounds(listed_bytes=100)))


def parquet(path: Path, texts: Any, **options: Any) -> str:
    pq.write_table(pa.table({"text": texts}), path, **options)
    return str(path)


def test_parquet_that_unpacks_to_more_than_text(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", ["a" * (100 * MEGABYTE)], compression="zstd")
    with pytest.raises(ValueError, match="unpacks to more than 200 times its size"):
        list(read_records(path, 10_000_000))


def test_a_value_that_a_dictionary_repeats_is_in_memory_a_few_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dictionary of one 8 MB value, and a thousand rows of it: 8 GB of text, 512 MB a batch if batches did not shrink."""
    monkeypatch.setattr(bounds, "BATCH_BYTES", 32 * MEGABYTE)
    value = os.urandom(4 * MEGABYTE).hex()
    texts = pa.DictionaryArray.from_arrays(pa.array([0] * 1000, pa.int32()), pa.array([value]))
    path = parquet(tmp_path / "a.parquet", texts, dictionary_pagesize_limit=1 << 30, data_page_size=1 << 30)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    records = read_records(path, 1_000_000)
    assert [next(records) for _ in range(10)] == [Reject(n, "larger than max_document_megabytes", value[:1000]) for n in range(1, 11)]
    assert (
        resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10
    )  # kB: BATCH_BYTES, as a column and as bytes, and the file


LINES = {
    b"[" * 100_000: "not JSON", b'{"text":' * 50_000: "not JSON", b'{"text": ' + b"9" * 5000 + b"}": "not JSON", b'{"text": 1e999999}': "text is not a string",
    b'{"text": NaN}': "text is not a string", b'{"text": null}': "text is not a string", b'{"text": {}}': "text is not a string",
    b'{"text": "\\ud800"}': "invalid Unicode", b'{"text": "\xff"}': "invalid UTF-8", b'{"text": "a\x00"}': "NUL byte", b'{"text": "a\\u0000"}': "NUL byte",
    b'{"text": "  "}': "empty text", b'{"TEXT": "a"}': "no text key", b"[]": "not an object", b"1": "not an object", b"null": "not an object",
    b'"text"': "not an object", b"{'text': 'a'}": "not JSON", b'{"text": "a"': "not JSON", b'{"text": "a"}}': "not JSON", b"\x80\x04\x95.": "invalid UTF-8",
    b'{"text": "' + b"a" * 2000 + b'"}': "larger than max_document_megabytes", b"<script>": "not JSON", b"\xef\xbb\xbf\xef\xbb\xbf{}": "not JSON",
    b'{"text": "a", "text": 1}': "text is not a string", b"\x1b[2J": "not JSON",
}  # fmt: skip


@pytest.mark.parametrize("line", LINES, ids=lambda line: repr(line[:30]))
def test_a_line_is_a_reject_with_its_reason_and_the_others_stay(tmp_path: Path, line: bytes) -> None:
    (tmp_path / "a.jsonl").write_bytes(line + b'\n{"text": "good"}\n')
    first, second = read_records(str(tmp_path / "a.jsonl"), 1000)
    assert isinstance(first, Reject)
    assert first.reason == LINES[line]
    assert isinstance(second, Document)


PICKLE = pickle.dumps({"text": "a"})
FILES = {
    "a.json.gz": (PICKLE, "is not gzip although its name says so"), "b.json.zst": (PICKLE, "is not zstd although its name says so"),
    "c.parquet": (PICKLE, "is not a complete Parquet file"), "d.parquet": (b"PAR1" + b"\xff" * 100 + b"PAR1", "is not a complete Parquet file"),
    "e.parquet": (b"PAR1\xff\xff\xff\x7fPAR1", "is not a complete Parquet file"), "f.parquet": (b"", "is not a complete Parquet file"),
    "g.json.gz": (gzip.compress(b"a" * 1000)[:-9], "is cut off"), "h.json.gz": (gzip.compress(b"a")[:-8] + b"\0" * 8, "is damaged"),
    "i.json.gz": (gzip.compress(b"a\n") + b"PK\x03\x04", "is not gzip"), "j.json.zst": (pa.compress(b"a" * 1000, "zstd", asbytes=True)[:-3], "is cut off"),
    "k.json.gz": (b"PK\x03\x04" + b"\0" * 100, "is not gzip"), "l.parquet": (b"PK\x03\x04", "is not a complete Parquet file"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_not_what_its_name_says(tmp_path: Path, name: str) -> None:
    content, message = FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        list(read_records(str(tmp_path / name), 1000))
    assert name in str(caught.value)


@pytest.mark.parametrize("kind", [pa.int64(), pa.list_(pa.string()), pa.struct({"a": pa.string()}), pa.bool_()])
def test_a_text_column_of_another_type(tmp_path: Path, kind: pa.DataType) -> None:
    with pytest.raises(ValueError, match="column text holds"):
        list(read_records(parquet(tmp_path / "a.parquet", pa.nulls(3, kind)), 1000))


LISTS = {
    b"": "names no file", b"# only this": "names no file", b"\xff\xfe": "is not a list of addresses", b"a.jsonl\na.jsonl": "twice",
    b"/etc/passwd": "cannot be read: files must end in", b"file:///x.jsonl": "not an address that can be read", b"b.list": "cannot be read",
    b"zip://a.jsonl::https://h/x.zip": "not an address that can be read", b"https://u:hunter2@h/a.jsonl": "carries a credential",
    b"https://h/../a.jsonl": "has a '..'", b"a\x00.jsonl": "contains the character", b"\x1b]0;x\x07.jsonl": "contains the character",
    b"x" * 5000 + b".jsonl": "1 to 4096 characters",
}  # fmt: skip


@pytest.mark.parametrize("content", LISTS, ids=lambda content: repr(content[:30]))
def test_a_list(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.list").write_bytes(content)
    with pytest.raises(ValueError, match=LISTS[content]) as caught:
        expand(str(tmp_path / "x.list"))
    assert "hunter2" not in str(caught.value)


def test_sources_stay_where_they_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    for folder in (inside, outside):
        folder.mkdir()
        (folder / "a.jsonl").write_text('{"text": "a"}\n')
    (inside / "link.jsonl").symlink_to(outside / "a.jsonl")
    (inside / "folder").symlink_to(outside)
    (inside / "x.list").write_text("../out/a.jsonl\n")
    monkeypatch.setenv("BLISS_SOURCE_ROOTS", f"{inside} s3://bucket/corpora")
    monkeypatch.delenv("BLISS_LAKE", raising=False)
    assert expand(str(inside / "a.jsonl"))
    for path in (
        "in/link.jsonl",
        "in/l*.jsonl",
        "in/folder/a.jsonl",
        "in/folder",
        "in/x.list",
        "out/a.jsonl",
        "in/../out/a.jsonl",
        "in2/a.jsonl",
    ):
        with pytest.raises(ValueError, match="is outside of the places that sources may be in"):
            expand(str(tmp_path / path))
    for uri in ("s3://bucket/corpora2/a.jsonl", "s3://other/a.jsonl", "https://h/a.jsonl"):
        with pytest.raises(ValueError, match="is outside of the places"):
            expand(uri)
    with pytest.raises(ValueError, match="is outside of the places"):  # also one that a manifest names
        list(read_records(str(outside / "a.jsonl"), 1000))


TOKENIZERS = [
    PICKLE, b"", b"{}", b"[" * 100_000, b"null", b'{"model": {"vocab": {}}}', b'{"model": {"vocab": 1, "type": "BPE"}}', b"\x00" * 100,
    b'{"auto_map": {"AutoTokenizer": ["evil.Tokenizer", null]}}', b'{"model": {"type": "Custom", "vocab": {"a": 0}}}', b"PK\x03\x04", b"<html>",
    b'{"model": {"type": "WordLevel", "vocab": {"a": 99999999999999999999}, "unk_token": "a"}}', b'{"model": {"type": "WordLevel", "vocab": {"a": -1}, "unk_token": "a"}}',
]  # fmt: skip


@pytest.mark.parametrize("content", TOKENIZERS, ids=lambda content: repr(content[:40]))
def test_a_tokenizer(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"mine\.json is not a tokenizer file: give a Hugging Face tokenizer\.json"):
        Tokenizer(content, "mine.json")
