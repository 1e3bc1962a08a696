"""A mock S3 behind the faulty proxy; every test begins with all faults cleared and a bucket `lake`."""

from collections.abc import Iterator
from typing import Any

import pytest

from bliss_ops import object_store
from tests.s3.faulty_proxy import FaultyProxy


@pytest.fixture(scope="module")
def proxied(s3: Any) -> Iterator[FaultyProxy]:
    with FaultyProxy(s3.s3.meta.endpoint_url) as proxy:
        yield proxy


@pytest.fixture
def proxy(proxied: FaultyProxy, s3: Any, monkeypatch: pytest.MonkeyPatch) -> FaultyProxy:
    """Everything this process does on `s3://` goes through it; requests are tried for 3 s, and wait long on a busy machine."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", proxied.endpoint)
    monkeypatch.setenv(object_store.RETRY_SECONDS, "3")
    monkeypatch.setenv(object_store.TIMEOUT_SECONDS, "20")
    s3.invalidate_cache()
    if not s3.exists("lake"):
        s3.mkdir("lake")
    proxied.clear()
    proxied.forget()
    return proxied
