"""Writing to an object store: a large file goes up in parts that become visible together or not at all.

Before they do, the writer may look whether its work is still wanted. What a killed writer has left is swept.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple

from fsspec.asyn import sync_wrapper

from bliss_ops.object_store import failures
from bliss_ops.object_store.errors import StoreError
from bliss_ops.object_store.retrying import PARTS_AT_ONCE, RetryingStore

log = logging.getLogger(__name__)

MAX_PARTS = 10_000  # S3's limit


class Staged(NamedTuple):
    """A local file whose parts are in the store and which is not visible yet; a small one is still all here."""

    source: str
    which: dict[str, str]  # Bucket, Key, and of a large file UploadId
    num_bytes: int
    parts: list[dict[str, Any]]
    begun_at: str = ""  # date and time, as the store said


class WritableStore(RetryingStore):
    """Objects as files that are put in place in one step."""

    def upload(self, source: str, path: str, check: Callable[[], None] = lambda: None) -> str:
        """Put a local file in place in one step, whatever its size; returns its ETag.

        Args:
            source: the local file.
            path: of the object.
            check: called when the parts of a large file are there, right before the object appears; what it raises keeps it from appearing.
        """
        staged = self.stage(source, path)
        try:
            check()
        except BaseException:
            self.abandon(staged)
            raise
        return str(self.publish(staged))

    async def _stage(self, source: str, path: str) -> Staged:
        """Send what can be sent before the object appears: the parts of a large file."""
        bucket, key, _ = self.split_path(path)
        which = {"Bucket": bucket, "Key": key}
        num_bytes = Path(source).stat().st_size
        if num_bytes <= 2 * self.part_bytes:
            return Staged(source, which, num_bytes, [])
        part_bytes = self._part_bytes_of(num_bytes)
        answer = await self._call_s3("create_multipart_upload", **which)
        which["UploadId"] = answer["UploadId"]
        staged = Staged(source, which, num_bytes, [], answer.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", ""))
        try:
            with Path(source).open("rb") as file:
                while contents := [content for _ in range(PARTS_AT_ONCE) if (content := file.read(part_bytes))]:
                    first = len(staged.parts) + 1
                    sent = await asyncio.gather(
                        *(self._upload_part(which, number, content) for number, content in enumerate(contents, first))
                    )
                    staged.parts.extend(sent)
        except BaseException:
            await self._abandon(staged)
            raise
        return staged

    stage = sync_wrapper(_stage)

    async def _publish(self, staged: Staged) -> str:
        """Let the object appear."""
        try:
            if staged.parts:
                return await self._complete(staged)
            answer = await self._call_s3("put_object", **staged.which, Body=Path(staged.source).read_bytes())
            return str(answer.get("ETag", ""))
        except BaseException:
            await self._abandon(staged)
            raise

    publish = sync_wrapper(_publish)

    async def _upload_part(self, which: dict[str, str], number: int, content: bytes) -> dict[str, Any]:
        answer = await self._call_s3("upload_part", **which, PartNumber=number, Body=content)
        return {"PartNumber": number, "ETag": answer["ETag"]}

    async def _complete(self, staged: Staged) -> str:
        bucket, key, num_tries = staged.which["Bucket"], staged.which["Key"], 0

        async def attempt() -> Any:
            nonlocal num_tries
            num_tries += 1
            return await self._once("complete_multipart_upload", **staged.which, MultipartUpload={"Parts": staged.parts})

        try:
            answer = await self._retried(attempt, "complete_multipart_upload", bucket, key)
            return str(answer.get("ETag", ""))
        except FileNotFoundError as error:  # NoSuchUpload: a try whose answer was lost has completed it, or somebody has removed it
            if num_tries > 1 and (found := await self._found(staged)):
                return found
            raise StoreError(
                f"s3://{bucket}/{key}: its upload was removed before it was complete, by a life-cycle rule, `bliss gc` or another's sweep: "
                "run the same command again"
            ) from error

    async def _found(self, staged: Staged) -> str:
        """The ETag of the object, where it is what was staged, else empty: the one that was there before may have the same size."""
        try:
            found = await self._call_s3("head_object", Bucket=staged.which["Bucket"], Key=staged.which["Key"])
        except FileNotFoundError:
            return ""
        md5s = [str(part["ETag"]).strip('"') for part in staged.parts]
        with Path(staged.source).open("rb") as file:
            has_md5s = md5s[0] == hashlib.md5(file.read(self._part_bytes_of(staged.num_bytes)), usedforsecurity=False).hexdigest()
        if has_md5s:  # of encrypted objects ETags are other numbers
            together = hashlib.md5(b"".join(map(bytes.fromhex, md5s)), usedforsecurity=False)
            is_ours = str(found.get("ETag", "")).strip('"') == f"{together.hexdigest()}-{len(md5s)}"
        else:  # by the store's own clock, which may count from when the upload was begun, as that of AWS does
            is_new = bool(staged.begun_at) and found["LastModified"] >= parsedate_to_datetime(staged.begun_at)
            is_ours = is_new and found["ContentLength"] == staged.num_bytes
        return str(found.get("ETag", "")) if is_ours else ""

    async def _abandon(self, staged: Staged) -> None:
        """Remove the parts of an upload that failed, with one try: the error that ended it is the one to be told."""
        if "UploadId" not in staged.which:
            return
        try:
            await self._once("abort_multipart_upload", **staged.which)
        except FileNotFoundError:
            log.debug("the upload to s3://%s/%s has ended", staged.which["Bucket"], staged.which["Key"])
        except failures.FAILURES as error:
            log.warning(
                "the parts of a failed upload to s3://%s/%s are left to be swept: %s", staged.which["Bucket"], staged.which["Key"], error
            )

    abandon = sync_wrapper(_abandon)

    async def _put_file(self, source: str, path: str, **_: Any) -> None:
        await self._publish(await self._stage(source, path))

    def _part_bytes_of(self, num_bytes: int) -> int:
        return max(self.part_bytes, -(-num_bytes // MAX_PARTS))

    async def _sweep(self, path: str, older_than_seconds: float) -> int:
        """Remove the parts of uploads below `path` that were begun that long ago and never ended; returns how many uploads."""
        bucket, _, _ = self.split_path(path)
        try:
            uploads = await self._uploads_below(path)
        except StoreError as error:  # a right that is not given, a store that has no such request: nothing depends on it
            log.info("uploads that were cut off cannot be looked for: %s", error)
            return 0
        stale = [each for each in uploads if time.time() - each["Initiated"].timestamp() > older_than_seconds]
        for each in stale:
            log.info("s3://%s/%s: removing an upload that was cut off", bucket, each["Key"])
            await self._abandon(Staged("", {"Bucket": bucket, "Key": each["Key"], "UploadId": each["UploadId"]}, 0, []))
        return len(stale)

    sweep = sync_wrapper(_sweep)

    async def _uploads_below(self, path: str) -> list[dict[str, Any]]:
        """Key, UploadId and Initiated of every upload below `path` that has not ended; one request for each thousand."""
        bucket, key, _ = self.split_path(path)
        found: list[dict[str, Any]] = []
        which = {"Bucket": bucket, "Prefix": f"{key.strip('/')}/" if key.strip("/") else ""}
        while True:
            answer = await self._call_s3("list_multipart_uploads", **which)
            uploads = answer.get("Uploads", [])
            found += uploads
            if not answer.get("IsTruncated") or not uploads:
                return found
            which |= {"KeyMarker": uploads[-1]["Key"], "UploadIdMarker": uploads[-1]["UploadId"]}

    uploads_below = sync_wrapper(_uploads_below)
