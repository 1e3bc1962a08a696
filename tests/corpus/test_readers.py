"""Every way a source line or file can be bad: a counted reject with its reason, or a ValueError that says what to do."""

import gzip
import io
import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bliss_ops.corpus.readers import Document, Reject, domain_of, read_records
from tests.corpus.corpora import json_lines, rows, write_gz

MB = 1_000_000


def read(path: Path, limit: int = 10 * MB) -> tuple[list[Document], list[Reject]]:
    records = list(read_records(str(path), limit))
    return [r for r in records if isinstance(r, Document)], [r for r in records if isinstance(r, Reject)]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"this is not JSON", "not JSON"),
        (b'{"text": "cut', "not JSON"),
        (b"[" * 200_000, "not JSON"),
        (b'{"n": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'["text"]', "not an object"),
        (b'"text"', "not an object"),
        (b"null", "not an object"),
        (b'{"url": "https://example.org"}', "no text key"),
        (b'{"text": 17}', "text is not a string"),
        (b'{"text": null}', "text is not a string"),
        (b'{"text": ["a"]}', "text is not a string"),
        (b'{"text": ""}', "empty text"),
        (b'{"text": " \\n\\t\\u00a0 "}', "empty text"),
        (b'{"text": "caf\xe9"}', "invalid UTF-8"),
        (b'{"text": "a\x00b"}', "NUL byte"),
        (b'{"text": "a\\u0000b"}', "NUL byte"),
        (b'{"text": "half a pair \\ud83d"}', "invalid Unicode"),
        (b"", "blank line"),
        (b"   ", "blank line"),
        (b'{"text": "' + b"x" * 3_000 + b'"}', "larger than max_document_megabytes"),
    ],
)
def test_bad_line_is_a_reject_and_its_neighbours_survive(tmp_path, line, reason):
    good = {"text": "a good line"}
    path = write_gz(tmp_path / "a.json.gz", [good, line, good])
    documents, rejects = read(path, limit=2_000)
    assert [document.line_number for document in documents] == [1, 3]
    assert [(reject.line_number, reject.reason) for reject in rejects] == [(2, reason)]
    assert len(rejects[0].raw) <= 1000
    assert "\0" not in rejects[0].raw


def test_optional_fields_may_be_missing_null_or_of_another_type(tmp_path):
    lines = [
        {"text": "a"},
        {"text": "b", "url": None, "timestamp": None},
        {"text": "c", "url": 7, "timestamp": {"year": 2019}},
        {"text": "d", "url": "https://Example.org:443/x", "timestamp": "2019-04-25"},
    ]
    documents, rejects = read(write_gz(tmp_path / "a.jsonl.gz", lines))
    assert not rejects
    assert [(d.url, d.domain, d.timestamp) for d in documents] == [(None, None, None)] * 3 + [
        ("https://Example.org:443/x", "example.org", "2019-04-25")
    ]


@pytest.mark.parametrize(
    ("url", "domain"),
    [
        (None, None),
        ("", None),
        ("no url at all", None),
        ("http://[broken", None),
        ("https://user@News.Example.com/a?b", "news.example.com"),
        ("python://documentation/numpy/README.md", "numpy"),
        ("python://licences/rich/rich.dist-info/LICENSE", "rich"),
    ],
)
def test_domain(url, domain):
    assert domain_of(url) == domain


@pytest.mark.parametrize("ending", [".json", ".jsonl", ".json.gz", ".jsonl.gz", ".json.zst", ".jsonl.zst", ".parquet"])
def test_every_format_gives_the_same_documents(tmp_path, ending):
    values = rows(150)
    path = tmp_path / f"a{ending}"
    if ending == ".parquet":
        pq.write_table(pa.Table.from_pylist(values), path, row_group_size=40)
    elif ending.endswith(".gz"):
        path.write_bytes(gzip.compress(json_lines(values)))
    elif ending.endswith(".zst"):
        path.write_bytes(pa.compress(json_lines(values), codec="zstd", asbytes=True))
    else:
        path.write_bytes(b"\xef\xbb\xbf" + json_lines(values).replace(b"\n", b"\r\n"))
    documents, rejects = read(path)
    assert not rejects
    assert [(d.text, d.url, d.timestamp) for d in documents] == [(v["text"], v["url"], v["timestamp"]) for v in values]
    assert [d.line_number for d in documents] == list(range(1, 151))


@pytest.mark.parametrize("ending", [".json.gz", ".json.zst"])
def test_cut_download_names_file_and_line(tmp_path, ending):
    data = json_lines(rows(3000))
    whole = gzip.compress(data) if ending.endswith("gz") else pa.compress(data, codec="zstd", asbytes=True)
    path = tmp_path / f"cut{ending}"
    path.write_bytes(whole[: len(whole) * 2 // 3])
    with pytest.raises(ValueError, match=rf"cut{ending} is cut off after line \d+: .*fetch it again"):
        read(path)


@pytest.mark.parametrize("ending", [".json.gz", ".json.zst"])
def test_wrong_format_for_its_name(tmp_path, ending):
    path = tmp_path / f"plain{ending}"
    path.write_bytes(json_lines(rows(3)))
    with pytest.raises(ValueError, match="although its name says so"):
        read(path)


def test_damaged_gzip(tmp_path):
    whole = bytearray(gzip.compress(json_lines(rows(3000))))
    whole[len(whole) // 2] ^= 0xFF
    path = tmp_path / "a.json.gz"
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"is damaged|is cut off"):
        read(path)


def test_members_after_another_are_one_file(tmp_path):
    path = tmp_path / "a.json.gz"
    path.write_bytes(gzip.compress(json_lines(rows(2))) + gzip.compress(json_lines(rows(3))))
    assert len(read(path)[0]) == 5


@pytest.mark.parametrize("newline", [b"\n", b""])
def test_line_of_50_mb_is_rejected_in_bounded_memory(tmp_path, newline):
    path = tmp_path / "bomb.json.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(json_lines([{"text": "before"}]) + b'{"text": "')
        for _ in range(50):
            file.write(b"x" * MB)
        file.write(b'"}' + newline)
        if newline:
            file.write(json_lines([{"text": "after"}]))
    tracemalloc.start()
    documents, rejects = read(path, limit=MB)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [d.text for d in documents] == (["before", "after"] if newline else ["before"])
    assert [(r.line_number, r.reason, len(r.raw)) for r in rejects] == [(2, "larger than max_document_megabytes", 1000)]
    assert peak < 30 * MB


def test_size_limit_counts_text_not_its_escapes(tmp_path):
    text = "\u00e9" * 1000  # 2,000 bytes of UTF-8, 6,000 of JSON escapes
    path = write_gz(tmp_path / "a.json.gz", [{"text": text}])
    assert len(read(path, limit=2000)[0]) == 1
    assert [r.reason for r in read(path, limit=1999)[1]] == ["larger than max_document_megabytes"]


def test_parquet_rows(tmp_path):
    texts = pa.array([b"good", None, b"caf\xe9", b"a\0b", b"  "], pa.binary())
    pq.write_table(pa.table({"text": texts, "url": pa.array([1, 2, 3, 4, 5])}), tmp_path / "a.parquet")
    documents, rejects = read(tmp_path / "a.parquet")
    assert [(d.line_number, d.text, d.url) for d in documents] == [(1, "good", None)]
    assert [(r.line_number, r.reason) for r in rejects] == [(2, "text is null"), (3, "invalid UTF-8"), (4, "NUL byte"), (5, "empty text")]


def test_parquet_dictionary_column(tmp_path):
    pq.write_table(pa.table({"text": pa.array(["a", "b", "a"]).dictionary_encode()}), tmp_path / "a.parquet")
    assert [d.text for d in read(tmp_path / "a.parquet")[0]] == ["a", "b", "a"]


def test_parquet_without_text_names_the_columns(tmp_path):
    pq.write_table(pa.table({"content": ["a"], "id": [1]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"no column named text, only content, id"):
        read(tmp_path / "a.parquet")


def test_parquet_text_of_another_type(tmp_path):
    pq.write_table(pa.table({"text": [1, 2]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="column text holds int64"):
        read(tmp_path / "a.parquet")


def test_cut_parquet(tmp_path):
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows(100)), buffer)
    (tmp_path / "a.parquet").write_bytes(buffer.getvalue()[:-100])
    with pytest.raises(ValueError, match="not a complete Parquet file"):
        read(tmp_path / "a.parquet")


def test_missing_file(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.json\.gz does not exist"):
        read(tmp_path / "gone.json.gz")


def test_rejected_lines_are_readable_as_json_again(tmp_path):
    documents, _ = read(write_gz(tmp_path / "a.json.gz", [{"text": "日本語 " * 50}]))
    assert json.loads(json.dumps(documents[0].text)) == "日本語 " * 50
