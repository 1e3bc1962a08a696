"""The file system of `s3://`: s3fs with our requests (retrying.py), reads (reading.py) and uploads (uploading.py).

Here is what they make together, and what is asked of names: is it there, what else is, away with it. Listings are never cached.
"""

import asyncio
import logging
from typing import Any

from fsspec.asyn import sync_wrapper

from bliss_ops.object_store.errors import ReplacedMeanwhileError
from bliss_ops.object_store.options import MAX_CONNECTIONS
from bliss_ops.object_store.reading import ReadableStore
from bliss_ops.object_store.uploading import WritableStore

log = logging.getLogger(__name__)

PART_BYTES = 16 * 2**20  # of uploads and large reads


class ObjectStore(ReadableStore, WritableStore):
    """`s3://` for this package; options given by name (or as FSSPEC_S3_*) count more than the environment's."""

    @property
    def part_bytes(self) -> int:
        return PART_BYTES

    async def _create(self, path: str, content: bytes) -> None:
        """Put an object in place unless there is one.

        Raises:
            FileExistsError: there is one, with other content.
        """
        bucket, key, _ = self.split_path(path)
        if await self._isfile(path):  # not every store heeds the condition below, which closes the gap where it is heeded
            raise FileExistsError(f"s3://{path}")
        try:
            await self._call_s3("put_object", Bucket=bucket, Key=key, Body=content, IfNoneMatch="*")
        except (FileExistsError, ReplacedMeanwhileError):
            if await self._get(bucket, key) != content:  # else it is ours: the answer to the first try was lost
                raise FileExistsError(f"s3://{path}") from None

    create = sync_wrapper(_create)

    async def _rm_file(self, path: str, **_: Any) -> None:
        """Delete an object, if there is one."""
        bucket, key, _ = self.split_path(path)
        try:
            await self._call_s3("delete_object", Bucket=bucket, Key=key)
        except FileNotFoundError:  # S3 answers 204 there; some stores say that there is none
            log.debug("s3://%s was not there", path)

    rm_file = sync_wrapper(_rm_file)

    async def _rm(self, path: str | list[str], recursive: bool = False, **_: Any) -> None:
        """Delete objects one by one: deleting many in one request wants a Content-MD5 of some stores that botocore does not send."""
        paths = [path] if isinstance(path, str) else path
        if recursive:
            paths = [name for each in paths for name in [each, *await self._find(each)]]
        free = asyncio.Semaphore(MAX_CONNECTIONS // 2)

        async def remove(name: str) -> None:
            async with free:
                await self._rm_file(name)

        await asyncio.gather(*(remove(name) for name in dict.fromkeys(map(self._strip_protocol, paths)) if "/" in name))

    async def _isfile(self, path: str) -> bool:
        """One HEAD request. fsspec's own takes every failure for an absence."""
        bucket, key, _ = self.split_path(path)
        if not key:
            return False
        try:
            await self._call_s3("head_object", Bucket=bucket, Key=key)
        except FileNotFoundError:
            return False
        return True

    isfile = sync_wrapper(_isfile)

    async def _names(self, path: str) -> list[str]:
        """Names directly below a prefix, sorted: one request for each thousand, none for whether it is a directory."""
        bucket, key, _ = self.split_path(path)
        prefix = f"{key.strip('/')}/" if key.strip("/") else ""
        listed = [entry["name"] async for entry in self._iterdir(bucket, delimiter="/", prefix=prefix)]
        return sorted({name.rstrip("/").rpartition("/")[2] for name in listed if name != f"{bucket}/{prefix}"})

    names = sync_wrapper(_names)

    async def _walk(self, path: str, maxdepth: int | None = None, on_error: Any = None, **options: Any) -> Any:
        """As fsspec's, which leaves out what cannot be listed: here only what is not there is."""

        def tell(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):
                raise error

        async for entry in super()._walk(path, maxdepth=maxdepth, on_error=on_error or tell, **options):
            yield entry
