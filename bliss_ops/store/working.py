"""The two files of the score store: the working file the loader writes, and the snapshot everyone reads.

DuckDB lets either one writer or many readers open a file. So the loader has a file of its own and readers get a copy of its bytes, put in
place by rename: a reader that has the old copy open keeps reading it. The working file itself is in the storage version that DuckDB
1.5 reads, so publishing copies bytes and re-encodes no row. A lock file beside it lets one loader in at a time.

The working file remembers which snapshot was made from it: its content, and the version of the published file. Where another one is there
now, of another machine's loader, out of a backup or changed by hand, the next load publishes again.
"""

import errno
import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bliss_ops import object_store
from bliss_ops.lake import Lake, atomic_file, is_local, is_on_s3, uploaded_etag
from bliss_ops.names import quoted_text
from bliss_ops.store import tables, views

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

log = logging.getLogger(__name__)

WAIT_SECONDS = 60.0
MEMORY_LIMIT = "1500MB"  # with Arrow and Python beside it, a loader stays under 2 GB; the rest of the machine belongs to training
FORMAT = "v1.5.0"  # the oldest DuckDB that reads the snapshot
FORMAT_OF_WORKING = "select tags['storage_version'] from duckdb_databases() where database_name = 'working'"
NO_SPACE = ("No space left", "File too large")


def is_remote(lake: Lake) -> bool:
    return not is_local(lake.root)


def working_file(lake: Lake) -> Path:
    """Beside the snapshot in a local lake; on this machine's scratch disk, by a hash of the store and the root, for an object store."""
    if not is_remote(lake):
        return Path(lake.root.path) / "scores.working.duckdb"
    where = str(lake.root)
    if is_on_s3(lake.root):
        where = f"{object_store.endpoint()} {where}"  # staging's bucket may be named as production's
    return Path(tempfile.gettempdir()) / "bliss-store" / hashlib.sha256(where.encode()).hexdigest()[:16] / "scores.working.duckdb"


@contextmanager
def open_working(lake: Lake, *, empty: bool = False) -> "Iterator[tuple[DuckDBPyConnection, bool]]":
    """A connection whose default database is the working file, and whether that file has yet to be filled for the first time.

    Args:
        lake: the lake whose scores it holds.
        empty: start with a new file, whatever is there.

    Raises:
        ValueError: another process holds the file and does not let go within a minute, or the file is damaged.
        OSError: the disk is full.
    """
    import duckdb

    path = working_file(lake)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _only_loader(path), _disk_full_in_words(path):
        if empty:
            _delete(path)
        spill = path.with_suffix(".spill")
        shutil.rmtree(spill, ignore_errors=True)  # of a killed loader
        con = duckdb.connect(":memory:", config={"memory_limit": MEMORY_LIMIT, "temp_directory": str(spill)})
        try:
            _attach(con, path)
            if _is_of_another_version(con):
                log.info("score store: the working file is of another version; everything is loaded again from Parquet")
                con.execute("detach working")
                _delete(path)
                _attach(con, path)
            con.execute("use working")
            con.execute(tables.STATE)
            con.execute(tables.TABLES)
            con.execute(views.VIEWS)
            _remember(con, "tables", _md5(tables.TABLES))
            yield con, _recall(con, "published") is None
        finally:
            con.close()


@contextmanager
def open_to_check(lake: Lake) -> "Iterator[tuple[DuckDBPyConnection, bool, Callable[[], None]]]":
    """Both files, read-only, as `snapshot` and `working`: (connection, whether the working file is on this machine, let loaders in).

    No loader gets in before `let_loaders_in` is called; then `working` is gone, and the snapshot stays open, replaced or not.

    Raises:
        ValueError: nothing was published yet; or a loader is at work for longer than a minute.
    """
    import duckdb

    path = working_file(lake)
    if not lake.score_store.is_file():
        raise ValueError(f"there is no score store at {lake.score_store} yet: `bliss load` makes it, or `bliss store rebuild`")
    path.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as opened, tempfile.TemporaryDirectory(prefix="bliss-check-") as scratch:
        lock = opened.enter_context(ExitStack())
        lock.enter_context(_only_loader(path))
        con = opened.enter_context(duckdb.connect(":memory:", config={"memory_limit": MEMORY_LIMIT, "temp_directory": scratch}))
        snapshot = Path(lake.score_store.path)
        if is_remote(lake):
            snapshot = Path(scratch) / lake.score_store.name
            lake.score_store.fs.get_file(lake.score_store.path, str(snapshot))
        con.execute(f"attach {quoted_text(snapshot)} as snapshot (read_only)")
        if has_working := path.exists():
            con.execute(f"attach {quoted_text(path)} as working (read_only)")

        def let_loaders_in() -> None:
            con.execute("use snapshot")
            if has_working:
                con.execute("detach working")
            lock.close()

        yield con, has_working, let_loaders_in


def publish(con: "DuckDBPyConnection", lake: Lake) -> bool:
    """Replace the snapshot by a copy of the working file, unless what is there is the copy of exactly this content.

    Score runs that are not loaded whole (their loader was killed, or a file was damaged) are left out of the copy.
    """
    unfinished = [owner for (owner,) in con.execute(tables.UNFINISHED, {"kinds": tables.OF_SCORE_RUN}).fetchall()]
    (digest,) = con.execute(tables.DIGEST, {"views": _md5(views.VIEWS), "unfinished": unfinished}).fetchone() or ("",)
    known = _recall(con, "published")
    if known is not None and known == f"{digest} {_version(lake)}":
        return False
    _sweep(lake)
    path = working_file(lake)
    con.execute("use memory")
    con.execute("detach working")  # checkpoints: the file is whole then, and nothing writes to it
    try:
        with atomic_file(lake.score_store) as file:
            copy_bytes(path, file)
            if unfinished:
                _leave_out(con, file, unfinished)
    finally:
        _attach(con, path)
        con.execute("use working")
    # The upload's own ETag: asked for afterwards, it might be that of another machine's snapshot, which would count as ours for good.
    _remember(con, "published", f"{digest} {_bare(uploaded_etag(lake.score_store)) or _version(lake)}")
    return True


def _version(lake: Lake) -> str:
    """Another value after each publication, whoever publishes; empty where nothing is published."""
    snapshot = lake.score_store
    try:
        if is_local(snapshot):
            found = Path(snapshot.path).stat()
            return f"{found.st_size}-{found.st_mtime_ns}"  # no inode: in a lake that was copied as a whole it is the same snapshot
        if is_on_s3(snapshot):
            return _bare(snapshot.fs.info(snapshot.path)["ETag"])
        return str(snapshot.fs.ukey(snapshot.path))
    except FileNotFoundError:
        return ""


def _bare(etag: str) -> str:
    return etag.strip('"')


def copy_bytes(source: Path, target: Path) -> None:
    """By the kernel: shared blocks where the file system can (XFS, btrfs), else without a way through this process."""
    try:
        with source.open("rb") as reader, target.open("wb") as writer:
            while os.copy_file_range(reader.fileno(), writer.fileno(), 1 << 30):
                pass
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        shutil.copyfile(source, target)  # across file systems, on kernels that do not
    assert target.stat().st_size == source.stat().st_size, f"{target} is not all of {source}"


def _leave_out(con: "DuckDBPyConnection", snapshot: Path, unfinished: list[str]) -> None:
    """Delete score runs from a snapshot that is not published yet."""
    log.warning("score store: not loaded whole and left out of the snapshot: %s", ", ".join(unfinished))
    con.execute(f"attach {quoted_text(snapshot)} as snapshot")
    con.execute("use snapshot")
    try:
        for owner in unfinished:
            for statement in tables.FORGET_SCORE_RUN:
                con.execute(statement, {"owner": owner})
    finally:
        con.execute("use memory")
        con.execute("detach snapshot")  # checkpoints: afterwards there is no write-ahead log


@contextmanager
def _only_loader(path: Path) -> Iterator[None]:
    """Hold the lock beside the working file; the kernel lets go of it when its process ends, however it ends."""
    with path.with_suffix(".lock").open("w") as lock:
        for _ in _tries(path):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                continue
        yield


def _attach(con: "DuckDBPyConnection", path: Path) -> None:
    """Attach the working file, which may be new; somebody may be looking into it with a DuckDB of their own."""
    import duckdb

    statement = f"attach {quoted_text(path)} as working" + ("" if path.exists() else f" (storage_version '{FORMAT}')")
    for _ in _tries(path):
        try:
            con.execute(statement)
            return
        except duckdb.IOException as error:
            if "Could not set lock" not in str(error):
                raise ValueError(
                    f"{path} cannot be opened: {error}\nRun `bliss store rebuild`, it makes the file again from Parquet."
                ) from error


def _tries(path: Path) -> Iterator[None]:
    """A try every 0.2 s, for a minute.

    Raises:
        ValueError: the minute is over.
    """
    begun = time.monotonic()
    yield
    log.info("score store: another process is loading, waiting up to %.0f s", WAIT_SECONDS)
    while time.monotonic() - begun < WAIT_SECONDS:
        time.sleep(0.2)
        yield
    raise ValueError(f"another process still holds {path} after {WAIT_SECONDS:.0f} s: wait for it or end it, then try again")


@contextmanager
def _disk_full_in_words(path: Path) -> Iterator[None]:
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        if any(words in str(error) for words in NO_SPACE):
            advice = "the disk is full: free space and run the same command again, it resumes; readers have the old snapshot meanwhile"
            raise OSError(errno.ENOSPC, advice, str(path)) from error
        raise


def _is_of_another_version(con: "DuckDBPyConnection") -> bool:
    """Whether the working file has other tables, or another format, than this package makes; a new one has neither."""
    (version,) = con.execute(FORMAT_OF_WORKING).fetchone() or ("",)
    con.execute("use working")
    con.execute(tables.STATE)
    known = _recall(con, "tables")
    con.execute("use memory")
    return bool(version != f"{FORMAT}+") or known not in (None, _md5(tables.TABLES))


def _recall(con: "DuckDBPyConnection", name: str) -> str | None:
    row = con.execute(tables.RECALL_STATE, {"name": name}).fetchone()
    return row[0] if row else None


def _remember(con: "DuckDBPyConnection", name: str, digest: str) -> None:
    con.execute(tables.REMEMBER_STATE, {"name": name, "digest": digest})


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _delete(path: Path) -> None:
    for file in (path, path.with_name(path.name + ".wal")):
        file.unlink(missing_ok=True)


def _sweep(lake: Lake) -> None:
    """Remove what a killed loader left of its snapshot; nobody else writes one while we hold the working file."""
    if not is_remote(lake):
        for file in Path(lake.root.path).glob(f".{lake.score_store.name}.*.tmp*"):
            file.unlink(missing_ok=True)
