"""What can go wrong between us and an object store: whether it passes, and what it means in one sentence with what to do.

botocore, aiohttp and s3fs raise about forty types for it, and a HEAD request has no body that would say more than its status. Here they
become `StoreError`s, an OSError as a disk's failures are; only an object that is not there stays a FileNotFoundError.
"""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp
from botocore import exceptions as boto  # type: ignore[import-untyped]
from botocore.parsers import ResponseParserError  # type: ignore[import-untyped]

from bliss_ops.object_store.errors import (
    AccessDeniedError,
    BucketMissingError,
    ClockSkewError,
    ReplacedMeanwhileError,
    StoreError,
    UnavailableError,
    WrongEndpointError,
    WrongRegionError,
)

FAILURES = (OSError, TimeoutError, boto.BotoCoreError, boto.ClientError, aiohttp.ClientError, ResponseParserError)

PASSING_CODES = (
    "InternalError",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "RequestTimeout",
    "OperationAborted",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "BadDigest",
    "XAmzContentSHA256Mismatch",
)
NOT_PASSING_STATUS = (501, 505)
PASSING_TYPES = (
    boto.HTTPClientError,
    boto.ConnectionError,
    boto.IncompleteReadError,
    boto.ResponseStreamingError,
    boto.FlexibleChecksumError,
    aiohttp.ClientPayloadError,
    aiohttp.ClientConnectionError,
    ConnectionError,
    TimeoutError,
)
UNREACHABLE = (boto.EndpointConnectionError, boto.ConnectTimeoutError, boto.ProxyConnectionError, aiohttp.ClientConnectorError)
WRONG_REGION_CODES = (
    "AuthorizationHeaderMalformed",
    "PermanentRedirect",
    "TemporaryRedirect",
    "IllegalLocationConstraintException",
    "301",
    "307",
)
MAX_SKEW_SECONDS = 300.0  # S3 refuses requests that are older than 15 minutes; 5 is already a clock to set right


def response_of(error: BaseException) -> dict[str, Any]:
    """The store's answer as botocore parsed it; empty where there was none."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, boto.ClientError):
            return dict(cause.response)
        cause = cause.__cause__
    return {}


def code_of(error: BaseException) -> str:
    """S3's own word for it, such as NoSuchKey; a HEAD request's is its status."""
    return str(response_of(error).get("Error", {}).get("Code", ""))


def status_of(error: BaseException) -> int:
    return int(response_of(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def is_passing(error: BaseException) -> bool:
    """Whether the same request may well succeed a little later."""
    if isinstance(error, boto.SSLError):
        return False
    if response_of(error):
        status = status_of(error)
        return code_of(error) in PASSING_CODES or status == 429 or (status >= 500 and status not in NOT_PASSING_STATUS)
    return isinstance(error, PASSING_TYPES) and not isinstance(error, StoreError)


def is_unreachable(error: BaseException) -> bool:
    """Whether nothing has answered at all: a store that restarts, or a wrong address."""
    return isinstance(error, UNREACHABLE)


def in_words(error: BaseException, *, address: str, bucket: str, endpoint: str, region: str) -> BaseException:
    """The exception to raise for one that no further try will mend.

    Args:
        error: what was caught.
        address: `s3://bucket/key` of the request.
        bucket: of the request.
        endpoint: where requests go.
        region: that they are signed for.
    """
    code, status, response = code_of(error), status_of(error), response_of(error)
    said = str(response.get("Error", {}).get("Message") or error).strip()
    if code == "NoSuchBucket":
        return bucket_missing(bucket, endpoint)
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(address)
    if isinstance(error, FileExistsError):
        return FileExistsError(address)
    if code in ("PreconditionFailed", "412"):
        return ReplacedMeanwhileError(f"{address} was replaced while it was read: run the same command again")
    if code in WRONG_REGION_CODES or status in (301, 307):
        right = _right_region(response)
        return WrongRegionError(
            f"{address}: the bucket is not in region {region!r}, which requests are signed for"
            f"{f'; it is in {right!r}' if right else f' ({said})'}: set AWS_DEFAULT_REGION{f'={right}' if right else ' to its region'}, "
            f"or AWS_ENDPOINT_URL to the endpoint that has it (it is {endpoint})"
        )
    skew = _skew_seconds(response)
    if code == "RequestTimeTooSkewed" or (status == 403 and abs(skew) > MAX_SKEW_SECONDS):
        by = f" by {abs(skew):.0f} s, it is {'behind' if skew > 0 else 'ahead'}" if skew else ""
        return ClockSkewError(
            f"{address}: the store refuses requests because this machine's clock differs from its own{by}: set the clock (NTP)"
        )
    if code in ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired"):
        return AccessDeniedError(
            f"{address}: {endpoint} does not take these credentials ({code}: {said}): check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and "
            "AWS_SESSION_TOKEN (in Airflow: the connection that BLISS_S3_CONNECTION names)"
        )
    if status in (401, 403) or isinstance(error, PermissionError):
        return AccessDeniedError(
            f"{address}: access denied ({said}): these credentials need s3:GetObject, s3:PutObject, s3:DeleteObject, s3:ListBucket and "
            f"s3:AbortMultipartUpload on bucket {bucket!r} at {endpoint}; or they are wrong: check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"
        )
    if isinstance(error, boto.NoCredentialsError | boto.PartialCredentialsError):
        return AccessDeniedError(
            f"{address}: there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or in Airflow BLISS_S3_CONNECTION "
            "(a public bucket: FSSPEC_S3_ANON=true)"
        )
    if isinstance(error, ResponseParserError):
        return WrongEndpointError(f"{address}: what answers at {endpoint} does not speak S3 ({_line(said)}): check AWS_ENDPOINT_URL")
    if isinstance(error, boto.SSLError):
        return WrongEndpointError(
            f"{address}: no TLS connection to {endpoint} ({_line(said)}): check AWS_ENDPOINT_URL (http:// for a store without TLS), "
            "AWS_CA_BUNDLE"
        )
    return StoreError(f"{address}: {endpoint} refuses this ({code or type(error).__name__}: {_line(said)})")


def bucket_missing(bucket: str, endpoint: str) -> BucketMissingError:
    return BucketMissingError(
        f"bucket {bucket!r} does not exist at {endpoint}: create it (`aws s3 mb s3://{bucket}`), or check the address and AWS_ENDPOINT_URL"
    )


def unavailable(error: BaseException, *, address: str, endpoint: str, num_tries: int, seconds: float) -> StoreError:
    """What to raise when no try within the time has succeeded."""
    what = _line(str(response_of(error).get("Error", {}).get("Message") or error))
    tried = f"{num_tries} tries in {seconds:.0f} s"
    if is_unreachable(error):
        return WrongEndpointError(
            f"{address}: nothing answers at {endpoint} ({tried}; {what}): check AWS_ENDPOINT_URL, that the store runs, and the network; "
            "the same command resumes"
        )
    reason = f"it answered {status_of(error)} {code_of(error)}".rstrip() if status_of(error) else f"{type(error).__name__}: {what}"
    return UnavailableError(
        f"{address}: {endpoint} has not served this in {tried} (at last: {reason}): see to the store; the same command resumes "
        "(BLISS_S3_RETRY_SECONDS is how long a request is tried)"
    )


def _right_region(response: dict[str, Any]) -> str:
    headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return str(response.get("Error", {}).get("Region") or headers.get("x-amz-bucket-region") or "")


def _skew_seconds(response: dict[str, Any]) -> float:
    """How far this machine's clock is behind the store's, by the date of its answer; 0 when that does not say."""
    date = response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date", "")
    try:
        return (parsedate_to_datetime(date) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError):
        return 0.0


def _line(text: str, longest: int = 200) -> str:
    line = " ".join(text.split())
    return line if len(line) <= longest else f"{line[:longest]}..."
