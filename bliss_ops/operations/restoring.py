"""`bliss restore`: a snapshot of a backup as a lake again, every file held against its hash on the way.

Into a lake that is empty, or that a killed restore began: what is there with the right content is not copied again. Manifests come after
all other files and settings last, so nobody takes a half restored lake for a whole one; `restoring.json` marks it until the end.
"""

import json
import logging
from itertools import groupby
from pathlib import Path, PurePosixPath

from upath import UPath

from bliss_ops.lake import Lake, at_once, atomic_file, write_json
from bliss_ops.operations.files import listing
from bliss_ops.operations.snapshots import COPIES_AT_ONCE, METADATA, Entry, Snapshot, Target, check_apart, copy
from bliss_ops.sharding import Progress

log = logging.getLogger(__name__)

MARK = "restoring.json"
LATER = {"begun.json": 1, "collected.json": 1, "manifest.json": 2, "config.json": 3}


def restore(target: Target, lake: Lake, name: str | None = None, *, metadata: Path | None = None) -> Snapshot:
    """Write a snapshot's files into `lake`, and those of Airflow's metadata into the directory `metadata` where one is given.

    Raises:
        ValueError: the lake is not empty, there is no such snapshot, or an object of it is missing or damaged.
        OSError: the disk is full; the same command goes on from there.
    """
    check_apart(lake.root, target.root)
    snapshot = target.read(name)
    _begin(lake, snapshot)
    files = [entry for entry in snapshot.entries if not entry.address.startswith(METADATA)]
    files.sort(key=lambda entry: (_order(entry), entry.address))
    progress = Progress(f"restore {snapshot.name}", len(files), "files", seconds_between_lines=5.0)

    def written(entry: Entry) -> None:
        _write(target, entry, lake.root / entry.address)
        progress.advance()

    for _, alike in groupby(files, key=_order):
        list(at_once(written, list(alike), lake.root, target.root, num_at_once=COPIES_AT_ONCE))
    if metadata is not None:
        for entry in snapshot.entries:
            if entry.address.startswith(METADATA):
                _write(target, entry, UPath(metadata.absolute()) / entry.address.removeprefix(METADATA))
    (lake.root / MARK).unlink()
    return snapshot


def _order(entry: Entry) -> int:
    return LATER.get(PurePosixPath(entry.address).name, 0)


def _begin(lake: Lake, snapshot: Snapshot) -> None:
    mark = lake.root / MARK
    if mark.exists():
        begun = json.loads(mark.read_text())["snapshot"]
        if begun != snapshot.name:
            raise ValueError(f"{lake.root} is being restored from the snapshot {begun}: name that one with --snapshot, or empty the lake")
        return
    if next(listing(lake.root), None) is not None:
        raise ValueError(f"{lake.root} is not empty: restore into a new lake (--lake), then put it in the place of the other")
    write_json(mark, {"snapshot": snapshot.name})


def _write(target: Target, entry: Entry, path: UPath) -> None:
    if path.exists() and path.stat().st_size == entry.num_bytes:
        with path.open("rb") as stream:
            if copy(stream, None)[0] == entry.sha256:
                return
    source = target.object(entry.sha256)
    try:
        with source.open("rb") as stream, atomic_file(path) as file:
            with file.open("wb") as writer:
                sha256, _ = copy(stream, writer)
            if sha256 != entry.sha256:
                raise ValueError(
                    f"{entry.address}: the object {source} is damaged: `bliss backup {target.root} --verify` names all such; run "
                    "`bliss backup` again where the lake is still there, or take another snapshot"
                )
    except FileNotFoundError:
        raise ValueError(f"{entry.address}: the object {source} is missing from the backup: take another snapshot") from None
