"""One record per artifact, written last: present means complete.

An artifact is a directory with a `manifest.json`: which stage made it, from which settings and inputs, what came out. Opening a
stage's artifact has four outcomes: *done* (same fingerprint, files in place: no work), *new*, *resumed* (begun with the same
fingerprint, killed before its manifest), or `ArtifactMismatchError` (begun or done with other settings or inputs). `begun.json` marks a
begun artifact so that a resume cannot mix two settings, and work on what is another artifact by now, or finished, is thrown away
(fence.py). Shards have a finer record each (shard_records.py), so a killed stage loses the shards in work.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

from pydantic import BaseModel, Field
from upath import UPath

from bliss_ops import metering, provenance
from bliss_ops.collected import check_not_collected, find_collected, forget_collected
from bliss_ops.fence import Begun, check_begun, count_finished, find_begun, write_begun
from bliss_ops.lake import Lake, at_once, checked_by, content_of, read_bytes, remove, sweep_temporary_files, uploaded_content, write_json
from bliss_ops.launching import Launcher
from bliss_ops.shard_records import all_records, find_shards, is_in_place, make_fenced, record_path
from bliss_ops.sharding import Cost, Metrics, Output, ShardMapper, ShardRecord, map_locally, sum_metrics

log = logging.getLogger(__name__)

_SHARD_FILE = re.compile(r"(?:^|/)shard-(\d+)[.]parquet$")


class ArtifactMismatchError(ValueError):
    """The artifact exists, made from other settings or inputs."""


class OtherBytesError(ValueError):
    """What was made again is not what it was."""


class Manifest(BaseModel):
    """The record of one finished artifact."""

    stage: str
    artifact: str
    fingerprint: str
    identity: dict[str, Any]
    inputs: dict[str, str]
    outputs: list[Output]
    metrics: Metrics = Field(default_factory=dict)
    shards: list[int] = Field(default_factory=list)
    package_version: str = ""
    git_commit: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    begun_at: str = ""
    finished_at: str = ""
    cost: Cost | None = None  # None: made before costs were kept, or not measured

    @property
    def digest(self) -> str:
        """Hash of the content: the sha256 of every output. This is what a downstream fingerprint contains."""
        return _hash([[output.path, output.sha256] for output in self.outputs])


class Artifact:
    """An artifact directory being opened by its stage.

    Args:
        lake: the lake the directory is in (addresses in the manifest are relative to it).
        directory: the artifact's own directory.
        stage: the verb that makes it.
        identity: settings that can change the result, JSON values.
        inputs: manifests of the artifacts it is made from.
        replaceable: made again, instead of failing, when settings or inputs change (reports: views of what is there now).
        unread: files of the inputs that the stage does not read; the others must not have been deleted by `bliss gc`.
    """

    def __init__(
        self,
        lake: Lake,
        directory: UPath,
        *,
        stage: str,
        identity: dict[str, Any],
        inputs: Iterable[Manifest] = (),
        replaceable: bool = False,
        unread: Collection[str] = (),
    ) -> None:
        self.replaceable = replaceable
        self.unread = unread
        self.lake = lake
        self.directory = directory
        self.stage = stage
        self.identity = json.loads(json.dumps(identity))
        self.inputs = {manifest.artifact: manifest.digest for manifest in inputs}
        self.address = lake.relative(directory)
        self.fingerprint = _hash({"stage": stage, "identity": self.identity, "inputs": self.inputs})

    def finished(self, only: Collection[int] | None = None) -> Manifest | None:
        """The manifest when this artifact is done and its files are in place, else None.

        Args:
            only: of these shards' files; None for all. Groups of shards look after their own, else 64 of them ask for 64 times as many.

        Raises:
            ArtifactMismatchError: it was begun or finished with other settings or inputs.
        """
        manifest = find_manifest(self.directory)
        if manifest is not None and not (self.replaceable and manifest.fingerprint != self.fingerprint):
            self._check_same(manifest.fingerprint, manifest.identity, manifest.inputs)
            outputs = [output for output in manifest.outputs if only is None or _is_of(output, only)]
            are_there = at_once(partial(is_in_place, self.directory), outputs, self.directory)
            missing = [output.path for output, is_there in zip(outputs, are_there, strict=True) if not is_there]
            if not missing:
                log.info("%s: %s is done (fingerprint %s), nothing to do", self.stage, self.address, self.fingerprint[:12])
                return manifest
            if (collected := find_collected(self.directory)) and collected.covers(missing):
                log.info("%s: %s is done; %d files of it were deleted by `bliss gc`, nothing to do", self.stage, self.address, len(missing))
                return manifest
            log.warning("%s: %d files of %s are missing or cut (%s): making them again", self.stage, len(missing), self.address, missing[0])
        return None

    def begin(self) -> int:
        """Mark the artifact as begun with this fingerprint; a later call with another one fails.

        Returns:
            How often it has been finished so far, for the fence (fence.py).

        Raises:
            ArtifactMismatchError: it was begun with other settings or inputs.
            ValueError: an input was deleted by `bliss gc`; the message names the command that makes it again.
        """
        check_not_collected(self.lake.root, self.inputs, unread=self.unread)
        begun = None if self.replaceable else find_begun(self.directory)
        if begun is not None:
            self._check_same(begun.fingerprint, begun.identity, begun.inputs)
            log.info("%s: resuming %s", self.stage, self.address)
            sweep_temporary_files(self.directory)
        else:
            metering.forget(self.directory)
            begun = Begun(fingerprint=self.fingerprint, identity=self.identity, inputs=self.inputs, begun_at=_now())
            write_begun(self.directory, begun)
        return begun.num_finished

    def commit(
        self, files: Sequence[str | Output], metrics: Metrics | None = None, shards: Sequence[int] = (), cost: Cost | None = None
    ) -> Manifest:
        """Write the manifest. `files` are paths below the directory; ready-made `Output` records are taken as they are.

        Raises:
            ReplacedError: the artifact was deleted or begun with other settings meanwhile.
            OtherBytesError: files that `bliss gc` had deleted were made again and are not what they were.
        """
        begun = check_begun(self.directory, None if self.replaceable else self.fingerprint)
        outputs = [file if isinstance(file, Output) else describe(self.directory, file) for file in files]
        self._check_same_bytes(outputs)
        manifest = Manifest(
            stage=self.stage,
            artifact=self.address,
            fingerprint=self.fingerprint,
            identity=self.identity,
            inputs=self.inputs,
            outputs=sorted(outputs, key=lambda output: output.path),
            metrics=metrics or {},
            shards=sorted(shards),
            package_version=provenance.version_of(provenance.PACKAGE),
            git_commit=provenance.git_commit(),
            versions=provenance.versions(),
            begun_at=begun.begun_at,
            finished_at=_now(),
            cost=cost,
        )
        write_json(self.directory / "manifest.json", manifest.model_dump())
        forget_collected(self.directory)
        log.info("%s: %s finished, %d files", self.stage, self.address, len(outputs))
        return manifest

    def produce(self, make: Callable[[UPath], tuple[Sequence[str], Metrics]]) -> Manifest:
        """Return the finished manifest, calling `make(directory) -> (files, metrics)` only when there is work to do.

        Raises:
            ReplacedError: the artifact was deleted or begun with other settings meanwhile.
        """
        if manifest := self.finished():
            return manifest
        num_finished = self.begin()
        if self.replaceable:  # whoever makes it last is right
            return self._make(make)
        try:
            with checked_by(partial(check_begun, self.directory, self.fingerprint, num_finished)):
                return self._make(make)
        except (ValueError, FileNotFoundError):  # what a worker's ReplacedError comes as; and of a deleted directory's files
            is_finished = check_begun(self.directory, self.fingerprint).num_finished != num_finished
            theirs = self.finished() if is_finished else None
            if theirs is None:
                raise
            log.info("%s: %s was made by another process meanwhile: what this one has made is thrown away", self.stage, self.address)
            metering.forget(self.directory)
            return theirs

    def _make(self, make: Callable[[UPath], tuple[Sequence[str], Metrics]]) -> Manifest:
        with metering.recorded(self.directory, self.fingerprint):
            files, metrics = make(self.directory)
        manifest = self.commit(files, metrics, cost=metering.spent(self.directory, self.fingerprint))
        if not self.replaceable:
            count_finished(self.directory, self.fingerprint)  # ends the work of others
        metering.forget(self.directory)  # the manifest has the sum
        return manifest

    def metered(self, launch: Launcher) -> Launcher:
        """`launch`, with what its workers cost added to this artifact's, and with the fence around what they write."""
        return metering.metered(launch, self.directory, self.fingerprint)

    def produce_shards(
        self,
        make_worker: Callable[[], Callable[[int], ShardRecord]],
        shards: Sequence[int],
        *,
        only: Sequence[int] | None = None,
        mapper: ShardMapper = map_locally,
        check: Callable[[list[ShardRecord]], Metrics] = lambda records: sum_metrics(records),
        in_flight: int = 1,
        on_gpu: bool = False,
    ) -> Manifest | None:
        """Make the missing ones of `shards` (of `only`, when a scheduler maps over groups); whoever makes the last one writes the manifest.

        Args:
            make_worker: called once per worker process; its result makes one shard: writes its files, returns their record.
            shards: every shard the finished artifact has.
            only: the shards this call is responsible for; None for all.
            mapper: runs workers over shards, in this process or on a Ray cluster.
            check: turns all records into the manifest's metrics; raises ValueError when the whole is not usable.
            in_flight: shards that a worker takes at the same time.
            on_gpu: whether a worker wants a GPU where there is one.

        Returns:
            The manifest, or None when shards of other groups are still missing.

        Raises:
            ReplacedError: the artifact was deleted or begun with other settings meanwhile.
        """
        if manifest := self.finished(only):
            return manifest
        self.begin()
        mine = sorted(set(shards) if only is None else set(shards) & set(only))
        missing = [shard for shard, record in zip(mine, find_shards(self.directory, mine), strict=True) if record is None]
        if len(missing) < len(mine):
            log.info("%s: %d of %d shards are done already", self.stage, len(mine) - len(missing), len(mine))
        fenced = partial(make_fenced, make_worker, self.directory, self.fingerprint)
        description = f"{self.stage} {self.address}"
        for record in mapper(fenced, missing, description=description, in_flight=in_flight, on_gpu=on_gpu):
            check_begun(self.directory, self.fingerprint)
            write_json(record_path(self.directory, record.shard), record.model_dump())
        complete = all_records(self.directory, shards)
        if complete is None:
            return None
        outputs = [output for record in complete for output in record.outputs]
        costs = [record.cost for record in complete if record.cost]
        return self.commit(outputs, check(complete), shards=shards, cost=metering.total(costs) if costs else None)

    def _check_same_bytes(self, outputs: Sequence[Output]) -> None:
        """What later stages were made from must come back as it was, or their records would speak of something that is not there.

        What came out otherwise goes, also where `bliss gc` had not taken the file: its size is mostly right, so it would count as done.
        """
        collected, former = find_collected(self.directory), find_manifest(self.directory)
        if collected is None or former is None or former.fingerprint != self.fingerprint:
            return
        before = {output.path: output.sha256 for output in former.outputs}
        others = sorted(output.path for output in outputs if before.get(output.path) != output.sha256)
        if not others:
            return
        for path in [*others, *(output.path for output in collected.files)]:
            remove(self.directory / path)
        metering.forget(self.directory)
        made_with = ", ".join(f"{name} {was or 'none'}" for name, was in sorted(former.versions.items()))
        raise OtherBytesError(
            f"{self.stage}: {self.address} was made again and {', '.join(others[:3])} came out with other bytes than before: the machine, "
            f"its devices or library versions differ (it was first made with {made_with}). What was made from the former files stays as it "
            f"is; to go on from new ones, delete {self.directory} and the artifacts made from it"
        )

    def _check_same(self, fingerprint: str, identity: dict[str, Any], inputs: dict[str, str]) -> None:
        if fingerprint == self.fingerprint:
            return
        changes = differences({"settings": identity, "inputs": inputs}, {"settings": self.identity, "inputs": self.inputs})
        listing = "\n".join(f"  {change}" for change in changes)
        raise ArtifactMismatchError(
            f"{self.stage}: {self.directory} was made with other settings or inputs:\n{listing}\n"
            f"Either put the settings back, or keep what is there and use another name; to make it again, delete {self.directory}."
        )


def find_manifest(directory: UPath) -> Manifest | None:
    """The manifest of a finished artifact, or None."""
    try:
        return Manifest.model_validate_json(read_bytes(directory / "manifest.json"))
    except FileNotFoundError:
        return None


def read_manifest(directory: UPath, *, made_by: str) -> Manifest:
    """The manifest of a finished artifact.

    Raises:
        ValueError: it is not there or not finished; the message names the command that makes it.
    """
    manifest = find_manifest(directory)
    if manifest is None:
        raise ValueError(f"{directory} is missing or not finished: run `{made_by}` first")
    return manifest


def describe(directory: UPath, file: str, rows: int | None = None) -> Output:
    """Size and sha256 of one written file."""
    num_bytes, sha256 = uploaded_content(directory / file) or content_of(directory / file)
    return Output(path=file, bytes=num_bytes, sha256=sha256, rows=rows)


def check_content(directory: UPath, outputs: Iterable[Output], *, made_by: str) -> None:
    """Return when every file has the content that its record says.

    Raises:
        ValueError: one has not; the message names it and how to make it again.
    """

    def check(output: Output) -> None:
        try:
            num_bytes, sha256 = content_of(directory / output.path)
        except FileNotFoundError:
            raise ValueError(f"{directory / output.path} is missing: run `{made_by}` again") from None
        if sha256 != output.sha256:
            raise ValueError(
                f"{directory / output.path} is not what was written (sha256 {sha256[:12]}, {num_bytes:,} bytes; its record says "
                f"{output.sha256[:12]}, {output.bytes:,} bytes): delete it and run `{made_by}` again"
            )

    for _ in at_once(check, list(outputs), directory):
        pass


def _is_of(output: Output, shards: Collection[int]) -> bool:
    """Whether a file is one of these shards', or of no shard."""
    found = _SHARD_FILE.search(output.path)
    return found is None or int(found[1]) in shards


def differences(before: Any, now: Any, path: str = "") -> list[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        keys = sorted(before.keys() | now.keys())
        return [line for key in keys for line in differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)]
    return [] if before == now else [f"{path}: was {before!r}, now {now!r}"]


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
