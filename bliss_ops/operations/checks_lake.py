"""What `bliss doctor` looks at in a lake: its object store, the score store, and its records."""

import fcntl
import json
import secrets
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import TypeVar

from pydantic import ValidationError

from bliss_ops.collected import Collected
from bliss_ops.lake import LEFT_SECONDS, Lake, at_once, is_local, read_bytes
from bliss_ops.manifest import Manifest
from bliss_ops.operations.files import File, is_temporary, listing
from bliss_ops.operations.findings import Finding, error, ok, warning

SKEW_SECONDS = 300.0  # S3 refuses requests whose clock differs by more than 15 minutes
SLOW_SECONDS = 2.0
PROBE_BYTES = 100_000
STALE_SECONDS = 3 * 86400.0
MOST_SHOWN = 5
ResultT = TypeVar("ResultT")
RECORDS = ("manifest.json", "collected.json", "begun.json", "config.json")


def object_store(address: str | None) -> Iterator[Finding]:
    """Reach, credentials, writing, reading, deleting, latency and clock: an object is put beside the lake's and taken away again."""
    name, lake = "s3", Lake.open(address)
    if is_local(lake.root):
        yield ok(name, "the lake is on a disk")
        return
    probe = lake.root / f".probe-{secrets.token_hex(8)}"
    content = secrets.token_bytes(PROBE_BYTES)
    seconds: dict[str, float] = {}
    try:
        _timed(seconds, "write", lambda: lake.root.fs.pipe_file(probe.path, content))
        found = _timed(seconds, "read", lambda: lake.root.fs.cat_file(probe.path))
        is_listed = _timed(seconds, "list", lambda: any(file.address == probe.name for file in _beside(lake)))
        _timed(seconds, "delete", lambda: lake.root.fs.rm_file(probe.path))
    except (OSError, ValueError) as problem:
        fix = "AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_DEFAULT_REGION name the store (docs/s3.md)"
        yield error(name, f"{lake.root}: {problem}", fix)
        return
    times = ", ".join(f"{what} {value * 1000:.0f} ms" for what, value in seconds.items())
    if found != content:
        yield error(name, f"{lake.root}: what was read is not what was written", "something in between changes content: look at the proxy")
    elif not is_listed:
        yield warning(
            name, f"{lake.root}: an object is not listed right after it was written", "nothing here counts on it; old listings cost time"
        )
    elif max(seconds.values()) > SLOW_SECONDS:
        yield warning(name, f"{lake.root} is slow: {times}", "put the cluster and the bucket in the same place")
    else:
        yield ok(name, f"{lake.root}: {times}")
    yield from _clock(name, lake)
    yield from _killed_uploads(name, lake)


def duckdb(address: str | None) -> Iterator[Finding]:
    """Whether the snapshot can be read, by which version it was written, and whether a loader holds the working file."""
    import duckdb as library

    from bliss_ops import sql
    from bliss_ops.store.working import working_file

    name, lake = "duckdb", Lake.open(address)
    if not lake.score_store.exists():
        yield ok(name, f"nothing is published yet at {lake.score_store}")
        return
    try:
        with sql.open_snapshot(lake) as con:
            (num_runs,) = con.execute("select count(*) from score_runs").fetchone() or (0,)
        yield ok(name, f"DuckDB {library.__version__} reads the snapshot: {num_runs} score runs")
    except (library.Error, ValueError) as problem:
        yield error(
            name, f"{lake.score_store} cannot be read: {str(problem).splitlines()[0]}", "`bliss store rebuild` makes it again from Parquet"
        )
    lock = working_file(lake).with_suffix(".lock")
    if lock.exists():
        with lock.open("r") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                yield ok(name, "no loader is at work")
            except BlockingIOError:
                fix = "wait for it; if no load is running, `fuser` names the process that holds the file"
                yield warning(name, f"a loader holds {lock.with_suffix('.duckdb')}", fix)


def records(address: str | None) -> Iterator[Finding]:
    """Whether every manifest can be read; what was begun and left, made again and left, or written and left."""
    name, lake, now = "lake", Lake.open(address), time.time()
    if is_local(lake.root) and not Path(lake.root.path).is_dir():
        yield ok(name, f"{lake.root} is not there yet: the first `bliss ingest` or `bliss run` makes it")
        return
    files = list(listing(lake.root))
    num_bytes = sum(file.num_bytes for file in files)
    kept = [file for file in files if file.address.rpartition("/")[2] in RECORDS]
    are_readable = at_once(partial(_is_readable, lake), kept, lake.root)
    damaged = [file.address for file, is_readable in zip(kept, are_readable, strict=True) if not is_readable]
    for file in damaged[:MOST_SHOWN]:
        fix = f"delete {lake.root / file.rpartition('/')[0]} and run its stage again, or restore it from a backup (`bliss restore`)"
        yield error(name, f"{file} cannot be read", fix)
    yield from _left(name, files, now)
    if any(file.address == "restoring.json" for file in files):
        yield error(name, "a restore into this lake has not ended", "run the same `bliss restore` again: it goes on")
    num_manifests = sum(file.address.endswith("/manifest.json") for file in files)
    if not damaged:
        yield ok(name, f"{lake.root}: {num_manifests:,} finished artifacts, {len(files):,} files, {num_bytes / 1e9:,.2f} GB")
    for kind, names in (("run", lake.run_names()), ("corpus", lake.corpus_names())):
        for each in names:
            try:
                _ = lake.run(each).config if kind == "run" else lake.corpus(each).config
            except ValueError as problem:
                yield error(
                    name,
                    f"{kind} {each}: {str(problem).splitlines()[0]}",
                    "put its config.json back (a backup has it), or delete its directory",
                )


def _left(name: str, files: list[File], now: float) -> Iterator[Finding]:
    """What killed or forgotten work has left behind."""
    addresses = {file.address for file in files}
    newest: dict[str, float] = {}
    for file in files:
        for part in _parents(file.address):
            newest[part] = max(newest.get(part, 0.0), file.modified_at)
    begun = [file.address.removesuffix("/begun.json") for file in files if file.address.endswith("/begun.json")]
    unfinished = [each for each in begun if f"{each}/manifest.json" not in addresses]
    stale = [each for each in unfinished if now - newest[each] > STALE_SECONDS]
    if unfinished and not stale:
        yield ok(name, f"in work or interrupted: {_some(unfinished)}")
    if stale:
        fix = "run its stage again, it resumes; or delete the directory if it is not wanted any more"
        yield warning(name, f"begun and not touched for {STALE_SECONDS / 86400:.0f} days: {_some(stale)}", fix)
    temporary = [file for file in files if is_temporary(file.address) and now - file.modified_at > LEFT_SECONDS]
    if temporary:
        total = sum(file.num_bytes for file in temporary) / 1e6
        yield warning(name, f"{len(temporary)} files of killed writes, {total:,.1f} MB", "`bliss gc --only temporary --delete`")
    aside = {address.partition("/aside/")[0] for address in addresses if "/aside/" in address}
    if forgotten := sorted(each for each in aside if now - newest[each] > 3600):
        yield warning(name, f"`bliss remake` began and did not end: {_some(forgotten)}", f"`bliss remake {forgotten[0]}` goes on")


def _is_readable(lake: Lake, file: File) -> bool:
    """Whether a record is what it should be."""
    kind = file.address.rpartition("/")[2]
    try:
        if kind == "manifest.json":
            Manifest.model_validate_json(read_bytes(lake.root / file.address))
        elif kind == "collected.json":
            Collected.model_validate_json(read_bytes(lake.root / file.address))
        else:
            json.loads(read_bytes(lake.root / file.address))
    except FileNotFoundError:  # gone since it was listed
        return True
    except (ValidationError, ValueError, IndexError):
        return False
    return True


def _beside(lake: Lake) -> Iterator[File]:
    lake.root.fs.invalidate_cache()
    for path in lake.root.fs.ls(lake.root.path, detail=False):
        yield File(str(path).rpartition("/")[2], 0, 0.0, "")


def _clock(name: str, lake: Lake) -> Iterator[Finding]:
    bucket = lake.root.path.strip("/").partition("/")[0]
    answer = lake.root.fs.call_s3("head_bucket", Bucket=bucket)
    said = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    if said:
        skew = (datetime.now(UTC) - parsedate_to_datetime(said)).total_seconds()
        if abs(skew) > SKEW_SECONDS:
            fix = "set the clock (chrony, systemd-timesyncd): beyond 15 minutes every request is refused"
            yield error(name, f"this machine's clock is {skew:+,.0f} s off the store's", fix)
        else:
            yield ok(name, f"clocks differ by {abs(skew):.0f} s")


def _killed_uploads(name: str, lake: Lake) -> Iterator[Finding]:
    from bliss_ops.operations.retention import Policy, plan

    found = plan(lake, Policy(kinds=("uploads",)))
    for _, reason in found.kept:
        yield warning(name, f"uploads: {reason}", "give the credentials the rights of docs/s3.md, or the bucket a life-cycle rule")
    if found.items:
        num_uploads, total = len(found.items), found.num_bytes / 1e6
        yield warning(name, f"{num_uploads} uploads were begun and never completed, {total:,.1f} MB", "`bliss gc --only uploads --delete`")


def _timed(seconds: dict[str, float], what: str, work: Callable[[], ResultT]) -> ResultT:
    begun = time.monotonic()
    try:
        return work()
    finally:
        seconds[what] = time.monotonic() - begun


def _parents(address: str) -> Iterator[str]:
    while "/" in address:
        address = address.rpartition("/")[0]
        yield address


def _some(addresses: list[str]) -> str:
    listed = ", ".join(sorted(addresses)[:MOST_SHOWN])
    return listed + (f" and {len(addresses) - MOST_SHOWN} more" if len(addresses) > MOST_SHOWN else "")
