"""`bliss backup`: a consistent copy of a lake that is being worked on; and whether a copy is whole.

Artifact after artifact (on an object store several at a time), by what its manifest says: the files with the hashes it recorded, then its
records, its manifest last. An artifact that changed meanwhile is copied again. What is not finished is copied as far as it would be
resumed: finished shards with their records, checkpoints before the metrics that go on after them. At the end, everything that a copied
artifact was made from is in the copy as well, also where it finished after the listing. What an earlier backup has copied is not read
again.

The score store's snapshot goes along, its working file does not: `bliss store rebuild` makes that from Parquet.
"""

import hashlib
import io
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from threading import Lock

from upath import UPath

from bliss_ops.collected import Collected
from bliss_ops.lake import Lake, at_once, is_local
from bliss_ops.manifest import Manifest
from bliss_ops.operations.files import File, is_temporary, listing
from bliss_ops.operations.snapshots import COPIES_AT_ONCE, DAMAGED, METADATA, Entry, Snapshot, Target, check_apart, copy, new_name
from bliss_ops.sharding import Output, Progress, ShardRecord

log = logging.getLogger(__name__)

ATTEMPTS = 4  # at an artifact that changes while it is copied
RECORDS = ("manifest.json", "begun.json", "collected.json")
STORE = "scores.duckdb"
NOT_COPIED = ("scores.working.", "restoring.json")


@dataclass
class Report:
    """What was done."""

    snapshot: Snapshot
    num_copied: int = 0
    num_bytes_copied: int = 0


def backup(lake: Lake, target: Target, *, metadata: Sequence[Path] = (), with_store: bool = True) -> Report:
    """Copy the lake, and files of metadata, into a new snapshot of `target`.

    Files whose content is not what their manifest says are left out and named in the snapshot's problems; restored, their stage makes
    them again.

    Raises:
        ValueError: the two lie in each other.
        OSError: the target is full or cannot be written; the same command goes on from there.
    """
    check_apart(lake.root, target.root)
    target.sweep(time.time())
    copying = _Copying(lake, target, with_store=with_store)
    copying.everything()
    for file in metadata:
        with file.open("rb") as stream:
            sha256, num_bytes = target.put(stream)
        copying.entries[METADATA + file.name] = Entry(METADATA + file.name, num_bytes, sha256)
    snapshot = Snapshot(
        name=new_name(),
        lake=str(lake.root),
        begun_at=copying.begun_at,
        entries=sorted(copying.entries.values(), key=lambda entry: entry.address),
        finished_at=_now(),
        problems=copying.problems,
    )
    target.write(snapshot)
    return Report(snapshot, copying.num_copied, copying.num_bytes_copied)


def verify(target: Target, name: str | None = None) -> tuple[Snapshot, list[str]]:
    """Read every object of a snapshot and compare it with its name; returns what is missing or damaged.

    A damaged object is moved to `damaged/`, so that the next backup copies it again while the lake still has it.
    """
    snapshot = target.read(name)
    addresses: dict[str, str] = {}
    for entry in snapshot.entries:
        addresses.setdefault(entry.sha256, entry.address)
    progress = Progress(f"verify {snapshot.name}", len(addresses), "objects", seconds_between_lines=5.0)

    def problem_of(sha256: str) -> str:
        path = target.object(sha256)
        try:
            with path.open("rb") as stream:
                found, _ = copy(stream, None)
        except FileNotFoundError:
            return f"{addresses[sha256]}: object {sha256} is missing"
        finally:
            progress.advance()
        if found == sha256:
            return ""
        aside = target.root / DAMAGED / sha256
        if is_local(aside):
            aside.parent.mkdir(parents=True, exist_ok=True)
        path.fs.mv(path.path, aside.path)
        return f"{addresses[sha256]}: object {sha256} is damaged, it was moved to {aside}"

    return snapshot, [problem for problem in at_once(problem_of, sorted(addresses), target.root, num_at_once=COPIES_AT_ONCE) if problem]


@dataclass
class _Artifact:
    """The records of one artifact as they were at one moment."""

    records: dict[str, bytes]

    @property
    def manifest(self) -> Manifest | None:
        data = self.records.get("manifest.json")
        return None if data is None else Manifest.model_validate_json(data)

    @property
    def taken(self) -> set[str]:
        data = self.records.get("collected.json")
        return set() if data is None else {output.path for output in Collected.model_validate_json(data).files}


@dataclass
class _Copying:
    lake: Lake
    target: Target
    with_store: bool
    entries: dict[str, Entry] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    num_copied: int = 0
    num_bytes_copied: int = 0
    begun_at: str = field(default_factory=lambda: _now())

    def __post_init__(self) -> None:
        self.objects = self.target.objects()
        names = self.target.names()
        self.former = {entry.address: entry for entry in self.target.read(names[-1]).entries} if names else {}
        self.finished: dict[str, Manifest] = {}
        self._lock = Lock()

    def everything(self) -> None:
        files = [file for file in listing(self.lake.root) if self._is_wanted(file)]
        roots = {str(PurePosixPath(file.address).parent) for file in files if PurePosixPath(file.address).name in RECORDS[:2]}
        by_root: dict[str, list[File]] = {root: [] for root in roots}
        loose: list[File] = []
        for file in files:
            root = next((str(parent) for parent in PurePosixPath(file.address).parents if str(parent) in roots), None)
            (loose if root is None else by_root[root]).append(file)
        progress = Progress(f"backup {self.lake.root}", len(by_root), "artifacts", seconds_between_lines=5.0)

        def copied(root: str) -> None:
            self._artifact(root, by_root[root])
            progress.advance()

        list(at_once(copied, sorted(by_root), self.lake.root, self.target.root, num_at_once=COPIES_AT_ONCE))
        while missing := self._inputs_not_copied():
            for root in missing:
                self._artifact(root, [file for file in listing(self.lake.root, root) if self._is_wanted(file)])
        self._plain(loose)  # settings last: they may say more than the copied artifacts, never less

    def _is_wanted(self, file: File) -> bool:
        if is_temporary(file.address) or file.address.startswith(NOT_COPIED):
            return False
        return self.with_store or file.address != STORE

    def _inputs_not_copied(self) -> list[str]:
        """What copied artifacts were made from and is finished in the lake, but not in the copy."""
        wanted = {address for manifest in self.finished.values() for address in manifest.inputs} - self.finished.keys()
        return sorted(address for address in wanted if (self.lake.root / address / "manifest.json").exists())

    def _artifact(self, root: str, files: Sequence[File]) -> None:
        """One artifact as it was at one moment; tried again while it changes."""
        for _ in range(ATTEMPTS):
            before = self._records(root)
            problems: list[str] = []
            entries = self._contents(root, before, files, problems)
            if self._records(root).records == before.records:
                break
            files = [file for file in listing(self.lake.root, root) if self._is_wanted(file)]
        else:
            log.warning("backup: %s keeps changing; it is copied as it was a moment ago, and would be made again", root)
            before.records.pop("manifest.json", None)
        self.problems += problems
        if manifest := before.manifest:
            self.finished[root] = manifest
        for name, data in before.records.items():
            entries.append(self._bytes(f"{root}/{name}", data))
        self._keep(entries)

    def _records(self, root: str) -> _Artifact:
        records = {}
        for name in RECORDS:
            try:
                records[name] = (self.lake.root / root / name).read_bytes()
            except FileNotFoundError:
                continue
        return _Artifact(records)

    def _contents(self, root: str, artifact: _Artifact, files: Sequence[File], problems: list[str]) -> list[Entry]:
        """Its outputs by their recorded hashes, then what else is there."""
        manifest, done = artifact.manifest, {f"{root}/{name}" for name in RECORDS}
        if manifest is not None:
            outputs = [output for output in manifest.outputs if output.path not in artifact.taken]
            entries = [*self._outputs(root, outputs, problems)]
            done |= {f"{root}/{output.path}" for output in manifest.outputs}
            rest = [file for file in files if file.address not in done]
        else:
            entries, recorded = self._shards(root, files)
            done |= recorded
            rest = [file for file in files if file.address not in done and not _is_shard(file.address)]
        rest.sort(key=lambda file: (not file.address.endswith(".safetensors"), file.address))  # before the metrics that go on after them
        return entries + self._plain(rest, keep=False)

    def _shards(self, root: str, files: Sequence[File]) -> tuple[list[Entry], set[str]]:
        """Of an artifact in work: the shards that have a record, and whose files are what it says."""
        entries: list[Entry] = []
        addresses = {file.address for file in files if file.address.startswith(f"{root}/_shards/")}
        for address in sorted(addresses):
            try:
                data = (self.lake.root / address).read_bytes()
            except FileNotFoundError:
                continue
            problems: list[str] = []
            found = self._outputs(root, ShardRecord.model_validate_json(data).outputs, problems)
            if not problems:
                entries += [*found, self._bytes(address, data)]
        return entries, addresses

    def _outputs(self, root: str, outputs: Sequence[Output], problems: list[str]) -> list[Entry]:
        def copied(output: Output) -> Entry | None:
            address = f"{root}/{output.path}"
            if self.objects.get(output.sha256) == output.bytes:
                return Entry(address, output.bytes, output.sha256)
            try:
                sha256, num_bytes = self._put(self.lake.root / address)
            except FileNotFoundError:
                problems.append(f"{address} is missing: the stage that made it makes it again")
                return None
            if sha256 != output.sha256:
                problems.append(f"{address} is not what its manifest says (sha256 {sha256[:12]}, not {output.sha256[:12]}): it is left out")
                return None
            return Entry(address, num_bytes, sha256)

        return [entry for entry in at_once(copied, outputs, self.lake.root, self.target.root, num_at_once=COPIES_AT_ONCE) if entry]

    def _plain(self, files: Sequence[File], *, keep: bool = True) -> list[Entry]:
        """Files that no record tells the hash of; those that an earlier backup copied and nobody touched are not read again."""

        def copied(file: File) -> Entry | None:
            former = self.former.get(file.address)
            if former and (former.num_bytes, former.stamp) == (file.num_bytes, file.stamp) and former.sha256 in self.objects:
                return former
            try:
                sha256, num_bytes = self._put(self.lake.root / file.address)
            except FileNotFoundError:  # it was of work that went on, such as a checkpoint that was followed by the next
                return None
            return Entry(file.address, num_bytes, sha256, file.stamp)

        entries = [entry for entry in at_once(copied, files, self.lake.root, self.target.root, num_at_once=COPIES_AT_ONCE) if entry]
        if keep:
            self._keep(entries)
        return entries

    def _put(self, source: UPath) -> tuple[str, int]:
        with source.open("rb") as stream:
            sha256, num_bytes = self.target.put(stream)
        self._count(sha256, num_bytes)
        return sha256, num_bytes

    def _bytes(self, address: str, data: bytes) -> Entry:
        sha256 = hashlib.sha256(data).hexdigest()
        if self.objects.get(sha256) != len(data):
            self.target.put(io.BytesIO(data))
            self._count(sha256, len(data))
        return Entry(address, len(data), sha256)

    def _count(self, sha256: str, num_bytes: int) -> None:
        with self._lock:
            self.objects[sha256] = num_bytes
            self.num_copied += 1
            self.num_bytes_copied += num_bytes

    def _keep(self, entries: Sequence[Entry]) -> None:
        with self._lock:
            self.entries |= {entry.address: entry for entry in entries}


def _is_shard(address: str) -> bool:
    name = PurePosixPath(address).name
    return name.startswith("shard-") and name.endswith(".parquet")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
