"""What `bliss gc` took out of a finished artifact: a record beside its manifest, so that gone on purpose is never mistaken for lost.

`collected.json` names the files with size and sha256. While it is there, the artifact counts as done without them: a finished round is not
trained again because its optimizer state has gone. A stage that would have to read them says which command makes them again.
`bliss remake` marks the record as wanted, runs the artifact's own stage, and the record goes once the same bytes are back.
"""

from collections.abc import Collection, Iterable

from pydantic import BaseModel
from upath import UPath

from bliss_ops.lake import read_bytes, remove, write_json
from bliss_ops.sharding import Output

FILE = "collected.json"
ASIDE = "aside"  # folder in an artifact that is being made again: copies of what was not taken out


class Collected(BaseModel):
    """The record of one artifact; written before its files are deleted, so that a killed clean-up is seen and goes on."""

    files: list[Output]
    reason: str
    collected_at: str
    package_version: str = ""
    wanted_since: str | None = None  # `bliss remake` is at work, or was

    def covers(self, paths: Iterable[str]) -> bool:
        """Whether all of these files are gone on purpose and nobody has asked for them since."""
        return self.wanted_since is None and set(paths) <= {output.path for output in self.files}


def find_collected(directory: UPath) -> Collected | None:
    """What was taken out of the artifact in `directory`; None where it is whole."""
    try:
        return Collected.model_validate_json(read_bytes(directory / FILE))
    except FileNotFoundError:
        return None


def write_collected(directory: UPath, record: Collected) -> None:
    write_json(directory / FILE, record.model_dump())


def forget_collected(directory: UPath) -> None:
    remove(directory / FILE)


def check_not_collected(root: UPath, addresses: Iterable[str], *, unread: Collection[str] = ()) -> None:
    """Return when nothing was taken out of these artifacts that has to be read now, and none is being made again.

    Of one that is being made again any file may have other bytes, until the stage has compared them.

    Args:
        root: of the lake.
        addresses: of the artifacts in it.
        unread: files of theirs that are not read.

    Raises:
        ValueError: something was; the message names the commands that make it again.
    """
    records = ((address, find_collected(root / address)) for address in addresses)
    missing = [
        gone(address, record)
        for address, record in records
        if record and (record.wanted_since or any(file.path not in unread for file in record.files))
    ]
    if missing:
        raise ValueError("\n".join(missing))


def gone(address: str, record: Collected) -> str:
    """In words: what was taken out of an artifact, and how it comes back."""
    return (
        f"{len(record.files)} files of {address} ({record.files[0].path}{', ...' * (len(record.files) > 1)}) were deleted by `bliss gc` "
        f"on {record.collected_at[:10]} ({record.reason}): run `bliss remake {address}`, which makes the same files again"
    )
