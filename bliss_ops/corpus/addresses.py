"""Addresses of source data: which ones are taken, how they are opened, and what their failures mean in words.

Sources are read through fsspec. Its back ends raise a dozen exception types for "it is not there"; here they become one
ValueError that names the address and what to do. Retries are few and short: a wrong endpoint is told in seconds, not minutes.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from upath import UPath

ALLOWED = "a local path or glob, s3://bucket/key, https://host/path, http://host/path, hf://datasets/owner/name/path"

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(?://|/|$)|([a-z0-9+-]+)::")
_READABLE = re.compile(r"(s3|https|http)://[^/].*|(hf)://(datasets/|spaces/)?[^/]+/[^/]+/.+", re.DOTALL)
_HINTS = {
    "": "check the path",
    "s3": "check bucket, key, AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (a public bucket: FSSPEC_S3_ANON=true)",
    "https": "check the address and the network",
    "http": "check the address and the network",
    "hf": "check repository and path, the network, and HF_TOKEN for a gated or private one",
}


@dataclass(frozen=True)
class Address:
    """One place that can be opened: a file system, a path in it, and the text users know it by."""

    uri: str
    scheme: str
    fs: Any
    path: str

    def open(self) -> BinaryIO:
        stream: BinaryIO = self.fs.open(self.path, "rb")
        return stream


def resolve(uri: str | UPath) -> Address:
    """The address of a URI, of a local path (made absolute), or of a file of the lake.

    Raises:
        ValueError: the scheme is not one of those taken.
    """
    if isinstance(uri, UPath):
        scheme = "" if uri.protocol in ("", "file", "local") else str(uri.protocol)
        return Address(str(uri), scheme, uri.fs, uri.path)
    scheme_found = _SCHEME.match(uri)
    if scheme_found is None:
        path = os.path.abspath(Path(uri).expanduser())  # noqa: PTH100 - Path.resolve follows links, and a linked cache hides the file's name
        return Address(path, "", fsspec.filesystem("file"), path)
    scheme = scheme_found[1] or scheme_found[2]
    if not _READABLE.fullmatch(uri):
        plain = " (give a local file by its plain path)" if scheme.lower() == "file" else ""
        raise ValueError(f"{uri!r} is not an address that can be read{plain}: use {ALLOWED}")
    with readable(uri, scheme):
        fs = fsspec.filesystem(scheme, **_options(scheme))
    return Address(uri, scheme, fs, uri if scheme in ("http", "https") else uri.removeprefix(f"{scheme}://"))


def _options(scheme: str) -> dict[str, Any]:
    if scheme == "s3":
        # s3fs retries connection errors by itself; with botocore's retries on top an unreachable endpoint took minutes.
        return {"config_kwargs": {"connect_timeout": 4, "read_timeout": 60, "retries": {"max_attempts": 0}}}
    if scheme in ("http", "https"):
        import aiohttp

        # The default ends every request after five minutes, also one that is still streaming a large shard.
        return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60)}}
    return {}


@contextmanager
def readable(uri: str, scheme: str) -> Iterator[None]:
    """Turn what a storage back end raises while `uri` is listed or read into one ValueError that says what to do.

    Raises:
        ValueError: the file, bucket, host or repository cannot be reached or read.
    """
    try:
        yield
    except _failures(scheme) as caught:
        # fsspec calls every failed HTTP request "file not found"; what it was is in the cause.
        is_hidden = (
            scheme in ("http", "https") and isinstance(caught, FileNotFoundError) and isinstance(caught.__cause__, _failures(scheme))
        )
        error = caught.__cause__ if is_hidden else caught
        missing = isinstance(error, FileNotFoundError)
        what = "does not exist" if missing else "may not be read" if isinstance(error, PermissionError) else "cannot be reached or read"
        detail = "" if missing else f" ({type(error).__name__}: {str(error).strip() or 'no details'})"
        raise ValueError(f"{uri} {what}{detail}: {_HINTS.get(scheme, _HINTS[''])}") from caught


def _failures(scheme: str) -> tuple[type[BaseException], ...]:
    """The exception types of a scheme's back end; its libraries are imported only when that scheme is used."""
    if scheme == "s3":
        import aiohttp
        from botocore.exceptions import BotoCoreError, ClientError  # type: ignore[import-untyped]

        return (OSError, TimeoutError, BotoCoreError, ClientError, aiohttp.ClientError)
    if scheme in ("http", "https"):
        import aiohttp

        return (OSError, TimeoutError, aiohttp.ClientError)
    if scheme == "hf":
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        # The bases are the error types of the HTTP client under the hub, which changes its name from release to release.
        return (OSError, TimeoutError, HFValidationError, HfHubHTTPError, *HfHubHTTPError.__bases__)
    return (OSError,)
