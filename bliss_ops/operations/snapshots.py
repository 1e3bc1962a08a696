"""What a backup directory looks like: objects named by the sha256 of their content, and snapshots that list them.

    objects/3f/3f9a...               content, once, however many snapshots and addresses have it
    snapshots/20260102T030405.678901Z-1a2b3c.jsonl     a header, a line per file, and the sha256 of the lines before, written last

A snapshot is there when everything it lists is. So a killed backup leaves objects that the next one finds and does not copy again, two
backups into one directory do not disturb each other, and a changed file never overwrites the one that an older snapshot lists.
"""

import hashlib
import json
import logging
import os
import secrets
import shutil
import tempfile
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from upath import UPath

from bliss_ops import __version__
from bliss_ops.lake import atomic_file, is_local, write_bytes
from bliss_ops.names import check_address
from bliss_ops.operations.files import check_below, listing

log = logging.getLogger(__name__)

FORMAT = 1
OBJECTS, SNAPSHOTS, DAMAGED = "objects", "snapshots", "damaged"
METADATA = "@airflow/"  # addresses of files that are not the lake's
CHUNK = 1 << 20
COPIES_AT_ONCE = 8  # to or from an object store


@dataclass(frozen=True)
class Entry:
    """One file of a snapshot."""

    address: str
    num_bytes: int
    sha256: str
    stamp: str = ""  # of the file it was copied from: the same later means the same content


@dataclass
class Snapshot:
    """Everything that was copied at one time."""

    name: str
    lake: str
    begun_at: str
    entries: list[Entry]
    finished_at: str = ""
    package_version: str = __version__
    problems: list[str] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        return sum(entry.num_bytes for entry in self.entries)


class Target:
    """A backup directory, local or on an object store."""

    def __init__(self, root: UPath) -> None:
        self.root = root

    @classmethod
    def at(cls, address: str) -> "Target":
        """The backup directory of that address.

        Raises:
            ValueError: it is neither a local path nor on s3, or carries a credential.
        """
        if (scheme := check_address(address)) not in ("", "s3"):
            raise ValueError(f"backups are kept in a local directory or at s3://bucket/prefix, not at {scheme}://")
        path = UPath(address)
        return cls(UPath(Path(address).absolute()) if is_local(path) else path)

    def object(self, sha256: str) -> UPath:
        return self.root / OBJECTS / sha256[:2] / sha256

    def objects(self) -> dict[str, int]:
        """Bytes of every object, by its hash; one listing, whatever their number of files."""
        found = (file for file in listing(self.root, OBJECTS))
        return {name: file.num_bytes for file in found if len(name := file.address.rpartition("/")[2]) == 64}

    def put(self, source: IO[bytes]) -> tuple[str, int]:
        """Copy a stream under the name of its content; returns its hash and bytes. Memory is that of one megabyte."""
        folder = self.root / OBJECTS
        if is_local(folder):
            folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".incoming-", dir=folder.path if is_local(folder) else None) as scratch:
            part = Path(scratch) / "part"
            with part.open("wb") as writer:
                sha256, num_bytes = copy(source, writer)
            with atomic_file(self.object(sha256)) as file:
                part.replace(file)
        return sha256, num_bytes

    def write(self, snapshot: Snapshot) -> None:
        values = asdict(snapshot) | {"format": FORMAT, "num_files": len(snapshot.entries), "num_bytes": snapshot.num_bytes}
        del values["entries"]
        lines = [json.dumps(value, sort_keys=True) for value in (values, *(asdict(entry) for entry in snapshot.entries))]
        text = "".join(f"{line}\n" for line in lines).encode()
        write_bytes(self._path(snapshot.name), text + json.dumps({"sha256": hashlib.sha256(text).hexdigest()}).encode() + b"\n")

    def names(self) -> list[str]:
        """Snapshots, oldest first."""
        found = (file.address.rpartition("/")[2] for file in listing(self.root, SNAPSHOTS))
        return sorted(name.removesuffix(".jsonl") for name in found if name.endswith(".jsonl") and not name.startswith("."))

    def read(self, name: str | None = None) -> Snapshot:
        """A snapshot; the newest when none is named.

        Raises:
            ValueError: there is none of that name, or it is damaged or of a later version.
        """
        names = self.names()
        if not names or (name is not None and name not in names):
            what = f"no snapshot {name!r}" if names else "no finished snapshot"
            raise ValueError(f"{what} in {self.root}" + (f": there are {', '.join(names[-5:])}" if names else ": run `bliss backup` first"))
        path = self._path(name or names[-1])
        try:
            return _parsed(path.read_bytes())
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path} cannot be read: {error}. There are {', '.join(names[-5:])}") from error

    def sweep(self, now: float) -> None:
        """Remove what killed backups left of objects that they were copying, a day later."""
        folder = self.root / OBJECTS
        if is_local(folder) and folder.exists():
            for path in Path(folder.path).glob(".incoming-*"):
                if path.is_dir() and not path.is_symlink() and now - path.stat().st_mtime > 86400:
                    shutil.rmtree(path, ignore_errors=True)

    def _path(self, name: str) -> UPath:
        return self.root / SNAPSHOTS / f"{name}.jsonl"


def new_name() -> str:
    """Sorts by time; two that begin in the same microsecond have different ones."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}-{secrets.token_hex(3)}"


def copy(source: IO[bytes], target: IO[bytes] | None) -> tuple[str, int]:
    """Hash and bytes of what there is to read, which is written to `target` where there is one."""
    digest, num_bytes = hashlib.sha256(), 0
    while chunk := source.read(CHUNK):
        digest.update(chunk)
        num_bytes += len(chunk)
        if target is not None:
            target.write(chunk)
    return digest.hexdigest(), num_bytes


def check_apart(lake: UPath, target: UPath) -> None:
    """Return when neither directory is in the other one.

    Raises:
        ValueError: one is; a backup would copy itself, or be deleted with what it is a copy of.
    """
    if is_local(lake) != is_local(target):
        return
    paths = [os.path.realpath(path.path) if is_local(path) else path.path.strip("/") for path in (lake, target)]
    if os.path.commonpath(paths) in paths:
        raise ValueError(f"{target} and the lake {lake} lie in each other: choose a directory beside the lake, best on another disk")


def _checked(entry: Entry) -> Entry:
    check_below(entry.address)
    if len(entry.sha256) != 64 or not all(c in "0123456789abcdef" for c in entry.sha256):
        raise ValueError(f"{entry.sha256!r} is no sha256")
    return entry


def _parsed(data: bytes) -> Snapshot:
    text, _, last = data.rstrip(b"\n").rpartition(b"\n")
    if json.loads(last).get("sha256") != hashlib.sha256(text + b"\n").hexdigest():
        raise ValueError("it is damaged, its content is not what was written")
    header, *entries = (json.loads(line) for line in text.splitlines())
    if header["format"] > FORMAT:
        raise ValueError(f"it is of format {header['format']}, this version reads {FORMAT}: use a newer bliss-ops")
    kept = {name: header[name] for name in ("name", "lake", "begun_at", "finished_at", "package_version", "problems")}
    return Snapshot(entries=[_checked(Entry(**values)) for values in entries], **kept)
