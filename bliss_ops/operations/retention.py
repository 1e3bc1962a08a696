"""What may go of a lake: the working material of finished work, never a product, never what a later stage still reads.

Settings, manifests, selectors, scores of rounds, selections, trained models, evaluations and reports stay for good: from them the score
store is rebuilt, runs are compared, and corpora are scored. What goes can be made again, byte for byte, by the stage that made it
(remaking.py); where it could not, because an input has other content now, it stays. Nothing is taken from an artifact that is not
finished, is younger than `older_than_seconds`, or is being made again. What the corpora consist of is not touched.

This file only decides; collecting.py deletes.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from upath import UPath

from bliss_ops.collected import ASIDE, find_collected
from bliss_ops.lake import Lake, Run, is_local, is_on_s3
from bliss_ops.manifest import Manifest, find_manifest
from bliss_ops.object_store.errors import AccessDeniedError, StoreError
from bliss_ops.operations.files import File, is_temporary, listing
from bliss_ops.sharding import Output

KINDS = {
    "checkpoints": "training states on the way to something that is finished",
    "subsets": "tokens of a finished round's subset",
    "states": "weights with their optimizer, which a finished later round went on from",
    "scores": "scores of a corpus by an older round's score model, where the run has newer ones of it",
    "temporary": "files of writes that were killed",
    "uploads": "parts of uploads to an object store that were killed",
    "logs": "logs of Airflow's tasks and of Ray's jobs",
}
STATE, PROXY = "state.safetensors", "proxy.safetensors"
OF_A_ROUND = ("selector", "scores", "fidelity", "selection", "subset", "pretrain", "evaluation")
TRAINED = ("selector", "fidelity", "pretrain")  # artifacts of a round that may have checkpoints beside their outputs
CHECKPOINTS = "checkpoints/"  # where `pretraining.keep_every_steps` keeps them
HOUR, DAY = 3600.0, 86400.0
UPLOAD_SECONDS = DAY  # one file of a few hundred gigabytes is on its way for hours


@dataclass(frozen=True)
class Policy:
    """What is asked for.

    Args:
        runs: only these; None for every run of the lake.
        kinds: of `KINDS`.
        keep_rounds: the newest finished rounds of each run that keep everything. 0 only with `runs`: a finished run's last round, and
            the warm-up, keep nothing that can be made again, and extending the run begins with `bliss remake`.
        older_than_seconds: what is younger stays.
        logs_older_than_seconds: the same of logs.
        state_dir: of `bliss up`, for its logs; None leaves logs alone.
    """

    runs: tuple[str, ...] | None = None
    kinds: tuple[str, ...] = tuple(KINDS)
    keep_rounds: int = 1
    older_than_seconds: float = DAY
    logs_older_than_seconds: float = 30 * DAY
    state_dir: Path | None = None

    def __post_init__(self) -> None:
        if unknown := set(self.kinds) - set(KINDS):
            raise ValueError(f"{', '.join(sorted(unknown))}: no such kind; there are {', '.join(KINDS)}")
        if self.keep_rounds < 0 or self.older_than_seconds < 0 or self.logs_older_than_seconds < 0:
            raise ValueError("rounds to keep and ages count from 0")
        if self.keep_rounds == 0 and not self.runs:
            raise ValueError("with --keep-rounds 0 no state is left that a run could go on from: name the finished runs, with --run")


@dataclass(frozen=True)
class Item:
    """Files that may go together, and why."""

    kind: str
    root: UPath  # of the lake, or of the stack's directory: nothing outside of it is deleted
    address: str  # of the artifact, the file or the folder
    files: tuple[str, ...]  # below the root
    num_bytes: int
    reason: str
    outputs: tuple[Output, ...] = ()  # of an artifact: these are written down in its `collected.json`
    fingerprint: str = ""
    upload_id: str = ""


@dataclass
class Plan:
    """The answer."""

    items: list[Item] = field(default_factory=list)
    kept: list[tuple[str, str]] = field(default_factory=list)  # address and why it stays, of what might have been expected to go

    @property
    def num_bytes(self) -> int:
        return sum(item.num_bytes for item in self.items)


def plan(lake: Lake, policy: Policy, *, now: float | None = None) -> Plan:
    """What may go, and what stays although it is of a kind that was asked for.

    Raises:
        ValueError: a named run is not in the lake.
    """
    at = time.time() if now is None else now
    found = Plan()
    names = lake.run_names() if policy.runs is None else list(policy.runs)
    for name in names:
        run = lake.run(name)
        try:
            _ = run.config
        except ValueError as error:
            if policy.runs is not None:
                raise
            found.kept.append((f"runs/{name}", f"its settings cannot be read: {error}"))
            continue
        _Of(lake, policy, at, found).run(run)
    if "scores" in policy.kinds:
        _Of(lake, policy, at, found).superseded_scores()
    if policy.runs is None and "temporary" in policy.kinds:
        found.items += _temporary(lake, at - max(policy.older_than_seconds, HOUR))
    if policy.runs is None and "uploads" in policy.kinds:
        _uploads(lake, at - max(policy.older_than_seconds, UPLOAD_SECONDS), found)
    if policy.runs is None and "logs" in policy.kinds and policy.state_dir is not None:
        found.items += _logs(policy.state_dir.absolute(), at - policy.logs_older_than_seconds)
    return found


def num_finished_rounds(run: Run) -> int:
    """Rounds from the first on of which every artifact is there."""
    number = 0
    while number < run.config.num_rounds and all(find_manifest(run.round(number + 1) / name) for name in OF_A_ROUND):
        number += 1
    return number


@dataclass
class _Of:
    lake: Lake
    policy: Policy
    now: float
    found: Plan

    def run(self, run: Run) -> None:
        last, keep = num_finished_rounds(run), self.policy.keep_rounds
        is_over = last == run.config.num_rounds
        for number in range(1, last + 1):
            is_old = number <= last - keep
            here, why = run.round(number), f"round {number} is finished, and so is round {last}" if number < last else "the run is finished"
            stays = "" if is_old else f"round {number} is one of the newest {keep} of {last} finished rounds"
            self._checkpoints([here / name for name in TRAINED], is_old=is_old)
            self._take(here / "subset", "subsets", lambda _: True, why, stays=stays)
            if not stays and number == last and not is_over:
                stays = f"round {number + 1} goes on from it"
            self._take(here / "pretrain", "states", lambda path: path == STATE, why, stays=stays)
        if run.config.warmup_of is None and find_manifest(run.warmup):
            self._checkpoints([run.warmup], is_old=True)
            if keep == 0:
                stays = "" if is_over else "rounds to come start from it"
                stays = stays or self._shared_by(run)
                self._take(run.warmup, "states", lambda path: path in (STATE, PROXY), "the run is finished", stays=stays)

    def superseded_scores(self) -> None:
        """Sets of scores of the same corpus by the same run, made by a former round's model and not imported."""
        sets: dict[tuple[str, str], list[tuple[int, str]]] = {}
        for corpus, name in self.lake.further_score_names():
            manifest = find_manifest(self.lake.further_scores(corpus, name))
            if manifest and manifest.stage == "rescore" and self._inputs_are_the_same(manifest):
                run, number = str(manifest.identity.get("run")), int(manifest.identity.get("round", 0))
                if self.policy.runs is None or run in self.policy.runs:
                    sets.setdefault((corpus, run), []).append((number, name))
        for (corpus, run), names in sorted(sets.items()):
            numbers = sorted({number for number, _ in names}, reverse=True)
            newest, keep = numbers[0], set(numbers[: max(self.policy.keep_rounds, 1)])
            for number, name in sorted(names):
                if number not in keep:
                    why = f"{run} has scored {corpus} by its score model of round {newest} since"
                    self._take(self.lake.further_scores(corpus, name), "scores", lambda _: True, why)

    def _shared_by(self, run: Run) -> str:
        for name in self.lake.run_names():
            other = self.lake.run(name)
            try:
                _ = other.config
            except ValueError:
                return f"the settings of {name} cannot be read, it may start from it"
            if other.config.warmup_of == run.name and num_finished_rounds(other) < other.config.num_rounds:
                return f"{name} starts from it and is not finished"
        return ""

    def _take(self, directory: UPath, kind: str, is_meant: Callable[[str], bool], why: str, *, stays: str = "") -> None:
        """The outputs of a finished artifact that are meant and are there."""
        manifest = find_manifest(directory)
        if kind not in self.policy.kinds or manifest is None:
            return
        address = self.lake.relative(directory)
        there = {file.address: file for file in listing(self.lake.root, address)}
        outputs = [output for output in manifest.outputs if is_meant(output.path) and f"{address}/{output.path}" in there]
        if not outputs:
            return
        if reason := stays or self._obstacle(directory, manifest):
            self.found.kept.append((address, reason))
            return
        files = tuple(f"{address}/{output.path}" for output in outputs)
        num_bytes = sum(there[file].num_bytes for file in files)
        reason = f"{why}; `bliss remake {address}` makes it again"
        self.found.items.append(Item(kind, self.lake.root, address, files, num_bytes, reason, tuple(outputs), manifest.fingerprint))

    def _checkpoints(self, directories: Sequence[UPath], *, is_old: bool) -> None:
        """Tensors beside the outputs of finished artifacts; those that a setting keeps only of old rounds."""
        for directory in directories:
            manifest = find_manifest(directory)
            if "checkpoints" not in self.policy.kinds or manifest is None:
                continue
            address = self.lake.relative(directory)
            outputs = {f"{address}/{output.path}" for output in manifest.outputs}
            extra = [file for file in listing(self.lake.root, address) if file.address.endswith(".safetensors")]
            extra = [file for file in extra if file.address not in outputs and not is_temporary(file.address)]
            extra = [file for file in extra if not file.address.startswith(f"{address}/{ASIDE}/")]  # perhaps the only true copies
            by_setting = [file for file in extra if file.address.startswith(f"{address}/{CHECKPOINTS}")]
            if by_setting and not is_old:
                self.found.kept.append((f"{address}/{CHECKPOINTS}", "kept by pretraining.keep_every_steps, of one of the newest rounds"))
                extra, by_setting = [file for file in extra if file not in by_setting], []
            if extra and (obstacle := self._obstacle(directory, manifest, extra)):
                self.found.kept.append((address, obstacle))
            elif extra:
                why = "of an old round, kept by pretraining.keep_every_steps" if by_setting else "they only led to what is finished"
                paths, num_bytes = tuple(file.address for file in extra), sum(file.num_bytes for file in extra)
                item = Item("checkpoints", self.lake.root, address, paths, num_bytes, why, fingerprint=manifest.fingerprint)
                self.found.items.append(item)

    def _obstacle(self, directory: UPath, manifest: Manifest, files: Sequence[File] = ()) -> str:
        """Why nothing may be taken from a finished artifact now; empty where it may."""
        record = find_collected(directory)
        if record is not None and record.wanted_since is not None:
            return f"it is being made again since {record.wanted_since}: `bliss remake {manifest.artifact}` ends that"
        finished_at = datetime.fromisoformat(manifest.finished_at).timestamp() if manifest.finished_at else self.now
        youngest = max([finished_at, *(file.modified_at for file in files)])
        if youngest > self.now - self.policy.older_than_seconds:
            return f"it is younger than {_duration(self.policy.older_than_seconds)}"
        if not self._inputs_are_the_same(manifest):
            return "what it was made from has other content now, so it could not be made again"
        return ""

    def _inputs_are_the_same(self, manifest: Manifest) -> bool:
        before = ((find_manifest(self.lake.root / address), digest) for address, digest in manifest.inputs.items())
        return all(now is not None and now.digest == digest for now, digest in before)


def _temporary(lake: Lake, before: float) -> Iterator[Item]:
    """Only local writes leave such files: an object appears when its upload is complete."""
    if not is_local(lake.root):
        return
    for file in listing(lake.root):
        if is_temporary(file.address) and file.modified_at < before:
            why = f"nobody has written to it since {_date(file.modified_at)}"
            yield Item("temporary", lake.root, file.address, (file.address,), file.num_bytes, why)


def _uploads(lake: Lake, before: float, found: Plan) -> None:
    """Multipart uploads below the lake that were begun and never completed; their parts are paid for and not listed as files."""
    if not is_on_s3(lake.root):
        return
    bucket, _, prefix = lake.root.path.strip("/").partition("/")
    try:
        uploads = lake.root.fs.uploads_below(lake.root.path)
    except StoreError as error:  # a right that is not given, a store that has no such request: everything else may go all the same
        found.kept.append(("uploads", f"those that were never completed cannot be looked for: {error}"))
        return
    for upload in uploads:
        begun = upload["Initiated"].astimezone(UTC)
        if begun.timestamp() >= before:
            continue
        key, upload_id = upload["Key"], upload["UploadId"]
        why = f"begun on {begun:%Y-%m-%d} and never completed"
        try:
            num_bytes = sum(int(part["Size"]) for part in _parts(lake, {"Bucket": bucket, "Key": key, "UploadId": upload_id}))
        except FileNotFoundError:  # it has ended since it was listed
            continue
        except AccessDeniedError:
            num_bytes, why = 0, f"{why}; its size is not known without the right s3:ListMultipartUploadParts"
        address = key[len(prefix) + 1 :] if prefix else key
        found.items.append(Item("uploads", lake.root, address, (), num_bytes, why, upload_id=upload_id))


def _parts(lake: Lake, which: dict[str, Any]) -> Iterator[dict[str, Any]]:
    while True:
        answer = lake.root.fs.call_s3("list_parts", **which)
        parts = answer.get("Parts", [])
        yield from parts
        if not answer.get("IsTruncated") or not parts:
            return
        which = which | {"PartNumberMarker": parts[-1]["PartNumber"]}


def _logs(state_dir: Path, before: float) -> Iterator[Item]:
    """Of the stack that `bliss up` started in `state_dir`: Airflow's by DAG, and those of Ray's finished jobs."""
    from bliss_ops.stack.state import read_state

    places: list[tuple[UPath, str, Callable[[str], bool]]] = [(UPath(state_dir), "airflow/logs", lambda _: True)]
    if state := read_state(state_dir):
        places += [(UPath(state.layout.ray_temp), "", lambda address: "/logs/job-driver-" in address)]
    for root, folder, is_meant in places:
        if not Path(root.path).is_dir():
            continue
        groups: dict[str, list[File]] = {}
        for file in listing(root, folder):
            if file.modified_at < before and is_meant(file.address):
                depth = 3 if folder else 2
                groups.setdefault("/".join(file.address.split("/")[:depth]), []).append(file)
        for address, files in sorted(groups.items()):
            why = f"{len(files)} files that nobody has written to since {_date(max(file.modified_at for file in files))}"
            yield Item("logs", root, address, tuple(file.address for file in files), sum(file.num_bytes for file in files), why)


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")


def _duration(seconds: float) -> str:
    return f"{seconds / DAY:g} days" if seconds >= DAY else f"{seconds / HOUR:g} hours"
