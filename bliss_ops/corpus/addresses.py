"""Addresses of source data: which ones are taken, how they are opened, and what their failures mean in words.

Sources are read through fsspec. Its back ends raise a dozen exception types for "it is not there"; here they become one
ValueError that names the address and what to do. Those of object stores are tried again and put into words in `bliss_ops.object_store`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
from upath import UPath

from bliss_ops.names import RefusedHostError, check_address, check_allowed
from bliss_ops.object_store.errors import StoreError

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
        ValueError: the scheme is not one of those taken, or it is outside of where sources may be.
    """
    if isinstance(uri, UPath):
        scheme = "" if uri.protocol in ("", "file", "local") else str(uri.protocol)
        return Address(str(uri), scheme, uri.fs, uri.path)
    scheme = check_address(uri)
    if not scheme:
        path = os.path.abspath(Path(uri).expanduser())  # noqa: PTH100 - Path.resolve follows links, and a linked cache hides the file's name
        return Address(check_place(path), "", fsspec.filesystem("file"), path)
    check_place(uri)
    with readable(uri, scheme):
        fs = fsspec.filesystem(scheme, **_options(scheme, uri))
    return Address(uri, scheme, fs, uri if scheme in ("http", "https") else uri.removeprefix(f"{scheme}://"))


def check_place(uri: str) -> str:
    """Return an address that lies where sources may be, if anything is said about that; in the lake and the watched folder they always
    may: there are the lists of what landed, and tokenizers.

    Raises:
        ValueError: it lies elsewhere.
    """
    return check_allowed(uri, also=[place for name in ("BLISS_LAKE", "BLISS_LANDING") if (place := os.environ.get(name))])


def read_whole(address: Address, most_bytes: int) -> bytes:
    """The content of a small file: a list, a tokenizer, a model's config.

    Raises:
        ValueError: it cannot be read, or is larger than that.
    """
    with readable(address.uri, address.scheme), address.open() as file:
        content = file.read(most_bytes + 1)
    if len(content) > most_bytes:
        raise ValueError(f"{address.uri} has more than {most_bytes >> 20:,} MB, far more than a file of its kind: check the address")
    return content


def _options(scheme: str, uri: str) -> dict[str, Any]:
    if scheme in ("http", "https"):
        from bliss_ops.corpus import redirects

        return redirects.options(uri)
    if scheme == "hf":
        from bliss_ops.corpus import redirects

        redirects.guard_hub()
    return {}


@contextmanager
def readable(uri: str, scheme: str) -> Iterator[None]:
    """Turn what a storage back end raises while `uri` is listed or read into one ValueError that says what to do.

    Raises:
        ValueError: the file, bucket, host or repository cannot be reached or read.
    """
    try:
        yield
    except StoreError as failed:  # has been tried often enough, and says what to do
        raise ValueError(str(failed) if uri in str(failed) else f"{uri}: {failed}") from failed
    except _failures(scheme) as caught:
        # fsspec calls every failed HTTP request "file not found"; what it was is in the cause.
        is_hidden = (
            scheme in ("http", "https") and isinstance(caught, FileNotFoundError) and isinstance(caught.__cause__, _failures(scheme))
        )
        error = caught.__cause__ if is_hidden else caught
        if refused := _refusal(caught):
            raise ValueError(f"{uri} is not read: {refused}") from caught
        missing = isinstance(error, FileNotFoundError)
        what = "does not exist" if missing else "may not be read" if isinstance(error, PermissionError) else "cannot be reached or read"
        detail = "" if missing else f" ({type(error).__name__}: {str(error).strip() or 'no details'})"
        raise ValueError(f"{uri} {what}{detail}: {_HINTS.get(scheme, _HINTS[''])}") from caught


def _refusal(error: BaseException | None) -> RefusedHostError | None:
    """What we raised ourselves below a back end, which wraps it once or twice."""
    while error is not None and not isinstance(error, RefusedHostError):
        error = error.__cause__ or error.__context__
    return error


def _failures(scheme: str) -> tuple[type[BaseException], ...]:
    """The exception types of a scheme's back end; its libraries are imported only when that scheme is used."""
    if scheme in ("http", "https"):
        import aiohttp

        return (OSError, TimeoutError, aiohttp.ClientError)
    if scheme == "hf":
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError

        # The bases are the error types of the HTTP client under the hub, which changes its name from release to release.
        return (OSError, TimeoutError, HFValidationError, HfHubHTTPError, *HfHubHTTPError.__bases__)
    return (OSError,)
