"""Files below one directory, listed and deleted without ever leaving it.

Addresses come out of records that lie on the same disk as everything else, so none is trusted: it must be relative and without `..`, and
no part of it may be a symbolic link. Local files are reached from the root's own file descriptor, directory after directory, each opened
with O_NOFOLLOW: what is checked is what is deleted, also where somebody swaps a directory for a link meanwhile.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath

from upath import UPath

from bliss_ops.lake import TEMPORARY, is_local


@dataclass(frozen=True)
class File:
    """One file of a listing."""

    address: str  # below the root
    num_bytes: int
    modified_at: float  # seconds since 1970
    stamp: str  # changes when the content does


def check_below(address: str) -> PurePosixPath:
    """An address as a path below a root.

    Raises:
        ValueError: it leads out of it.
    """
    path = PurePosixPath(address)
    if not address or path.is_absolute() or any(part in ("..", "") for part in address.split("/")) or "\x00" in address:
        raise ValueError(f"{address!r} is not an address below a directory: it is empty, absolute, or has '..' in it")
    return path


def listing(root: UPath, below: str = "") -> Iterator[File]:
    """Every regular file below `root / below`, temporary ones included; symbolic links are neither listed nor followed."""
    if is_local(root):
        if below and not _is_reachable(root, check_below(below)):
            return
        yield from _local(os.path.join(root.path, below) if below else root.path, root.path)  # noqa: PTH118 - ten thousand files a second
        return
    start = root / below if below else root
    root.fs.invalidate_cache()
    try:
        found = root.fs.find(start.path, detail=True)
    except FileNotFoundError:
        return
    prefix = len(root.path.rstrip("/")) + 1
    for key, about in found.items():
        modified = about.get("LastModified") or about.get("mtime")
        stamp = str(about.get("ETag") or modified)
        yield File(key[prefix:], int(about["size"]), modified.timestamp() if modified is not None else 0.0, stamp)


def check_reachable(root: UPath, address: str) -> None:
    """Return when no part of an address below `root` is a symbolic link.

    Raises:
        ValueError: one is, or the address leads out of the root.
    """
    path = check_below(address)
    if is_local(root):
        with _directory_of(root, path / "any"):
            pass


def remove(root: UPath, address: str) -> int:
    """Delete one regular file below `root`; returns its bytes, 0 where it is gone already.

    Raises:
        ValueError: the address leads out of the root, over a symbolic link, or to something that is no regular file.
    """
    path = check_below(address)
    if not is_local(root):
        target = root / address
        try:
            num_bytes = int(target.stat().st_size)
        except FileNotFoundError:
            return 0
        root.fs.rm_file(target.path)
        return num_bytes
    with _directory_of(root, path) as directory:
        if directory is None:
            return 0
        try:
            found = os.stat(path.name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return 0
        if not stat.S_ISREG(found.st_mode):
            raise ValueError(f"{root / address} is a symbolic link or no regular file: it is left alone")
        try:
            os.unlink(path.name, dir_fd=directory)
        except FileNotFoundError:  # somebody else was quicker
            return 0
        return found.st_size


def remove_empty_directories(root: UPath, address: str, *, up_to: str) -> None:
    """Delete the directories that the file `address` was in, as far as they are empty and lie in `up_to`, which stays."""
    if not is_local(root):
        return
    for parent in check_below(address).parents:
        if PurePosixPath(up_to) not in parent.parents:
            return
        with _directory_of(root, parent) as directory:
            if directory is None:
                continue
            try:
                os.rmdir(parent.name, dir_fd=directory)
            except FileNotFoundError:
                continue
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    return
                raise


def is_temporary(address: str) -> bool:
    """Whether this is the file of a write that has not ended."""
    name = PurePosixPath(address).name
    return name.startswith(".") and (name.endswith(TEMPORARY) or f"{TEMPORARY}." in name)


def _is_reachable(root: UPath, path: PurePosixPath) -> bool:
    try:
        with _directory_of(root, path / "any") as directory:
            return directory is not None
    except (ValueError, FileNotFoundError):
        return False


def _local(directory: str, root: str) -> Iterator[File]:
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    for entry in entries:
        if entry.is_symlink():
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _local(entry.path, root)
        elif entry.is_file(follow_symlinks=False):
            try:
                about = entry.stat(follow_symlinks=False)
            except FileNotFoundError:  # gone since it was listed
                continue
            stamp = f"{about.st_mtime_ns}-{about.st_ino}"
            yield File(os.path.relpath(entry.path, root), about.st_size, about.st_mtime, stamp)


@contextmanager
def _directory_of(root: UPath, path: PurePosixPath) -> Iterator[int | None]:
    """A descriptor of the directory that `path` is in; None where that is not there."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    descriptor = os.open(root.path, flags)
    try:
        for part in path.parent.parts:
            try:
                deeper = os.open(part, flags | os.O_NOFOLLOW, dir_fd=descriptor)
            except FileNotFoundError:
                yield None
                return
            except OSError as error:
                if error.errno in (errno.ELOOP, errno.ENOTDIR):
                    raise ValueError(f"{root / str(path)}: {part} is a symbolic link or no directory: nothing behind it goes") from error
                raise
            os.close(descriptor)
            descriptor = deeper
        yield descriptor
    finally:
        os.close(descriptor)
