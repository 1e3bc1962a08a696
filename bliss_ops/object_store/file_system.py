"""The file system of `s3://`: s3fs with our retries, uploads and reads.

One layer retries: botocore's attempts are set to one and s3fs's to one, because theirs multiply (5 x 5), are not logged, and s3fs gives
up at once on what botocore could not mend within seconds. Ours tries a request again for `BLISS_S3_RETRY_SECONDS` after its first
failure, with exponential back-off and jitter, and says so each time. Listings are never cached. Files larger than two parts go up in
parts that become visible together or not at all, and come down in parts that must all be of the same version (ETag).
"""

import asyncio
import hashlib
import logging
import random
import time
from collections.abc import Awaitable, Callable
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem
from s3fs.core import S3File

from bliss_ops import object_store
from bliss_ops.object_store import failures
from bliss_ops.object_store.errors import AccessDeniedError, ReplacedMeanwhileError, StoreError

log = logging.getLogger(__name__)

PART_BYTES = 16 * 2**20  # of uploads and large reads; four at a time, so 64 MB of memory
PARTS_AT_ONCE = 4
MAX_PARTS = 10_000  # S3's limit
TAIL_BYTES = 2**18  # what opening a file reads: all of a small one, the footer of a Parquet file
TAILS_REMEMBERED = 256  # of files that DuckDB queries; 64 MB
READ_AHEAD_BYTES = 8 * 2**20  # s3fs has 50 MiB, which for a few row groups of a shard is nearly the whole shard
MAX_CONNECTIONS = 32
CONNECT_SECONDS = 5.0
UNREACHABLE_SECONDS = 12.0  # how long an endpoint that has never answered is tried: it is more likely a wrong address than a restart
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 10.0

T = TypeVar("T")


class Tail(NamedTuple):
    """The end of an object, and what is known of it since."""

    content: bytes
    num_bytes: int  # of the whole object
    etag: str


class Staged(NamedTuple):
    """A local file whose parts are in the store and which is not visible yet; a small one is still all here."""

    source: str
    which: dict[str, str]  # Bucket, Key, and of a large file UploadId
    num_bytes: int
    parts: list[dict[str, Any]]
    begun_at: str = ""  # date and time, as the store said


class _OfEnvironment(type(S3FileSystem)):  # type: ignore[misc]
    """fsspec keeps one file system per class and options; where the environment has changed it must be another one."""

    @property
    def environment(cls) -> tuple[tuple[str, str], ...]:
        return tuple(sorted(object_store.environment().items()))


class ObjectStore(S3FileSystem, metaclass=_OfEnvironment):  # type: ignore[misc]
    """`s3://` for this package; options given by name (or as FSSPEC_S3_*) count more than the environment's."""

    retries = 1
    _extra_tokenize_attributes = ("default_block_size", "environment")

    def __init__(self, **options: Any) -> None:
        self.retry_seconds = object_store.seconds_of(object_store.RETRY_SECONDS, object_store.DEFAULT_RETRY_SECONDS)
        self._known_buckets: set[str] = set()
        self._has_answered = False
        super().__init__(**(_options() | options))

    # ---- requests ----------------------------------------------------------------------------------------------------

    async def _call_s3(self, method: str, *options: Any, **arguments: Any) -> Any:
        attempt = partial(self._once, method, *options, **arguments)
        return await self._retried(attempt, method, str(arguments.get("Bucket", "")), arguments.get("Key"))

    call_s3 = sync_wrapper(_call_s3)

    async def _once(self, method: str, *options: Any, **arguments: Any) -> Any:
        return await super()._call_s3(method, *options, **arguments)

    async def _retried(self, attempt: Callable[[], Awaitable[T]], method: str, bucket: str, key: str | None) -> T:
        """What `attempt()` gives, as soon as it does.

        Raises:
            FileNotFoundError: there is no such object.
            StoreError: any other failure, in words; one that may pass has been tried again until the time was over.
        """
        address = f"s3://{bucket}/{key}" if key else f"s3://{bucket}"
        begun, num_tries = 0.0, 0
        while True:
            num_tries += 1
            try:
                result = await attempt()
            except failures.FAILURES as error:
                begun = begun or time.monotonic()
                self._has_answered |= bool(failures.response_of(error))
                if isinstance(error, StoreError) or not failures.is_passing(error):
                    raise await self._in_words(error, method, address, bucket, key) from error
                limit = self.retry_seconds
                if failures.is_unreachable(error) and not self._has_answered:
                    limit = min(limit, UNREACHABLE_SECONDS)
                waited = time.monotonic() - begun
                pause = random.uniform(0.5, 1) * min(LONGEST_PAUSE_SECONDS, FIRST_PAUSE_SECONDS * 2 ** (num_tries - 1))  # noqa: S311
                if waited + pause > limit:
                    raise failures.unavailable(
                        error, address=address, endpoint=self.endpoint, num_tries=num_tries, seconds=waited
                    ) from error
                log.warning("%s %s failed (%s: %s): try %d in %.1f s", method, address, type(error).__name__, error, num_tries + 1, pause)
                await asyncio.sleep(pause)
            else:
                self._has_answered = True
                if key:
                    self._known_buckets.add(bucket)
                return result

    async def _in_words(self, error: BaseException, method: str, address: str, bucket: str, key: str | None) -> BaseException:
        if isinstance(error, StoreError):
            return error
        is_missing = isinstance(error, FileNotFoundError)
        if is_missing and key and bucket not in self._known_buckets and failures.code_of(error) == "404":
            await self._check_bucket(bucket)  # a HEAD's 404 does not say whether object or bucket is missing
        if is_missing and method == "head_bucket":
            return failures.bucket_missing(bucket, self.endpoint)
        region = str(self._s3.meta.region_name) if self._s3 is not None else ""
        return failures.in_words(error, address=address, bucket=bucket, endpoint=self.endpoint, region=region)

    async def _check_bucket(self, bucket: str) -> None:
        """Return when the bucket exists, or when these credentials may not know.

        Raises:
            BucketMissingError: it does not.
        """
        try:
            await self._call_s3("head_bucket", Bucket=bucket)
        except AccessDeniedError:
            log.debug("bucket %s: whether it exists cannot be asked with these credentials", bucket)
        self._known_buckets.add(bucket)

    @property
    def endpoint(self) -> str:
        """The address that requests go to."""
        return str(self._s3.meta.endpoint_url) if self._s3 is not None else str(self.endpoint_url or "the endpoint")

    # ---- reading -----------------------------------------------------------------------------------------------------

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
                return await self._get(bucket, key, at, min(at + PART_BYTES, end), etag)

        return b"".join(await asyncio.gather(*(part(at) for at in range(first, end, PART_BYTES))))

    ranges = sync_wrapper(_ranges)

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **options: Any) -> S3File:
        if mode == "rb" and not self.version_aware:
            return StoredFile(self, path, self.tail(path), block_size or READ_AHEAD_BYTES, options.get("cache_type") or "readahead")
        return super()._open(path, mode=mode, block_size=block_size or PART_BYTES, **options)

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
            for first in range(0, at, PARTS_AT_ONCE * PART_BYTES):
                file.write(await self._ranges(path, first, min(at, first + PARTS_AT_ONCE * PART_BYTES), tail.etag))
            file.write(tail.content)

    # ---- writing -----------------------------------------------------------------------------------------------------

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

    async def _stage(self, source: str, path: str) -> "Staged":
        """Send what can be sent before the object appears: the parts of a large file."""
        bucket, key, _ = self.split_path(path)
        which = {"Bucket": bucket, "Key": key}
        num_bytes = Path(source).stat().st_size
        if num_bytes <= 2 * PART_BYTES:
            return Staged(source, which, num_bytes, [])
        part_bytes = _part_bytes(num_bytes)
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

    async def _publish(self, staged: "Staged") -> str:
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

    async def _complete(self, staged: "Staged") -> str:
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
                f"s3://{bucket}/{key}: its upload was removed before it was complete, by a life-cycle rule or by `bliss gc`: run the "
                "same command again"
            ) from error

    async def _found(self, staged: "Staged") -> str:
        """The ETag of the object, where it is what was staged, else empty: the one that was there before may have the same size."""
        try:
            found = await self._call_s3("head_object", Bucket=staged.which["Bucket"], Key=staged.which["Key"])
        except FileNotFoundError:
            return ""
        md5s = [str(part["ETag"]).strip('"') for part in staged.parts]
        with Path(staged.source).open("rb") as file:
            has_md5s = md5s[0] == hashlib.md5(file.read(_part_bytes(staged.num_bytes)), usedforsecurity=False).hexdigest()
        if has_md5s:  # of encrypted objects ETags are other numbers
            together = hashlib.md5(b"".join(map(bytes.fromhex, md5s)), usedforsecurity=False)
            is_ours = str(found.get("ETag", "")).strip('"') == f"{together.hexdigest()}-{len(md5s)}"
        else:  # by the store's own clock, which may count from when the upload was begun, as that of AWS does
            is_new = bool(staged.begun_at) and found["LastModified"] >= parsedate_to_datetime(staged.begun_at)
            is_ours = is_new and found["ContentLength"] == staged.num_bytes
        return str(found.get("ETag", "")) if is_ours else ""

    async def _abandon(self, staged: "Staged") -> None:
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

    # ---- what is there -----------------------------------------------------------------------------------------------

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


def _part_bytes(num_bytes: int) -> int:
    """How large the parts of an upload are."""
    return max(PART_BYTES, -(-num_bytes // MAX_PARTS))


class QueriedStore(ObjectStore):
    """For DuckDB, which looks at a file five times and opens it twice in each query: what it was told once is remembered.

    Only for files that nobody replaces, for the time of a few queries; one that is replaced all the same is an error, not other content.
    """

    cachable = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._infos: dict[str, dict[str, Any]] = {}
        self._tails: dict[str, Tail] = {}

    async def _info(self, path: str, *arguments: Any, **options: Any) -> dict[str, Any]:
        name = str(self._strip_protocol(path))
        if name not in self._infos:
            self._infos[name] = await super()._info(path, *arguments, **options)
        return self._infos[name]

    async def _tail(self, path: str) -> Tail:
        name = str(self._strip_protocol(path))
        if name not in self._tails:
            while len(self._tails) >= TAILS_REMEMBERED:
                self._tails.pop(next(iter(self._tails)), None)
            self._tails[name] = await super()._tail(path)
        return self._tails[name]

    tail = sync_wrapper(_tail)


class StoredFile(S3File):  # type: ignore[misc]
    """An object opened for reading: one version of it, whatever happens to its name meanwhile."""

    def __init__(self, store: ObjectStore, path: str, tail: Tail, block_size: int, cache_type: str) -> None:
        self.tail = tail
        super().__init__(store, path, "rb", block_size=block_size, cache_type=cache_type, size=tail.num_bytes)
        self._details = {"name": path, "size": tail.num_bytes, "ETag": tail.etag, "type": "file"}

    def _fetch_range(self, first: int, end: int) -> bytes:
        at = self.tail.num_bytes - len(self.tail.content)
        head = self.fs.ranges(self.path, first, min(end, at), self.tail.etag) if first < min(end, at) else b""
        return bytes(head + self.tail.content[max(0, first - at) : max(0, end - at)])


def _options() -> dict[str, Any]:
    """Options of s3fs as the environment has them; credentials that botocore finds by itself stay with it."""
    found = object_store.environment()
    style = found.get(object_store.ADDRESSING_STYLE, "auto")
    if style not in ("auto", "path", "virtual"):
        raise ValueError(f"{object_store.ADDRESSING_STYLE} is {style!r}: use auto, path (bucket in the path) or virtual (in the host name)")
    timeout = object_store.seconds_of(object_store.TIMEOUT_SECONDS, object_store.DEFAULT_TIMEOUT_SECONDS)
    options: dict[str, Any] = {
        "use_listings_cache": False,
        "endpoint_url": found.get("AWS_ENDPOINT_URL_S3") or found.get("AWS_ENDPOINT_URL"),
        "config_kwargs": {
            "connect_timeout": min(CONNECT_SECONDS, timeout),
            "read_timeout": timeout,
            "retries": {"total_max_attempts": 1},
            "max_pool_connections": MAX_CONNECTIONS,
            "s3": {"addressing_style": style},
        },
    }
    if region := found.get("AWS_REGION") or found.get("AWS_DEFAULT_REGION"):
        options["client_kwargs"] = {"region_name": region}
    if found.get("AWS_ACCESS_KEY_ID"):
        options |= {
            "key": found["AWS_ACCESS_KEY_ID"],
            "secret": found.get("AWS_SECRET_ACCESS_KEY"),
            "token": found.get("AWS_SESSION_TOKEN"),
        }
    return options
