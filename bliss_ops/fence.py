"""The fence around the work on an artifact: who outlives what it works for puts nothing in its place.

A process may be frozen, or cut off from whoever started it, while its artifact is deleted and begun anew, or finished by another driver
of the same run. So work remembers what `begun.json` said when it began, and right before each of its files appears (`lake.checked_by`)
looks, in one small request, whether it still says so: the fingerprint, and how many times the artifact has been finished.
"""

from typing import Any

from pydantic import BaseModel, Field
from upath import UPath

from bliss_ops.lake import read_bytes, write_json

BEGUN = "begun.json"


class ReplacedError(ValueError):
    """The artifact is no longer the one that this work was begun for, or another driver has finished it."""


class Begun(BaseModel):
    """What an artifact was begun from, and how often it was finished in one piece: once, and again after some of its files were lost."""

    fingerprint: str
    identity: dict[str, Any] = Field(default_factory=dict)
    inputs: dict[str, str] = Field(default_factory=dict)
    begun_at: str = ""
    num_finished: int = 0


def find_begun(directory: UPath) -> Begun | None:
    """What the artifact of `directory` was begun from; None where it was not begun."""
    try:
        return Begun.model_validate_json(read_bytes(directory / BEGUN))
    except FileNotFoundError:
        return None


def write_begun(directory: UPath, begun: Begun) -> None:
    write_json(directory / BEGUN, begun.model_dump())


def count_finished(directory: UPath, fingerprint: str) -> None:
    """Write down that the artifact has been finished once more.

    Raises:
        ReplacedError: it is another one by now.
    """
    begun = check_begun(directory, fingerprint)
    write_begun(directory, begun.model_copy(update={"num_finished": begun.num_finished + 1}))


def check_begun(directory: UPath, fingerprint: str | None, num_finished: int | None = None) -> Begun:
    """Return when the artifact of `directory` is still the one that was begun with `fingerprint`.

    Args:
        directory: of the artifact.
        fingerprint: that the work was begun with; None where any is right.
        num_finished: how often the artifact had been finished then; None where others may finish it.

    Raises:
        ReplacedError: it was deleted, begun with other settings or inputs, or finished by another driver.
    """
    begun = find_begun(directory)
    if begun is None:
        raise ReplacedError(f"{directory} was deleted while it was worked on: what was made since is thrown away")
    if fingerprint is not None and begun.fingerprint != fingerprint:
        raise ReplacedError(
            f"{directory} was begun again with other settings or inputs (fingerprint {begun.fingerprint[:12]}, this work belongs to "
            f"{fingerprint[:12]}): what was made for the former ones is thrown away, nothing is to be done"
        )
    if num_finished not in (None, begun.num_finished):
        raise ReplacedError(f"{directory} was finished by another process meanwhile: what this one has made since is thrown away")
    return begun
