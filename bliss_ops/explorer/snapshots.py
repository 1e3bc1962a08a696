"""The newest published snapshot of a lake, open for reading.

One connection is kept per published version and every request takes a cursor of it: opening costs 15 ms, a cursor none. A publisher
replaces the file by rename, so the version is (inode, time of change) and a new one is seen by the next request. A snapshot on an object
store is copied to this machine once per version; whether there is a new one is asked at most every two seconds.
"""

import hashlib
import os
import stat
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bliss_ops.lake import Lake, is_local
from bliss_ops.sql import connect_read_only

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

MEMORY_LIMIT = "512MB"  # of all pages together; summaries are small, the console has its own
SECONDS_BETWEEN_LOOKS = 2.0

Row = dict[str, Any]


class NoSnapshotError(ValueError):
    """Nothing has been published in this lake yet."""


class Snapshots:
    """The snapshot of one lake, whichever is the newest."""

    def __init__(self, lake: Lake) -> None:
        self.lake = lake
        self._lock = threading.Lock()
        self._open: tuple[tuple[Any, ...], DuckDBPyConnection] | None = None  # (version, connection)
        self._copied: tuple[float, Path] | None = None  # (when last looked, file)

    def file(self) -> Path:
        """The newest snapshot as a file of this machine.

        Raises:
            NoSnapshotError: there is none.
        """
        if is_local(self.lake.score_store):
            path = Path(self.lake.score_store.path)
            if not path.exists():
                raise NoSnapshotError(f"there is no score store at {path} yet")
            return path
        with self._lock:
            if self._copied is None or time.monotonic() - self._copied[0] > SECONDS_BETWEEN_LOOKS:
                self._copied = (time.monotonic(), _copy(self.lake))
            return self._copied[1]

    @contextmanager
    def cursor(self) -> "Iterator[DuckDBPyConnection]":
        """A cursor over the newest snapshot, read-only."""
        file = self.file()
        found = file.stat()
        version = (str(file), found.st_ino, found.st_mtime_ns, found.st_size)
        with self._lock:
            if self._open is None or self._open[0] != version:
                # The old connection closes with the last request that still reads from it.
                self._open = (version, connect_read_only(file, str(private_directory() / "spill"), memory_limit=MEMORY_LIMIT, threads=2))
            cursor = self._open[1].cursor()
        try:
            cursor.execute("use store")  # a cursor starts in the connection's own memory
            yield cursor
        finally:
            cursor.close()

    @property
    def published_at(self) -> float:
        """Seconds since the epoch of the newest snapshot."""
        return self.file().stat().st_mtime


def rows(cursor: "DuckDBPyConnection", statement: str, parameters: Row | None = None) -> list[Row]:
    """What a statement answers, a dictionary a row."""
    result = cursor.execute(statement, parameters or {})
    names = [column[0] for column in result.description or []]
    return [dict(zip(names, row, strict=True)) for row in result.fetchall()]


def row(cursor: "DuckDBPyConnection", statement: str, parameters: Row | None = None) -> Row | None:
    """Its first row, or None."""
    return next(iter(rows(cursor, statement, parameters)), None)


def private_directory() -> Path:
    """Scratch space of the explorer that no other user of the machine can read or prepare.

    Raises:
        ValueError: somebody else made a directory of that name.
    """
    path = Path(tempfile.gettempdir()) / f"bliss-explorer-{os.getuid()}"
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise ValueError(f"{path} is not a private directory of this user: remove it, or set TMPDIR to another place")
    return path


def _copy(lake: Lake) -> Path:
    """The snapshot of an object store as a local file, fetched only when its version is not here yet."""
    snapshot = lake.score_store
    snapshot.fs.invalidate_cache()
    try:
        version = str(snapshot.fs.ukey(snapshot.path))
    except FileNotFoundError:
        raise NoSnapshotError(f"there is no score store at {snapshot} yet") from None
    place = hashlib.sha256(str(snapshot).encode()).hexdigest()[:16]
    path = private_directory() / f"{place}-{hashlib.sha256(version.encode()).hexdigest()[:16]}.duckdb"
    if not path.exists():
        handle, temporary = tempfile.mkstemp(prefix=f"{place}-", suffix=".part", dir=path.parent)
        os.close(handle)
        try:
            snapshot.fs.get_file(snapshot.path, temporary)
            Path(temporary).replace(path)
        finally:
            Path(temporary).unlink(missing_ok=True)
        for old in path.parent.glob(f"{place}-*.duckdb"):
            if old != path:
                old.unlink(missing_ok=True)  # whoever has it open keeps reading it
    return path
