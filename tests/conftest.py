"""One thread per test process: two threads on two busy cores wait for each other more than they compute.

And what several folders of tests share: a mock S3, and one finished smoke run.
"""

import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def s3() -> Iterator[Any]:
    """An empty mock S3 on the loopback interface, named by the usual environment variables; skipped where moto is missing."""
    moto_server = pytest.importorskip("moto.server")
    import s3fs

    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    url = f"http://{host}:{port}"
    urllib.request.urlopen(f"{url}/moto-api/reset", data=b"").close()  # all servers of one process share their buckets
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", url)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()
        yield s3fs.S3FileSystem()
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


@pytest.fixture(scope="session")
def finished_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A lake in which `bliss run smoke` has finished: do not change it."""
    from bliss_ops.cli import main  # after the number of threads is set

    root = tmp_path_factory.mktemp("smoke") / "lake"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        assert main(["run", "smoke", "--lake", str(root)]) == 0
        yield root
