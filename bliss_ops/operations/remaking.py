"""`bliss remake`: what `bliss gc` took out of an artifact is made again by the stage that made it, from what it was made from.

Inputs that were taken out as well come first. What was not taken out is put aside meanwhile: should the stage write other bytes than the
first time (another machine, other versions), the artifact is afterwards exactly what it was before. A killed `bliss remake` goes on when
it is run again, like any stage; the record says that the artifact is being made again until all its files are true or gone.
"""

import logging
import re
import shutil
from datetime import UTC, datetime

from upath import UPath

from bliss_ops import pipeline
from bliss_ops.collected import ASIDE, Collected, find_collected, forget_collected, write_collected
from bliss_ops.lake import Lake, atomic_file, content_of, remove
from bliss_ops.manifest import Manifest, OtherBytesError, find_manifest
from bliss_ops.operations.files import check_below
from bliss_ops.sharding import Output

log = logging.getLogger(__name__)

_ROUND = re.compile(r"runs/([^/]+)/round-(\d+)/[^/]+")
_WARMUP = re.compile(r"runs/([^/]+)/warmup")
_SCORES = re.compile(r"scores/([^/]+)/[^/]+")


def remake(lake: Lake, address: str, work: pipeline.Work = pipeline.EVERYTHING) -> list[str]:
    """Make what was taken out of an artifact again, and of what it is made from; returns the addresses in the order they were made.

    Args:
        lake: with the artifact.
        address: of the artifact, such as `runs/demo-bliss-s0/round-01/subset`.
        work: who does it.

    Raises:
        ValueError: there is no such finished artifact, or nothing knows how to make it.
        OtherBytesError: what was made is not what was there; the artifact is as it was before.
    """
    address = str(check_below(address.strip("/")))
    directory = lake.root / address
    manifest, record = find_manifest(directory), find_collected(directory)
    if manifest is None:
        raise ValueError(f"{directory} is no finished artifact: name one as `bliss gc` lists them, such as runs/RUN/round-01/subset")
    if record is None:
        _remove_aside(directory)  # of an attempt that was killed after its last step but this one
        log.info("remake: nothing was taken out of %s", address)
        return []
    made = [done for needed in _needed(manifest) for done in remake(lake, needed, work)]
    if record.wanted_since is None:
        record = record.model_copy(update={"wanted_since": datetime.now(UTC).isoformat(timespec="seconds")})
        write_collected(directory, record)
    _remove_other_bytes(directory, manifest)
    _put_aside(directory, manifest, record)
    try:
        _run_stage(lake, manifest, work)
    except OtherBytesError:
        _put_back(directory, manifest, record)
        write_collected(directory, record.model_copy(update={"wanted_since": None}))
        _remove_aside(directory)
        raise
    if find_collected(directory) is not None:  # nothing was left to do: a killed clean-up had deleted none of the files yet
        forget_collected(directory)
    _remove_aside(directory)
    return [*made, address]


def _needed(manifest: Manifest) -> list[str]:
    """The inputs that the stage reads; corpora are never taken from."""
    return [address for address in manifest.inputs if not address.startswith(("corpora/", "validation/"))]


def _run_stage(lake: Lake, manifest: Manifest, work: pipeline.Work) -> None:
    stages = {stage.name: stage for stage in pipeline.ROUND_STAGES}
    if match := _ROUND.fullmatch(manifest.artifact):
        stages[manifest.stage].do(lake.run(match[1]), int(match[2]), work)
    elif match := _WARMUP.fullmatch(manifest.artifact):
        pipeline.warm_up(lake.run(match[1]), work)
    elif (match := _SCORES.fullmatch(manifest.artifact)) and manifest.stage == "rescore":
        about = manifest.identity
        pipeline.rescore(lake.run(str(about["run"])), int(about["round"]), lake.corpus(match[1]), work)
    else:
        raise ValueError(f"{manifest.artifact} was made by {manifest.stage!r}, which `bliss remake` does not know")


def _remove_other_bytes(directory: UPath, manifest: Manifest) -> None:
    """Delete what a killed attempt made with other bytes and had not yet compared: a stage would take it for done by its size."""
    for output in manifest.outputs:
        try:
            _, sha256 = content_of(directory / output.path)
        except FileNotFoundError:
            continue
        if sha256 != output.sha256:
            log.warning("remake: %s is not what its manifest says: making it again", directory / output.path)
            remove(directory / output.path)


def _put_aside(directory: UPath, manifest: Manifest, record: Collected) -> None:
    """Copies of the outputs that are there; those that a killed attempt put aside are the true ones and stay."""
    for output in _not_taken(manifest, record):
        target = directory / ASIDE / output.path
        if not target.exists():
            _copy_if_there(directory / output.path, target)


def _put_back(directory: UPath, manifest: Manifest, record: Collected) -> None:
    """By what the manifest says: a store may not yet list what was put aside."""
    for output in _not_taken(manifest, record):
        _copy_if_there(directory / ASIDE / output.path, directory / output.path)


def _not_taken(manifest: Manifest, record: Collected) -> list[Output]:
    taken = {output.path for output in record.files}
    return [output for output in manifest.outputs if output.path not in taken]


def _remove_aside(directory: UPath) -> None:
    if (directory / ASIDE).exists():
        directory.fs.rm((directory / ASIDE).path, recursive=True)


def _copy_if_there(source: UPath, target: UPath) -> None:
    """What was lost before is not there, and comes back as well as what was taken out."""
    try:
        with source.open("rb") as reader, atomic_file(target) as file, file.open("wb") as writer:
            shutil.copyfileobj(reader, writer, 1 << 20)
    except FileNotFoundError:
        log.warning("remake: %s is not there", source)
