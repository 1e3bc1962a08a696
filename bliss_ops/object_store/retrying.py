"""Requests to an object store: tried again while that may help, and told in a sentence when it does not.

One layer retries: botocore's attempts are set to one and s3fs's to one, because theirs multiply (5 x 5), are not logged, and s3fs gives
up at once on what botocore could not mend within seconds. Ours tries a request again for `BLISS_S3_RETRY_SECONDS` after its first
failure, with exponential back-off and jitter, and says so each time.
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem

from bliss_ops import object_store
from bliss_ops.object_store import failures
from bliss_ops.object_store.errors import AccessDeniedError, StoreError
from bliss_ops.object_store.options import options_of_environment

log = logging.getLogger(__name__)

PARTS_AT_ONCE = 4  # of uploads and large reads; 64 MB of memory
UNREACHABLE_SECONDS = 12.0  # how long an endpoint that has never answered is tried: it is more likely a wrong address than a restart
FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 10.0

T = TypeVar("T")


class _OfEnvironment(type(S3FileSystem)):  # type: ignore[misc]
    """fsspec keeps one file system per class and options; where the environment has changed it must be another one."""

    @property
    def environment(cls) -> tuple[tuple[str, str], ...]:
        return tuple(sorted(object_store.environment().items()))


class RetryingStore(S3FileSystem, metaclass=_OfEnvironment):  # type: ignore[misc]
    """s3fs, of which every request goes through `_retried`; what reads and what uploads is built on it."""

    retries = 1
    _extra_tokenize_attributes = ("default_block_size", "environment")

    def __init__(self, **options: Any) -> None:
        self.retry_seconds = object_store.seconds_of(object_store.RETRY_SECONDS, object_store.DEFAULT_RETRY_SECONDS)
        self._known_buckets: set[str] = set()
        self._has_answered = False
        super().__init__(**(options_of_environment() | options))

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
    def part_bytes(self) -> int:
        """Of uploads and large reads."""
        raise NotImplementedError

    @property
    def endpoint(self) -> str:
        """The address that requests go to."""
        return str(self._s3.meta.endpoint_url) if self._s3 is not None else str(self.endpoint_url or "the endpoint")
