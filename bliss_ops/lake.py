"""Where things live, and the only way they are written.

The lake is one root, local or on an object store (`BLISS_LAKE`, any fsspec URI). Everything below it has a readable address
made here. Files appear whole or not at all: local files through a temporary name, fsync and rename; object stores publish an
object only when its upload completes. There are no directories on an object store, only names that begin alike: what a stage has made is
in its manifest, and nothing is concluded from a listing that a manifest can say.
"""

import errno
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

from upath import UPath

from bliss_ops import object_store as object_store  # makes ours the file system of s3:// addresses
from bliss_ops.config import IngestConfig, RunConfig, SettingsT, check_name, parse

if TYPE_CHECKING:
    import pyarrow as pa

DEFAULT_LAKE = "lake"
TEMPORARY = ".tmp"  # ending of a file that is being written
REQUESTS_AT_ONCE = 32  # of an object store
UPLOADS_REMEMBERED = 256  # files are described soon after they are written
LEFT_SECONDS = 86400.0  # a file that is filled slowly is written to seldom: rejects wait for 8 MB of them, a large upload takes hours

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Lake:
    """The root directory of all corpora, runs and scores."""

    root: UPath

    @classmethod
    def open(cls, root: str | os.PathLike[str] | None = None) -> "Lake":
        """The lake at `root`, else at `$BLISS_LAKE`, else `./lake`."""
        address = os.fspath(root) if root else os.environ.get("BLISS_LAKE", DEFAULT_LAKE)
        path = UPath(address)
        return cls(UPath(Path(address).absolute()) if is_local(path) else path)

    def corpus(self, name: str) -> "Corpus":
        return Corpus(self, check_name(name))

    def run(self, name: str) -> "Run":
        return Run(self, check_name(name))

    def run_names(self) -> list[str]:
        """Names of all configured runs, sorted."""
        return _configured(self.root / "runs")

    def corpus_names(self) -> list[str]:
        """Names of all configured corpora, sorted."""
        return _configured(self.root / "corpora")

    def further_scores(self, corpus: str, name: str) -> UPath:
        """`scores/<corpus>/<name>`: scores of a corpus that are no round's own, made by re-scoring or imported."""
        return self.root / "scores" / check_name(corpus) / check_name(name)

    def further_score_names(self) -> list[tuple[str, str]]:
        """(corpus, name) of all finished ones, sorted."""
        scores = self.root / "scores"
        corpora = names_in(scores)
        listed = at_once(lambda corpus: names_in(scores / corpus), corpora, scores)
        found = [(corpus, name) for corpus, names in zip(corpora, listed, strict=True) for name in names]
        finished = at_once(lambda each: (scores / each[0] / each[1] / "manifest.json").is_file(), found, scores)
        return [each for each, is_finished in zip(found, finished, strict=True) if is_finished]

    def comparison(self, name: str) -> UPath:
        """`comparisons/<name>`: the report about several runs."""
        return self.root / "comparisons" / check_name(name)

    @property
    def score_store(self) -> UPath:
        """The published DuckDB snapshot that users query."""
        return self.root / "scores.duckdb"

    def relative(self, path: UPath) -> str:
        """The address of `path` inside the lake, for manifests and messages."""
        return path.path[len(self.root.path) :].strip("/")


@dataclass(frozen=True)
class Corpus:
    """One corpus directory: `corpora/<name>`."""

    lake: Lake
    name: str

    @property
    def path(self) -> UPath:
        return self.lake.root / "corpora" / self.name

    @cached_property
    def config(self) -> IngestConfig:
        return _read_config(
            IngestConfig, self.path / "config.json", f"corpus {self.name!r} is not in the lake {self.lake.root}: run `bliss ingest` first"
        )

    @property
    def source(self) -> UPath:
        return self.path / "source"

    @property
    def documents(self) -> UPath:
        return self.path / "documents"

    @property
    def tokenizer(self) -> UPath:
        return self.path / f"tokenizer-{self.tokenizer_name}"

    @property
    def sequences(self) -> UPath:
        return self.path / f"sequences-{self.tokenizer_name}-{self.config.sequence_length}"

    @property
    def gates(self) -> UPath:
        """What the gates said about the corpus."""
        return self.path / "gates"

    @property
    def validation(self) -> UPath:
        name = f"{self.config.validation.name}-{self.name}-{self.tokenizer_name}-{self.config.sequence_length}"
        return self.lake.root / "validation" / name

    @property
    def tokenizer_name(self) -> str:
        return tokenizer_name(self.config)


@dataclass(frozen=True)
class Run:
    """One experiment directory: `runs/<name>` (recipe x method x seed)."""

    lake: Lake
    name: str

    @property
    def path(self) -> UPath:
        return self.lake.root / "runs" / self.name

    @cached_property
    def config(self) -> RunConfig:
        return _read_config(
            RunConfig, self.path / "config.json", f"run {self.name!r} is not in the lake {self.lake.root}: run `bliss configure` first"
        )

    @cached_property
    def corpus(self) -> Corpus:
        return self.lake.corpus(self.config.ingest.corpus)

    @property
    def warmup(self) -> UPath:
        """`runs/<name>/warmup`; of the run that this one shares it with, where its config names one."""
        return (self.lake.run(self.config.warmup_of).path if self.config.warmup_of else self.path) / "warmup"

    @property
    def report(self) -> UPath:
        return self.path / "report"

    def round(self, number: int) -> UPath:
        """`runs/<name>/round-01`; holds selector, scores, fidelity, selection, subset, pretrain, evaluation."""
        return self.path / f"round-{number:02d}"


def tokenizer_name(config: IngestConfig) -> str:
    """`bpe4096` for a trained tokenizer, else the name of the directory or file the tokenizer was given as."""
    if config.tokenizer is None:
        return f"bpe{config.vocab_size}"
    path = UPath(config.tokenizer)
    of_directory = path.parent.name.removeprefix("tokenizer-")  # another corpus's is in tokenizer-<name>/
    name = of_directory if path.name == "tokenizer.json" and of_directory else path.stem
    return check_name("".join(c if c.isalnum() or c in "._-" else "-" for c in name.lower()).lstrip(".-_") or "tokenizer")


def is_local(path: UPath) -> bool:
    """Whether `path` is on a disk of this machine, not on an object store."""
    return path.protocol in ("", "file")


def is_on_s3(path: UPath) -> bool:
    return path.protocol == "s3"


def names_in(directory: UPath) -> list[str]:
    """Names of what is in a directory, sorted; none where it does not exist. Some object stores list what is new a little later."""
    if is_on_s3(directory):
        return cast("list[str]", directory.fs.names(directory.path))
    return sorted(path.name for path in directory.iterdir()) if directory.is_dir() else []


def shard_file(directory: UPath, shard: int) -> UPath:
    return directory / f"shard-{shard:05d}.parquet"


Check = Callable[[], object]
_check_before_files_appear: ContextVar[Check | None] = ContextVar("check_before_files_appear", default=None)


@contextmanager
def checked_by(check: Check | None) -> Iterator[None]:
    """Inside, `check()` is called right before a file of this thread appears; what it raises keeps the file from appearing.

    A thread that writes for this one is started with a copy of its context, a process is given `check_here()`.
    """
    token = _check_before_files_appear.set(check)
    try:
        yield
    finally:
        _check_before_files_appear.reset(token)


def check_here() -> Check | None:
    """What files of this thread are checked by."""
    return _check_before_files_appear.get()


@contextmanager
def atomic_file(path: UPath) -> Iterator[Path]:
    """Yield a local file to write; on success it becomes `path` in one step, on an exception nothing appears.

    Raises:
        OSError: the disk is full (the message names the path) or the path is not writable; the temporary file is removed.
    """
    try:
        with _local_file_for(path) as file:
            yield file
    except OSError as error:
        if error.errno == errno.ENOSPC or "No space left" in str(error):  # Arrow's errors carry no errno
            advice = "the disk is full: free space and run the same command again, it resumes"
            raise OSError(errno.ENOSPC, advice, str(path)) from error
        raise


@contextmanager
def _local_file_for(path: UPath) -> Iterator[Path]:
    if is_local(path):
        final = Path(path.path)
        final.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{final.name}.", suffix=TEMPORARY, dir=final.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            _check()
            temporary.replace(final)
        finally:
            temporary.unlink(missing_ok=True)
    else:
        with tempfile.TemporaryDirectory(prefix="bliss-") as scratch:
            temporary = Path(scratch) / path.name
            yield temporary
            _upload(temporary, path)


def _upload(file: Path, path: UPath) -> None:
    etag = ""
    if is_on_s3(path):
        etag = path.fs.upload(str(file), path.path, _check)
    else:
        _check()
        path.fs.put_file(str(file), path.path)
    with file.open("rb") as stream:
        _uploads[str(path)] = (file.stat().st_size, sha256_of(stream), etag)
    while len(_uploads) > UPLOADS_REMEMBERED:
        _uploads.pop(next(iter(_uploads)), None)


_uploads: dict[str, tuple[int, str, str]] = {}  # bytes, sha256 and ETag of what this process has last put on an object store


def uploaded_content(path: UPath) -> tuple[int, str] | None:
    """What `content_of` gives, of a file that this process has just put on an object store and need not read back; else None."""
    found = _uploads.pop(str(path), None)
    return found[:2] if found else None


def uploaded_etag(path: UPath) -> str:
    """The ETag of what this process has just put on S3, whatever others have put there since; else empty."""
    found = _uploads.pop(str(path), None)
    return found[2] if found else ""


def content_of(path: UPath) -> tuple[int, str]:
    """Bytes and sha256 of a file, read.

    Raises:
        FileNotFoundError: it is not there.
    """
    with path.open("rb") as stream:
        sha256 = sha256_of(stream)
        return stream.seek(0, 2), sha256


def _check() -> None:
    if check := check_here():
        check()


def sweep_temporary_files(directory: UPath, *, older_than_seconds: float = LEFT_SECONDS) -> None:
    """Remove what killed writers left below a directory; what is younger may belong to a writer that is alive."""
    if is_on_s3(directory):
        directory.fs.sweep(directory.path, older_than_seconds)
    elif is_local(directory):
        for file in Path(directory.path).rglob(f".*{TEMPORARY}"):
            if time.time() - file.stat().st_mtime > older_than_seconds:
                file.unlink(missing_ok=True)


def sha256_of(stream: IO[bytes]) -> str:
    """Hex digest of what there is to read, in bounded memory."""
    return hashlib.file_digest(cast("Any", stream), "sha256").hexdigest()  # every stream of fsspec has `readinto`, its type does not say so


def read_bytes(path: UPath) -> bytes:
    """A small file that is not empty, in one request.

    Raises:
        FileNotFoundError: it is not there.
    """
    data: bytes = path.fs.cat_file(path.path, start=0)  # without a start fsspec's own file systems ask for the size first
    return data


@contextmanager
def local_copy(path: UPath) -> Iterator[Path]:
    """A large file as one of this machine, which is deleted afterwards; a file of a local lake as it is.

    Raises:
        FileNotFoundError: it is not there.
    """
    if is_local(path):
        yield Path(path.path)
        return
    with tempfile.TemporaryDirectory(prefix="bliss-") as scratch:
        path.fs.get_file(path.path, f"{scratch}/{path.name}")
        yield Path(scratch) / path.name


def at_once(
    function: Callable[[ItemT], ResultT], items: Sequence[ItemT], *where: UPath, num_at_once: int = REQUESTS_AT_ONCE
) -> Iterator[ResultT]:
    """`function` of each item in their order: several at once where a place is an object store, which answers after a round trip.

    Whoever stops taking results stops the asking, at most `num_at_once` items further.
    """
    if all(map(is_local, where)):
        yield from map(function, items)
        return
    with ThreadPoolExecutor(num_at_once) as threads:
        for first in range(0, len(items), num_at_once):
            yield from threads.map(function, items[first : first + num_at_once])


def remove(path: UPath) -> None:
    """Delete a file, if there is one; an object store is not asked before."""
    if is_on_s3(path):
        path.fs.rm_file(path.path)
    else:
        path.unlink(missing_ok=True)


def write_bytes(path: UPath, data: bytes) -> None:
    with atomic_file(path) as file:
        file.write_bytes(data)


def write_json(path: UPath, value: Any) -> None:
    write_bytes(path, (json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode())


def write_parquet(path: UPath, table: "pa.Table", *, row_group_size: int | None = None) -> None:
    """Write `table` atomically; the bytes depend on its content alone."""
    import pyarrow.parquet as pq

    with atomic_file(path) as file:
        pq.write_table(table, file, row_group_size=row_group_size, compression="zstd")


def _configured(directory: UPath) -> list[str]:
    """Names of the sub-directories that have a config, sorted."""
    names = names_in(directory)
    configured = at_once(lambda name: (directory / name / "config.json").is_file(), names, directory)
    return [name for name, has_config in zip(names, configured, strict=True) if has_config]


def _read_config(model: type[SettingsT], path: UPath, missing: str) -> SettingsT:
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(missing) from None
    return parse(model, text, where=str(path))
