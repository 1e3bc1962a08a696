"""Source shards read as a stream of documents and rejects, in bounded memory.

A line (or Parquet row) is either a usable document or a reject with its number and reason: nothing is lost silently, and one
bad line never costs the shard. What is wrong with the file itself (cut download, not gzip, no text column) is a ValueError,
so that no half shard passes for a whole one. Lines are read with a bound, so an endless line cannot fill memory.
"""

import gzip
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import SEEK_END
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from bliss_ops.corpus.addresses import Address, readable, resolve
from bliss_ops.corpus.bounds import BLOCK, Bounds, plain_bytes, row_groups
from bliss_ops.corpus.parquet import damage_is_a_value_error

ENDINGS = (".json.gz", ".jsonl.gz", ".json.zst", ".jsonl.zst", ".json", ".jsonl", ".parquet")

_RAW_CHARACTERS = 1000  # how much of a rejected line is kept
_PLAIN_HOST = re.compile(r"https?://([a-z0-9.-]+)(?:/|$)")  # what nine of ten addresses begin with, read 10 times faster than by urlsplit


@dataclass(frozen=True, slots=True)
class Document:
    """One usable document of a source shard."""

    line_number: int
    text: str
    num_bytes: int  # of the text in UTF-8
    url: str | None
    domain: str | None
    timestamp: str | None


@dataclass(frozen=True, slots=True)
class Reject:
    """One line that is not a usable document, and why."""

    line_number: int
    reason: str
    raw: str


def read_records(uri: str | UPath, max_document_bytes: int, bounds: Bounds = Bounds()) -> Iterator[Document | Reject]:  # noqa: B008 - frozen
    """Stream the documents and rejects of one source file, in its order.

    Raises:
        ValueError: the file as a whole cannot be read: missing, cut, not the format its name says, without a `text` column, or more than
            `bounds` allow.
    """
    address = resolve(uri)
    with readable(address.uri, address.scheme):
        if address.path.endswith(".parquet"):
            yield from _read_parquet(address, max_document_bytes, bounds)
        else:
            yield from _read_lines(address, max_document_bytes, bounds)


def domain_of(url: str | None) -> str | None:
    """Host of a URL, in lower case; for `python://kind/package/path` of the embedded corpus, the package."""
    if url is None:
        return None
    if plain := _PLAIN_HOST.match(url):
        return plain[1]
    try:
        parts = urlsplit(url)
        host = parts.path.split("/")[1] if parts.scheme == "python" and parts.path.count("/") > 1 else parts.hostname
    except ValueError:  # a malformed address says nothing about the text
        return None
    return host or None


def _read_lines(address: Address, max_document_bytes: int, bounds: Bounds) -> Iterator[Document | Reject]:
    # A byte of text takes at most six in JSON (\u0041): a longer line holds too long a document, or fields nobody should send.
    limit = 6 * max_document_bytes + BLOCK
    number = 0
    try:
        with address.open() as file, plain_bytes(file, address.uri, PurePosixPath(address.path).suffix, bounds) as lines:
            while line := lines.readline(limit + 1):
                number += 1
                if len(line) > limit:
                    yield Reject(number, "larger than max_document_megabytes", _head(line))
                    while (rest := lines.readline(BLOCK)) and not rest.endswith(b"\n"):
                        pass
                else:
                    yield _parse_line(number, line, max_document_bytes)
    except EOFError as error:
        raise _damaged(address, number, "is cut off") from error
    except gzip.BadGzipFile as error:
        if number == 0 and "Not a gzipped file" in str(error):
            raise ValueError(f"{address.uri} is not gzip although its name says so: rename it or fetch it again") from error
        raise _damaged(address, number, "is damaged") from error
    except zlib.error as error:
        raise _damaged(address, number, "is damaged") from error
    except OSError as error:  # Arrow reports what is wrong with zstd data as a plain OSError without errno
        if not address.path.endswith(".zst") or error.errno is not None:
            raise
        if "Truncated" in str(error):
            raise _damaged(address, number, "is cut off") from error
        if number == 0:
            raise ValueError(f"{address.uri} is not zstd although its name says so: rename it or fetch it again") from error
        raise _damaged(address, number, "is damaged") from error


def _damaged(address: Address, lines: int, what: str) -> ValueError:
    return ValueError(f"{address.uri} {what} after line {lines}: the download is incomplete or damaged, fetch it again")


def _parse_line(number: int, line: bytes, max_document_bytes: int) -> Document | Reject:
    if number == 1:
        line = line.removeprefix(b"\xef\xbb\xbf")
    if b"\0" in line:
        return Reject(number, "NUL byte", _head(line))
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError:
        return Reject(number, "invalid UTF-8", _head(line))
    except (ValueError, RecursionError):  # a ValueError is also what a number of 5,000 digits raises
        return Reject(number, "not JSON" if line.strip() else "blank line", _head(line))
    if not isinstance(row, dict):
        return Reject(number, "not an object", _head(line))
    if "text" not in row:
        return Reject(number, "no text key", _head(line))
    return _document(number, row["text"], row.get("url"), row.get("timestamp"), max_document_bytes, raw=line)


def _document(number: int, text: Any, url: Any, timestamp: Any, max_document_bytes: int, raw: bytes) -> Document | Reject:
    if not isinstance(text, str):
        return Reject(number, "text is not a string", _head(raw))
    if not text or text.isspace():
        return Reject(number, "empty text", _head(raw))
    if "\0" in text:
        return Reject(number, "NUL byte", _head(raw))
    size = _utf8_bytes(text)
    if size is None:
        return Reject(number, "invalid Unicode", _head(raw))
    if size > max_document_bytes:
        return Reject(number, "larger than max_document_megabytes", _head(raw))
    url = url if isinstance(url, str) and _utf8_bytes(url) is not None else None
    timestamp = timestamp if isinstance(timestamp, str) and _utf8_bytes(timestamp) is not None else None
    return Document(number, text, size, url, domain_of(url), timestamp)


def _utf8_bytes(text: str) -> int | None:
    """Size in UTF-8; None for a lone surrogate, which JSON can spell (`\\ud800`) and UTF-8 cannot."""
    if text.isascii():
        return len(text)
    try:
        return len(text.encode())
    except UnicodeEncodeError:
        return None


def _head(line: bytes) -> str:
    # Four bytes a character at most. NULs are spelled out: engines that read the rejects stumble over them.
    return line[: 4 * _RAW_CHARACTERS].decode(errors="replace").replace("\0", "\\0")[:_RAW_CHARACTERS]


def _read_parquet(address: Address, max_document_bytes: int, bounds: Bounds) -> Iterator[Document | Reject]:
    with address.open() as stream, damage_is_a_value_error(address.uri):
        num_stored_bytes = stream.seek(0, SEEK_END)
        stream.seek(0)
        file = pq.ParquetFile(stream)
        names = file.schema_arrow.names
        if "text" not in names:
            found = ", ".join(names) or "(none)"
            raise ValueError(f"{address.uri} has no column named text, only {found}: rename the one that holds the text")
        kind = file.schema_arrow.field("text").type
        if not _is_text(kind):
            raise ValueError(f"{address.uri}: column text holds {kind}, not strings")
        wanted = [name for name in ("text", "url", "timestamp") if name in names]
        number = 0
        for group, num_rows in row_groups(file, num_stored_bytes, address.uri, bounds):
            for batch in file.iter_batches(batch_size=num_rows, row_groups=[group], columns=wanted, use_threads=False):
                texts = batch.column("text").cast(pa.large_binary()).to_pylist()  # bytes: one invalid row must not cost the batch
                urls, timestamps = (_strings(batch, name) for name in ("url", "timestamp"))
                for text, url, timestamp in zip(texts, urls, timestamps, strict=True):
                    number += 1
                    yield _parse_row(number, text, url, timestamp, max_document_bytes)


def _parse_row(number: int, raw: bytes | None, url: bytes | None, timestamp: bytes | None, max_document_bytes: int) -> Document | Reject:
    if raw is None:
        return Reject(number, "text is null", "")
    if len(raw) > max_document_bytes:  # before it is copied once more
        return Reject(number, "larger than max_document_megabytes", _head(raw))
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        return Reject(number, "invalid UTF-8", _head(raw))
    url_text, timestamp_text = (None if value is None else value.decode(errors="replace") for value in (url, timestamp))
    return _document(number, text, url_text, timestamp_text, max_document_bytes, raw=raw)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_null(kind)
    )


def _strings(batch: pa.RecordBatch, name: str) -> list[Any]:
    if name not in batch.schema.names or not _is_text(batch.schema.field(name).type):
        return [None] * batch.num_rows
    return batch.column(name).cast(pa.large_binary()).to_pylist()
