"""Landing: files dropped into a watched folder or bucket prefix become corpora.

    <prefix>/<corpus>/*.json.gz         one folder per corpus; landing.toml beside them may say how to ingest

A corpus is never changed once it is made. So the files that are there first are the corpus `<corpus>`, and files that arrive in
the same folder later are a new part of it, a corpus of its own: `<corpus>-part-02`, ... Which files a part has is fixed in a list,
`landed/<corpus>/part-02.list` in the lake, from the moment they are taken in. A folder is taken when nothing in it has changed
between two looks; one that is still being copied to waits. A part takes tokenizer and sequence length of the newest score model, so
that it can be scored.
"""

import json
import logging
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from bliss_ops import gates, pipeline
from bliss_ops.config import NO_VALIDATION, check_name
from bliss_ops.configure import configure_corpus
from bliss_ops.corpus.addresses import Address, readable, resolve
from bliss_ops.corpus.readers import ENDINGS
from bliss_ops.lake import Corpus, Lake, at_once, sha256_of
from bliss_ops.landed import Lists, Part
from bliss_ops.manifest import find_manifest
from bliss_ops.names import check_line
from bliss_ops.recipes import load_recipe
from bliss_ops.rescoring import TOKENIZER_FILE, score_models

log = logging.getLogger(__name__)

SETTINGS_FILE = "landing.toml"
DEFAULT_RECIPE = "demo"


@dataclass(frozen=True)
class File:
    """A file of a watched folder, as a listing shows it."""

    uri: str
    num_bytes: int
    changed: str  # the store's etag, or the latest of a local file's times: another value means other content, perhaps

    @classmethod
    def of(cls, uri: str, info: Mapping[str, Any]) -> "File":
        etag = info.get("ETag") or info.get("etag")
        changed = str(etag).strip('"') if etag else str(max(info.get("mtime") or 0, info.get("created") or 0))
        return cls(uri, int(info.get("size") or 0), changed)


Folders = dict[str, dict[str, File]]  # name of a folder -> its files by URI


@dataclass(frozen=True)
class Look:
    """What is below a prefix at one time."""

    folders: Folders
    problems: list[str]  # files that no list could name, one sentence each


@dataclass
class Landing:
    """What a look at a prefix has found."""

    parts: list[Part] = field(default_factory=list)  # not completely ingested yet, the new ones included
    waiting: list[str] = field(default_factory=list)  # folders in which something still changes
    problems: list[str] = field(default_factory=list)  # one sentence each


def look(prefix: str) -> Look:
    """The files below a prefix that could be ingested, by folder; hidden ones and unknown endings are left out.

    So is one whose name would be several lines of a list, or no address: whoever may drop files chooses their names.

    Raises:
        ValueError: the prefix does not exist or cannot be listed.
    """
    root = resolve(prefix.rstrip("/"))
    if root.scheme not in ("", "s3"):
        raise ValueError(f"{prefix} cannot be watched: give a folder of this machine or s3://bucket/prefix")
    with readable(prefix, root.scheme):
        if not root.scheme and not root.fs.isdir(root.path):  # a prefix of a bucket may be empty
            raise FileNotFoundError(prefix)
        found = root.fs.find(root.path, detail=True)
    folders: Folders = {}
    problems = []
    for path, info in sorted(found.items()):
        parts = path[len(root.path) :].strip("/").split("/")
        if any(part.startswith((".", "_")) for part in parts) or not path.endswith(ENDINGS):
            continue
        uri = path if not root.scheme or "://" in path else f"{root.scheme}://{path}"
        try:
            check_line(uri)
        except ValueError as error:
            problems.append(f"a file cannot be taken in: {error}")
            continue
        folders.setdefault(parts[0] if len(parts) > 1 else "", {})[uri] = File.of(uri, info)
    return Look(folders, problems)


def unlanded(lists: Lists, folders: Folders) -> Folders:
    """The files that belong to no part yet."""
    found = {}
    for folder, files in folders.items():
        known = frozenset[str]().union(*(listed.uris for listed in lists.of(folder).values()))
        if new := {uri: file for uri, file in files.items() if uri not in known}:
            found[folder] = new
    return found


def land(
    lake: Lake, prefix: str, *, recipe: str | None = None, settings: Mapping[str, Any] | None = None, settle_seconds: float
) -> Landing:
    """Take in what is new below `prefix`: write the lists of new parts. Nothing is ingested here; see `ingest`.

    Args:
        lake: where the lists and corpora go.
        prefix: a folder or bucket prefix with one folder per corpus.
        recipe: how new parts are ingested; that of landing.toml, else `demo`, when None.
        settings: dotted settings (`ingest.…`) that count more than landing.toml and the newest score model.
        settle_seconds: time between the two looks.

    Raises:
        ValueError: the prefix cannot be listed, or landing.toml or a setting is wrong.
    """
    recipe, settings = _how_to_ingest(lake, prefix, recipe, settings or {})
    lists = Lists(lake)
    first = unlanded(lists, look(prefix).folders)
    if first:
        time.sleep(settle_seconds)
    found = look(prefix)
    landing = Landing(problems=list(found.problems))
    for folder, files in unlanded(lists, found.folders).items():
        if files != first.get(folder):
            log.info("land: %s/%s is still changing, it waits for the next look", prefix, folder)
            landing.waiting.append(folder)
            continue
        try:
            part = _take(lists, folder, sorted(files), recipe, settings)
            log.info("land: %d files of %s/%s are corpus %s", len(files), prefix, folder, part.corpus)
        except FileExistsError:
            log.info("land: someone else has just taken %s/%s in", prefix, folder)
        except ValueError as error:
            landing.problems.append(f"{prefix}/{folder}: {error}")
    parts = [(listed.part, files) for folder, files in found.folders.items() for listed in lists.of(folder).values()]
    for (part, _), (rewritten, is_done) in zip(parts, at_once(lambda each: _state(lake, *each), parts, lake.root), strict=True):
        landing.problems += rewritten
        if not is_done:
            landing.parts.append(part)
    return landing


def ingest(lake: Lake, part: Part, work: pipeline.Work = pipeline.EVERYTHING) -> None:
    """Ingest one part, in this process; a part that was begun goes on."""
    corpus = configure_corpus(lake, load_recipe(part.recipe, part.settings))
    pipeline.ingest(lake, corpus.name, work)


def is_ingested(corpus: Corpus) -> bool:
    """Whether ingestion has finished and no gate refuses what came out."""
    is_finished = (corpus.path / "config.json").is_file() and find_manifest(corpus.validation) is not None
    return is_finished and not gates.has_failed(corpus.gates)


def _how_to_ingest(lake: Lake, prefix: str, recipe: str | None, settings: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Recipe and dotted settings of new parts: the newest score model's, then landing.toml's, then what was asked for."""
    chosen: dict[str, Any] = {"ingest.validation.source": NO_VALIDATION, "ingest.validation.name": NO_VALIDATION}
    if model := next(iter(score_models(lake)), None):
        own = model.run.corpus
        chosen["ingest.tokenizer"] = str(own.tokenizer / TOKENIZER_FILE)
        chosen["ingest.sequence_length"] = own.config.sequence_length
    from_file = _read_settings(resolve(f"{prefix.rstrip('/')}/{SETTINGS_FILE}"))
    recipe = recipe or str(from_file.pop("recipe", DEFAULT_RECIPE))
    from_file.pop("recipe", None)
    chosen |= dict(_dotted(from_file)) | dict(settings)
    others = sorted(key for key in chosen if not key.startswith("ingest.") or key in ("ingest.corpus", "ingest.source"))
    if others:
        raise ValueError(f"landing: {', '.join(others)} cannot be set here: only settings of [ingest], without corpus and source, can")
    load_recipe(recipe, chosen)  # a mistake is told now, not once per folder
    return recipe, chosen


def _read_settings(address: Address) -> dict[str, Any]:
    with readable(address.uri, address.scheme):
        if not address.fs.exists(address.path):
            return {}
        with address.open() as file:
            content = file.read()
    try:
        return tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{address.uri} is not valid TOML: {error}") from error


def _dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _dotted(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _take(lists: Lists, folder: str, uris: list[str], recipe: str, settings: Mapping[str, Any]) -> Part:
    """Fix a new part of a folder.

    Raises:
        ValueError: the folder cannot be a corpus.
        FileExistsError: someone else has taken the files in since they were looked at.
    """
    if not folder:
        raise ValueError(f"{len(uris)} files are in no folder (the first is {uris[0]}): put them in one that is named as their corpus")
    check_name(folder)
    parts = lists.of(folder)
    if any(not listed.uris.isdisjoint(uris) for listed in parts.values()):
        raise FileExistsError(folder)
    number = 1 + max(parts, default=0)
    corpus = lists.lake.corpus(check_name(folder if number == 1 else f"{folder}-part-{number:02d}"))
    if (corpus.path / "config.json").is_file() and corpus.config.source != str(lists.path(folder, number)):
        raise ValueError(f"there is a corpus {corpus.name!r} already that was not landed here: give the folder another name")
    return lists.write(folder, number, corpus.name, uris, recipe=recipe, settings=settings)


def _state(lake: Lake, part: Part, files: Mapping[str, File]) -> tuple[list[str], bool]:
    """Which of a part's files are not what its corpus was made from, and whether that is ingested."""
    corpus = lake.corpus(part.corpus)
    return list(_rewritten(corpus, files)), is_ingested(corpus)


def _rewritten(corpus: Corpus, files: Mapping[str, File]) -> Iterator[str]:
    """Files whose content is not what the corpus was made from. Local files are hashed only when touched since they were listed."""
    listing = find_manifest(corpus.source)
    if listing is None:
        return
    listed_at = datetime.fromisoformat(listing.begun_at).timestamp()
    for entry in json.loads((corpus.source / "shards.json").read_bytes()):
        file = files.get(entry["uri"])
        if file is None or (file.num_bytes == entry["bytes"] and _is_same(file, entry["checksum"], listed_at)):
            continue
        yield (
            f"{file.uri} was written anew after corpus {corpus.name!r} was made from it. The corpus stays as it is: give the new content "
            f"another file name, and it becomes a part of its own; or delete {corpus.path} and {corpus.validation} to ingest it anew"
        )


def _is_same(file: File, checksum: str | None, listed_at: float) -> bool:
    if checksum is None or not checksum.startswith("sha256:"):
        return checksum is None or checksum == file.changed
    if float(file.changed) < listed_at:
        return True
    address = resolve(file.uri)
    with address.open() as stream:
        return f"sha256:{sha256_of(stream)}" == checksum
