"""The two files of the score store: the working file the loader writes, and the snapshot everyone reads.

DuckDB lets either one writer or many readers open a file. So the loader has a file of its own and readers get a copy, written by
`copy from database` (compact, 13 s for 50 million scores) in the storage version that DuckDB 1.5 reads, and put in place by rename.
A reader that has the old copy open keeps reading it.
"""

import hashlib
import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from bliss_ops.lake import Lake, atomic_file, is_local
from bliss_ops.store import tables, views

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

log = logging.getLogger(__name__)

WAIT_SECONDS = 60.0
STORAGE_VERSION = "select tags['storage_version'] from duckdb_databases() where database_name = 'working'"
MEMORY_LIMIT = "2GB"  # enough for 50 million rows; the rest of the machine belongs to training


def is_remote(lake: Lake) -> bool:
    return not is_local(lake.root)


def working_file(lake: Lake) -> Path:
    """Beside the snapshot in a local lake; on this machine's scratch disk, by a hash of the root, for an object store."""
    if not is_remote(lake):
        return Path(lake.root.path) / "scores.working.duckdb"
    return Path(tempfile.gettempdir()) / "bliss-store" / hashlib.sha256(str(lake.root).encode()).hexdigest()[:16] / "scores.working.duckdb"


@contextmanager
def open_working(lake: Lake, *, empty: bool = False) -> "Iterator[tuple[DuckDBPyConnection, bool]]":
    """A connection whose default database is the working file, and whether that file has yet to be filled for the first time.

    Args:
        lake: the lake whose scores it holds.
        empty: drop what is in the file first.

    Raises:
        ValueError: another process holds the file and does not let go within a minute, or the file is damaged.
    """
    import duckdb

    path = working_file(lake)
    path.parent.mkdir(parents=True, exist_ok=True)
    con = duckdb.connect(":memory:", config={"memory_limit": MEMORY_LIMIT, "temp_directory": str(path.with_suffix(".spill"))})
    try:
        if is_remote(lake):
            con.register_filesystem(lake.root.fs)
        _attach(con, path)
        if empty or _is_of_another_version(con):
            log.info("score store: emptied, everything is loaded again from Parquet")
            con.execute("detach working")
            for file in (path, path.with_name(path.name + ".wal")):
                file.unlink(missing_ok=True)
            _attach(con, path)
        con.execute("use working")
        con.execute(tables.STATE)
        con.execute(tables.TABLES)
        con.execute(views.VIEWS)
        _remember(con, "tables", _md5(tables.TABLES))
        yield con, _recall(con, "published") is None
    finally:
        con.close()


def publish(con: "DuckDBPyConnection", lake: Lake) -> bool:
    """Replace the snapshot by a copy of the working file, unless the snapshot there is of exactly this content."""
    (digest,) = con.execute(tables.DIGEST, {"views": _md5(views.VIEWS)}).fetchone() or ("",)
    if lake.score_store.exists() and _recall(con, "published") == digest:
        return False
    _sweep(lake)
    with atomic_file(lake.score_store) as file:
        file.unlink(missing_ok=True)  # DuckDB makes the file itself and refuses an empty one
        con.execute(f"attach '{_quoted(file)}' as snapshot (storage_version 'v1.5.0')")
        try:
            con.execute("copy from database working to snapshot")
        finally:
            con.execute("detach snapshot")  # checkpoints: afterwards there is no write-ahead log
    _remember(con, "published", digest)
    return True


def _attach(con: "DuckDBPyConnection", path: Path) -> None:
    import duckdb

    deadline = time.monotonic() + WAIT_SECONDS
    waiting = False
    while True:
        try:
            con.execute(f"attach '{_quoted(path)}' as working" + ("" if path.exists() else " (storage_version 'v1.5.0')"))
            return
        except (duckdb.IOException, duckdb.ResourceInUseException) as error:
            if isinstance(error, duckdb.IOException) and "lock" not in str(error):
                raise ValueError(
                    f"{path} cannot be opened: {error}\nDelete the file; the next `bliss load` makes it again from Parquet."
                ) from error
            if time.monotonic() > deadline:
                raise ValueError(
                    f"another process still holds {path} after {WAIT_SECONDS:.0f} s: wait for it or end it, then try again\n{error}"
                ) from error
            if not waiting:
                log.info("score store: another process is loading, waiting up to %.0f s", WAIT_SECONDS)
                waiting = True
            time.sleep(0.2)


def _is_of_another_version(con: "DuckDBPyConnection") -> bool:
    """Whether the working file has other tables, or another format, than this package makes; a new one has neither."""
    (version,) = con.execute(STORAGE_VERSION).fetchone() or ("",)
    con.execute("use working")
    con.execute(tables.STATE)
    known = _recall(con, "tables")
    con.execute("use memory")
    return bool(version != "v1.5.0+") or known not in (None, _md5(tables.TABLES))


def _recall(con: "DuckDBPyConnection", name: str) -> str | None:
    row = con.execute(tables.RECALL_STATE, {"name": name}).fetchone()
    return row[0] if row else None


def _remember(con: "DuckDBPyConnection", name: str, digest: str) -> None:
    con.execute(tables.REMEMBER_STATE, {"name": name, "digest": digest})


def _md5(text: str) -> str:
    return hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()


def _sweep(lake: Lake) -> None:
    """Remove what a killed loader left of its snapshot; nobody else writes one while we hold the working file."""
    if not is_remote(lake):
        for file in Path(lake.root.path).glob(f".{lake.score_store.name}.*.tmp*"):
            file.unlink(missing_ok=True)


def _quoted(path: Path) -> str:
    return str(path).replace("'", "''")
