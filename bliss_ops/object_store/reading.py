"""Reading from an object store: one request for what a file's opening has to know, then parts that must all be of the same version."""

import asyncio
import logging
from pathlib import Path
from typing import Any, NamedTuple

from fsspec.asyn import sync_wrapper
from s3fs.core import S3File

from bliss_ops.object_store import failures
from bliss_ops.object_store.errors import ReplacedMeanwhileError
from bliss_ops.object_store.retrying import PARTS_AT_ONCE, RetryingStore

log = logging.getLogger(__name__)

TAIL_BYTES = 2**18  # what opening a file reads: all of a small one, the footer of a Parquet file
READ_AHEAD_BYTES = 8 * 2**20  # s3fs has 50 MiB, which for a few row groups of a shard is nearly the whole shard


class Tail(NamedTuple):
    """The end of an object, and what is known of it since."""

    content: bytes
    num_bytes: int  # of the whole object
    etag: str


class ReadableStore(RetryingStore):
    """Objects as files that are read."""

    async def _get(self, bucket: str, key: str, first: int | None = None, end: int | None = None, etag: str = "") -> bytes:
        """The bytes of an object from `first` up to `end`, all of it without them; a body that is cut counts as a failed try."""
        arguments: dict[str, Any] = {"Bucket": bucket, "Key": key} | ({"IfMatch": etag} if etag else {})
        if first is not None and end is not None:
            arguments["Range"] = f"bytes={first}-{end - 1}"

        async def attempt() -> bytes:
            answer = await self._once("get_object", **arguments)
            async with answer["Body"] as body:
                return bytes(await body.read())

        return await self._retried(attempt, "get_object", bucket, key)

    async def _tail(self, path: str) -> Tail:
        """One request for what opening a file has to know: whether it is there, its size, its version, and its last bytes."""
        bucket, key, _ = self.split_path(path)

        async def attempt() -> Tail:
            try:
                answer = await self._once("get_object", Bucket=bucket, Key=key, Range=f"bytes=-{TAIL_BYTES}")
            except OSError as error:
                if failures.code_of(error) in ("InvalidRange", "416"):  # of an object without content
                    return Tail(b"", 0, "")
                raise
            async with answer["Body"] as body:
                content = bytes(await body.read())
            total = str(answer.get("ContentRange") or f"/{len(content)}").rpartition("/")[2]
            return Tail(content, int(total), str(answer.get("ETag", "")))

        return await self._retried(attempt, "get_object", bucket, key)

    tail = sync_wrapper(_tail)

    async def _ranges(self, path: str, first: int, end: int, etag: str) -> bytes:
        """Bytes of one version of an object, in parts of which several are on their way at the same time."""
        bucket, key, _ = self.split_path(path)
        free = asyncio.Semaphore(PARTS_AT_ONCE)

        async def part(at: int) -> bytes:
            async with free:
                return await self._get(bucket, key, at, min(at + self.part_bytes, end), etag)

        return b"".join(await asyncio.gather(*(part(at) for at in range(first, end, self.part_bytes))))

    ranges = sync_wrapper(_ranges)

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **options: Any) -> S3File:
        if mode == "rb" and not self.version_aware:
            return StoredFile(self, path, self.tail(path), block_size or READ_AHEAD_BYTES, options.get("cache_type") or "readahead")
        return super()._open(path, mode=mode, block_size=block_size or self.part_bytes, **options)

    async def _cat_file(
        self, path: str, version_id: str | None = None, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        if version_id is not None or (start or 0) < 0 or (end or 0) < 0:
            return bytes(await super()._cat_file(path, version_id=version_id, start=start, end=end))
        tail = await self._tail(path)
        first, end = start or 0, tail.num_bytes if end is None else min(end, tail.num_bytes)
        at = tail.num_bytes - len(tail.content)
        head = await self._ranges(path, first, min(end, at), tail.etag) if first < min(end, at) else b""
        return head + tail.content[max(0, first - at) : max(0, end - at)]

    async def _get_file(self, path: str, target: str, **_: Any) -> None:
        """Download one version of an object, part by part; of one that is replaced meanwhile, the new version."""
        for is_last in (False, False, True):
            try:
                await self._download(path, target)
            except ReplacedMeanwhileError:
                if is_last:
                    raise
                log.info("s3://%s was replaced while it was downloaded: beginning again", path)
            else:
                return

    async def _download(self, path: str, target: str) -> None:
        tail = await self._tail(path)
        at = tail.num_bytes - len(tail.content)
        with Path(target).open("wb") as file:
            for first in range(0, at, PARTS_AT_ONCE * self.part_bytes):
                file.write(await self._ranges(path, first, min(at, first + PARTS_AT_ONCE * self.part_bytes), tail.etag))
            file.write(tail.content)


class StoredFile(S3File):  # type: ignore[misc]
    """An object opened for reading: one version of it, whatever happens to its name meanwhile."""

    def __init__(self, store: ReadableStore, path: str, tail: Tail, block_size: int, cache_type: str) -> None:
        self.tail = tail
        super().__init__(store, path, "rb", block_size=block_size, cache_type=cache_type, size=tail.num_bytes)
        self._details = {"name": path, "size": tail.num_bytes, "ETag": tail.etag, "type": "file"}

    def _fetch_range(self, first: int, end: int) -> bytes:
        at = self.tail.num_bytes - len(self.tail.content)
        head = self.fs.ranges(self.path, first, min(end, at), self.tail.etag) if first < min(end, at) else b""
        return bytes(head + self.tail.content[max(0, first - at) : max(0, end - at)])
