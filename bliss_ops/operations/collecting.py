"""Doing what retention.py found: a record first, then the files, and a journal of it all in `maintenance/`.

Each artifact is looked at again right before: one that was deleted or begun anew since it was planned is left alone. A killed clean-up
leaves records that say more than is gone; the next one takes the rest. Two at a time delete the same files and do no harm.
"""

import logging
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from bliss_ops import __version__
from bliss_ops.collected import Collected, find_collected, write_collected
from bliss_ops.lake import Lake, write_json
from bliss_ops.manifest import find_manifest
from bliss_ops.operations.files import check_reachable, remove, remove_empty_directories
from bliss_ops.operations.retention import Item

log = logging.getLogger(__name__)

JOURNALS = "maintenance"


@dataclass
class Outcome:
    """What came of it."""

    num_files: int = 0
    num_bytes: int = 0
    problems: list[str] = field(default_factory=list)
    journal: str = ""


def collect(lake: Lake, items: Sequence[Item]) -> Outcome:
    """Delete the files of `items`; one that cannot be deleted does not stop the others.

    Where scores went, the score store is brought up to date: it holds what Parquet holds.
    """
    outcome = Outcome()
    if not items:
        return outcome
    begun = datetime.now(UTC)
    journal = lake.root / JOURNALS / f"gc-{begun:%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}.json"
    outcome.journal = lake.relative(journal)
    record: dict[str, Any] = {"begun_at": begun.isoformat(timespec="seconds"), "package_version": __version__, "items": []}
    record["items"] = [described(item) for item in items]
    write_json(journal, record | {"state": "begun"})
    for item in items:
        try:
            _collect(lake, item, outcome)
        except (ValueError, OSError) as error:
            log.warning("gc: %s: %s", item.address, error)
            outcome.problems.append(f"{item.address}: {error}")
    if any(item.kind == "scores" for item in items):
        _update_store(lake, outcome)
    record |= {"finished_at": _now(), "num_files": outcome.num_files, "num_bytes": outcome.num_bytes, "problems": outcome.problems}
    write_json(journal, record | {"state": "finished"})
    return outcome


def _collect(lake: Lake, item: Item, outcome: Outcome) -> None:
    if item.upload_id:
        bucket, _, prefix = lake.root.path.strip("/").partition("/")
        key = f"{prefix}/{item.address}" if prefix else item.address
        try:
            lake.root.fs.call_s3("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=item.upload_id)
        except FileNotFoundError:
            log.info("gc: the upload to %s has ended since it was looked at", item.address)
        else:
            outcome.num_bytes += item.num_bytes
        return
    if item.fingerprint:
        check_reachable(lake.root, item.address)
        directory = lake.root / item.address
        manifest, record = find_manifest(directory), find_collected(directory)
        if manifest is None or manifest.fingerprint != item.fingerprint or (record and record.wanted_since):
            raise ValueError("it was deleted, begun anew or asked for since it was looked at: it is left alone")
        if item.outputs:
            paths = {output.path for output in item.outputs}
            before = [output for output in record.files if output.path not in paths] if record else []
            files = sorted([*before, *item.outputs], key=lambda output: output.path)
            reason = item.reason.split(";")[0]
            write_collected(directory, Collected(files=files, reason=reason, collected_at=_now(), package_version=__version__))
    for address in item.files:
        num_bytes = remove(item.root, address)
        outcome.num_bytes += num_bytes
        outcome.num_files += 1
        remove_empty_directories(item.root, address, up_to=item.address)


def _update_store(lake: Lake, outcome: Outcome) -> None:
    from bliss_ops import store

    if not lake.score_store.exists():
        return
    try:
        store.sync_lake(lake)
    except ValueError as error:  # of a score run that has nothing to do with this
        outcome.problems.append(f"score store: {error}")


def described(item: Item) -> dict[str, Any]:
    """For programs, and for the journal."""
    return {
        "kind": item.kind,
        "root": str(item.root),
        "address": item.address,
        "files": list(item.files),
        "num_bytes": item.num_bytes,
        "reason": item.reason,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
