"""What has landed: the lists that say which files each part of a watched folder is made of, `landed/<corpus>/part-02.list`.

A list is written once, in one step, and never changes, so whoever has read it need not read it again. Parts are numbered from 1 without
gaps: where an object store lists a new one late, it is asked for by its name. What a list says of the lake it is in (its own address,
and the tokenizer's) holds for the lake in which it is read, which may have been moved since.
"""

import json
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from upath import UPath

from bliss_ops.config import check_name
from bliss_ops.corpus.source import addresses_in
from bliss_ops.lake import TEMPORARY, Lake, at_once, is_local, is_on_s3, names_in, read_bytes
from bliss_ops.names import check_line

SETTINGS_MARK = "# settings "  # the first line of a list: a comment to everybody else


@dataclass(frozen=True)
class Part:
    """Files that are a corpus: its name, their list, and how they are ingested."""

    corpus: str
    list_file: str
    num_files: int
    recipe: str
    settings: dict[str, Any]  # dotted, beyond the recipe


@dataclass(frozen=True)
class Listed:
    """What one list says."""

    part: Part
    uris: frozenset[str]


Memory = dict[str, dict[int, Listed]]  # name of a folder -> its lists by their number


@dataclass
class Lists:
    """The lists of a lake; those in `memory` are not read again."""

    lake: Lake
    memory: Memory = field(default_factory=dict)

    def of(self, folder: str) -> dict[int, Listed]:
        """The lists of a folder's parts by their number, in order; none of a folder that cannot be a corpus."""
        if not _is_name(folder):
            return {}
        directory = self.path(folder, 1).parent
        found = [int(name[1]) for each in names_in(directory) if (name := re.fullmatch(r"part-(\d{2,})[.]list", each))]
        known = self.memory.get(folder, {})
        # What a late listing leaves out is not always the newest: 01 and 03 have been listed before 02.
        numbers = sorted(found) if is_local(directory) else range(1, max([0, *found, *known]) + 1)
        read = partial(self._read, folder)
        new = [number for number in numbers if number not in known]
        lists = dict(zip(new, at_once(read, new, directory), strict=True)) | {each: known[each] for each in numbers if each in known}
        while not is_local(directory) and (following := read(number := max(lists, default=0) + 1)):
            lists[number] = following
        self.memory[folder] = {number: listed for number in sorted(lists) if (listed := lists[number]) is not None}
        return self.memory[folder]

    def path(self, folder: str, number: int) -> UPath:
        """`landed/<folder>/part-02.list`."""
        return self.lake.root / "landed" / folder / f"part-{number:02d}.list"

    def write(self, folder: str, number: int, corpus: str, uris: list[str], *, recipe: str, settings: Mapping[str, Any]) -> Part:
        """Fix a new part: one file that says how it is ingested and what is in it.

        Raises:
            ValueError: an address would not be one line of a list.
            FileExistsError: someone else has just written that list.
        """
        path = self.path(folder, number)
        how = {"corpus": corpus, "recipe": recipe, "settings": dict(settings) | {"ingest.corpus": corpus, "ingest.source": str(path)}}
        lines = [f"{SETTINGS_MARK}{json.dumps(how, sort_keys=True)}", *map(check_line, uris)]
        content = "".join(f"{line}\n" for line in lines).encode()
        create(path, content)
        return self._parsed(path, content).part

    def _read(self, folder: str, number: int) -> Listed | None:
        path = self.path(folder, number)
        try:
            return self._parsed(path, read_bytes(path))
        except FileNotFoundError:
            return None

    def _parsed(self, path: UPath, content: bytes) -> Listed:
        uris = addresses_in(content, str(path))
        how = json.loads(content.partition(b"\n")[0].removeprefix(SETTINGS_MARK.encode()))
        written_in = how["settings"]["ingest.source"].removesuffix(self.lake.relative(path))
        settings = {key: _moved(value, written_in, f"{self.lake.root}/") for key, value in how["settings"].items()}
        return Listed(Part(how["corpus"], str(path), len(uris), how["recipe"], settings), frozenset(uris))


def create(path: UPath, content: bytes) -> None:
    """Write a file in one step, unless there is one.

    Raises:
        FileExistsError: there is one: someone else takes files in at the same time.
    """
    if is_on_s3(path):
        path.fs.create(path.path, content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent.path, prefix=f".{path.name}.", suffix=TEMPORARY) as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
        os.link(file.name, path.path)


def _is_name(folder: str) -> bool:
    try:
        check_name(folder)
    except ValueError:
        return False
    return True


def _moved(value: Any, before: str, now: str) -> Any:
    """A setting; an address below `before` is one below `now`."""
    return now + value[len(before) :] if isinstance(value, str) and value.startswith(before) else value
