"""Which source shards a corpus is made of, fixed once in `shards.json`.

The list is sorted, and carries what identifies each file's content (size and sha256, or the store's etag), so that a corpus
whose source changed gets another digest. The embedded corpus is harvested here and listed like any other. A source whose name ends
in `.list` is a text file with one address per line.
"""

import logging
import os
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from upath import UPath

from bliss_ops.config import EMBEDDED, IngestConfig
from bliss_ops.corpus import harvest
from bliss_ops.corpus.addresses import Address, check_place, read_whole, readable, resolve
from bliss_ops.corpus.readers import ENDINGS
from bliss_ops.lake import sha256_of, write_json
from bliss_ops.names import redacted
from bliss_ops.sharding import Metrics

log = logging.getLogger(__name__)

LIST_ENDING = ".list"

_NUMBERING = re.compile(r"[._-]+(\d+-of-\d+|\d{4,})([._-][0-9a-f]{8,})?$")
_MAGIC = re.compile(r"[*?\[]")
_LIST_BYTES = 256 << 20  # of a list file: a million long addresses


def discover(config: IngestConfig, directory: UPath) -> tuple[list[str], Metrics]:
    """Write `shards.json` into `directory`; harvest the embedded corpus and the embedded validation set where they are asked for.

    Raises:
        ValueError: the source matches no file, cannot be reached, or is of a kind that cannot be read.
    """
    files: list[str] = []
    validation = EMBEDDED in (config.validation.source, *(other.source for other in config.validation.others))
    if config.source == EMBEDDED or validation:
        files = harvest.harvest(directory, config.embedded_megabytes, shards=config.source == EMBEDDED, validation=validation)
    if config.source == EMBEDDED:
        described = [_describe(resolve(directory / file), file) for file in files if file != harvest.VALIDATION_FILE]
    else:
        addresses = expand_addresses(config.source)
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            described = list(pool.map(lambda address: _describe(address, address.uri), addresses))
    shards = [{"shard": number, **entry} for number, entry in enumerate(described)]
    write_json(directory / "shards.json", shards)
    num_bytes = sum(entry["bytes"] or 0 for entry in described)
    log.info("discover: %d shards, %.1f MB", len(shards), num_bytes / 1e6)
    return ["shards.json", *files], {"num_shards": len(shards), "num_bytes": num_bytes}


def expand(source: str) -> list[str]:
    """The files that a path, glob or directory stands for, sorted; see `expand_addresses`."""
    return [address.uri for address in expand_addresses(source)]


def expand_addresses(source: str) -> list[Address]:
    """The readable files a source stands for, in the order of their addresses.

    Raises:
        ValueError: there is none, or a named file is of a kind that cannot be read.
    """
    root = resolve(source)
    if root.path.endswith(LIST_ENDING):
        return _read_list(root)
    with readable(source, root.scheme):
        paths, chosen_by_name = _list(root)
    known = [path for path in paths if path.split("?")[0].endswith(ENDINGS)]
    unknown = [path for path in paths if not path.split("?")[0].endswith(ENDINGS)]
    if unknown and (chosen_by_name or not known):
        raise ValueError(f"{unknown[0]} cannot be read: files must end in {', '.join(ENDINGS)}")
    if not known:
        raise ValueError(f"{source!r} matches no file: check the path or glob (quote it in the shell)")
    if unknown:
        log.info("discover: %d other files in %s are left out", len(unknown), source)
    uris = {path if not root.scheme or "://" in path else f"{root.scheme}://{path}": path for path in known}
    return [Address(check_place(uri), root.scheme, root.fs, uris[uri]) for uri in sorted(uris)]


def label_of(uri: str) -> str:
    """The source label a file name stands for: without directories, ending and shard number."""
    name = uri.split("?")[0].rstrip("/").rsplit("/", 1)[-1]
    stem = next((name.removesuffix(ending) for ending in ENDINGS if name.endswith(ending)), name)
    return _NUMBERING.sub("", stem) or stem


def read_list(source: str | UPath) -> list[str]:
    """The addresses of a list file in their order, one per line; empty lines and those that begin with `#` are left out.

    Raises:
        ValueError: the file cannot be read, or is not text.
    """
    address = resolve(source)
    return addresses_in(read_whole(address, _LIST_BYTES), address.uri)


def addresses_in(content: bytes, where: str) -> list[str]:
    """The addresses in the content of a list file, as `read_list` has them.

    Raises:
        ValueError: it is not text.
    """
    try:
        lines = content.decode().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not a list of addresses: write one per line, as UTF-8 text ({error})") from error
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _read_list(address: Address) -> list[Address]:
    """The files that a list names; relative paths are those beside the list."""
    folder = address.uri.rpartition("/")[0]
    names = read_list(address.uri)
    if address.scheme in ("http", "https", "hf"):
        _check_beside(address, names)
    found = [resolve(name if name.startswith("/") or "://" in name else f"{folder}/{name}") for name in names]
    for file in found:
        if not file.path.split("?")[0].endswith(ENDINGS):
            raise ValueError(f"{file.uri}, named in {address.uri}, cannot be read: files must end in {', '.join(ENDINGS)}")
    twice = sorted(uri for uri, count in Counter(file.uri for file in found).items() if count > 1)
    if twice:
        raise ValueError(f"{address.uri} names {twice[0]} twice: name every file once")
    if not found:
        raise ValueError(f"{address.uri} names no file: write one address per line")
    return sorted(found, key=lambda file: file.uri)


def _check_beside(address: Address, names: list[str]) -> None:
    """A list from elsewhere may name files of its own host, or of the hub: nobody here typed what is in it.

    Raises:
        ValueError: it names something else.
    """
    own = "hf://" if address.scheme == "hf" else "/".join(address.uri.split("/")[:3]) + "/"
    for name in names:
        if name.startswith("/") or ("://" in name and not name.startswith(own)):
            raise ValueError(
                f"{redacted(name)}, named in {address.uri}, is not below {own}: a fetched list may only name files of its own host; "
                "copy it to this machine if you mean it"
            )


def _list(root: Address) -> tuple[list[str], bool]:
    """Paths of files, and whether the user named them (by path or glob) rather than a directory they are in."""
    if root.scheme in ("http", "https"):
        if "*" not in root.path:
            root.fs.info(root.path)
            return [root.path], True
        return list(root.fs.glob(root.path)), True
    if root.fs.exists(root.path) and not root.fs.isdir(root.path):
        return [root.path], True
    if _MAGIC.search(root.path):
        return [path for path in root.fs.glob(root.path) if not root.fs.isdir(path)], True
    if not root.fs.isdir(root.path):
        raise FileNotFoundError(root.path)
    below = root.fs.find(root.path)
    return [path for path in below if not any(part.startswith((".", "_")) for part in path[len(root.path) :].split("/"))], False


def _describe(address: Address, listed_as: str) -> dict[str, Any]:
    with readable(address.uri, address.scheme):
        info = address.fs.info(address.path)
        # Harvested shards are hashed wherever the lake is, so that a local lake and one on S3 hold the same corpus.
        checksum = _sha256(address) if address.scheme == "" or address.uri != listed_as else _etag(info)
    return {"uri": listed_as, "bytes": info.get("size"), "source": label_of(listed_as), "checksum": checksum}


def _sha256(address: Address) -> str:
    with address.open() as file:
        return f"sha256:{sha256_of(file)}"


def _etag(info: dict[str, Any]) -> str | None:
    """What the store says about the content: the hub's sha256 or blob id, or an etag."""
    lfs = info.get("lfs")
    sha256 = lfs.get("sha256") if isinstance(lfs, dict) else getattr(lfs, "sha256", None)
    value = sha256 or info.get("blob_id") or info.get("ETag") or info.get("etag")
    return str(value).strip('"') if value else None
