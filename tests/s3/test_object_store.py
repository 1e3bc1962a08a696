"""The file system of `s3://`: how many requests it makes, how it tries again, and what it says when that does not help."""

import logging
import os
import pickle
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from bliss_ops import object_store
from bliss_ops.lake import atomic_file, names_in, read_bytes, remove, sweep_temporary_files, uploaded_etag, write_bytes
from bliss_ops.object_store import errors, file_system
from tests.s3.faulty_proxy import FaultyProxy

LAKE = "s3://lake/here"


@pytest.fixture
def _patient(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that does not come is given up after a second; requests are tried for long."""
    monkeypatch.setenv(object_store.TIMEOUT_SECONDS, "1")
    monkeypatch.setenv(object_store.RETRY_SECONDS, "60")


def no_uploads(s3: Any) -> bool:
    return not s3.s3.meta.region_name or not s3.list_multipart_uploads("lake")


# ---- requests ----------------------------------------------------------------------------------------------------------


def test_small_files_cost_one_request_each(proxy: FaultyProxy) -> None:
    root = UPath(LAKE)
    write_bytes(root / "one", b"1")
    assert proxy.counts() == {"PUT": 1}
    proxy.forget()
    assert read_bytes(root / "one") == b"1"
    assert (root / "one").read_bytes() == b"1"
    assert (root / "one").open("rb").read() == b"1"
    assert proxy.counts() == {"GET": 3}
    proxy.forget()
    with pytest.raises(FileNotFoundError, match="s3://lake/here/two"):
        (root / "two").read_bytes()
    assert not (root / "two").is_file()
    assert names_in(root) == ["one"]
    assert names_in(root / "nothing") == []
    remove(root / "one")
    remove(root / "one")
    assert proxy.counts() == {"GET": 1, "HEAD": 1, "LIST": 2, "DELETE": 2}


def test_an_empty_file_is_there(proxy: FaultyProxy) -> None:
    write_bytes(UPath(LAKE) / "empty", b"")
    assert (UPath(LAKE) / "empty").read_bytes() == b""
    assert (UPath(LAKE) / "empty").is_file()


def test_a_large_file_is_read_in_parts_of_one_version(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(file_system, "PART_BYTES", 5 * 2**20)
    content = os.urandom(17 * 2**20 + 3)
    path = UPath(LAKE) / "large"
    write_bytes(path, content)
    assert proxy.counts() == {"CREATE_UPLOAD": 1, "UPLOAD_PART": 4, "COMPLETE": 1}
    assert path.read_bytes() == content
    assert path.fs.cat_file(path.path, start=100, end=200) == content[100:200]
    path.fs.get_file(path.path, str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == content
    with path.open("rb") as stream:
        stream.seek(6 * 2**20)
        assert stream.read(10) == content[6 * 2**20 : 6 * 2**20 + 10]
        write_bytes(path, b"other" * 2**18)
        stream.seek(0)
        with pytest.raises(errors.ReplacedMeanwhileError, match="was replaced while it was read"):
            stream.read(10)


def test_a_download_during_which_the_object_is_replaced(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As the snapshot of the score store is."""
    path, fs = UPath(LAKE) / "snapshot", UPath(LAKE).fs
    write_bytes(path, b"old" * 200_000)
    ranges = file_system.ObjectStore._ranges

    async def replace_first(self: Any, *arguments: Any) -> bytes:
        if proxy.counts()["PUT"] == 1:
            await self._call_s3("put_object", Bucket="lake", Key="here/snapshot", Body=b"new" * 300_000)
        return await ranges(self, *arguments)

    monkeypatch.setattr(file_system.ObjectStore, "_ranges", replace_first)
    fs.get_file(path.path, str(tmp_path / "copy"))
    assert (tmp_path / "copy").read_bytes() == b"new" * 300_000


def test_listings_are_never_stale(proxy: FaultyProxy, s3: Any) -> None:
    root = UPath(LAKE) / "listed"
    assert not (root / "a").exists()
    s3.pipe_file("lake/here/listed/a", b"1")  # by another process
    assert (root / "a").exists()
    assert [path.name for path in root.iterdir()] == ["a"]
    s3.rm("lake/here/listed/a")
    assert not (root / "a").exists()


def test_paths_and_pickles_hold_no_secret(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do-not-tell")
    path = UPath(LAKE) / "secret"
    write_bytes(path, b"x")
    assert b"do-not-tell" not in pickle.dumps(path) + pickle.dumps(path.fs)
    assert pickle.loads(pickle.dumps(path)).read_bytes() == b"x"  # noqa: S301
    assert isinstance(path.fs, file_system.ObjectStore)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    assert UPath(LAKE).fs is not path.fs, "another environment is another file system"


# ---- trying again ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_patient")
@pytest.mark.parametrize("fault", ["fail", "reset", "hang", "cut_upload"])
def test_a_write_gets_through(proxy: FaultyProxy, fault: str, caplog: pytest.LogCaptureFixture) -> None:
    path = UPath(LAKE) / f"write-{fault}"
    with caplog.at_level(logging.WARNING, logger="bliss_ops"):
        getattr(proxy, fault)(method="PUT", count=2)
        write_bytes(path, b"content" * 10_000)
    proxy.clear()
    assert path.read_bytes() == b"content" * 10_000
    num_told = caplog.text.count("put_object s3://lake/here/write-")
    assert num_told >= 2 or (fault in ("reset", "cut_upload") and num_told == 1), (
        "each is told; aiohttp replaces a connection that was kept"
    )


@pytest.mark.usefixtures("_patient")
@pytest.mark.parametrize("fault", ["fail", "hang", "cut_download"])
def test_a_read_gets_through(proxy: FaultyProxy, fault: str) -> None:
    path = UPath(LAKE) / f"read-{fault}"
    write_bytes(path, os.urandom(300_000))
    content = path.read_bytes()
    getattr(proxy, fault)(method="GET", count=2)
    assert path.read_bytes() == content


def test_an_outage_is_waited_for(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(object_store.RETRY_SECONDS, "20")
    path = UPath(LAKE) / "outage"
    rule = proxy.fail(500, seconds=2)
    write_bytes(path, b"x")
    assert rule.num_hits > 2
    assert path.read_bytes() == b"x"


@pytest.mark.parametrize("status", [500, 503])
def test_an_outage_that_lasts_is_told(proxy: FaultyProxy, status: int) -> None:
    begun = time.monotonic()
    proxy.fail(status)
    with pytest.raises(errors.UnavailableError, match=rf"s3://lake/here/down: .* tries in \d+ s \(at last: it answered {status} .*resumes"):
        write_bytes(UPath(LAKE) / "down", b"x")
    assert 1 < time.monotonic() - begun < 30
    proxy.clear()
    assert not (UPath(LAKE) / "down").is_file()


def test_an_outage_is_no_absence(proxy: FaultyProxy) -> None:
    write_bytes(UPath(LAKE) / "dir" / "there", b"x")
    proxy.fail(503)
    for look in (
        lambda path: (path / "there").is_file(),
        lambda path: (path / "there").exists(),
        lambda path: list(path.iterdir()),
        lambda path: names_in(path),
        lambda path: path.fs.glob(f"{path.path}/*/*.gz"),
    ):
        with pytest.raises(errors.UnavailableError):
            look(UPath(LAKE) / "dir")


# ---- uploads -----------------------------------------------------------------------------------------------------------


def test_a_large_upload_that_is_cut_goes_on(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_system, "PART_BYTES", 5 * 2**20)
    content = os.urandom(16 * 2**20)
    cut = proxy.cut_upload(path="partNumber=2", count=2)
    write_bytes(UPath(LAKE) / "cut", content)
    assert cut.num_hits == 2
    assert (UPath(LAKE) / "cut").read_bytes() == content


@pytest.mark.parametrize("num_bytes", [1000, 11 * 2**20])
def test_an_upload_says_which_version_it_has_made(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, num_bytes: int) -> None:
    """The one that is found when it is asked for: by that a loader knows its own snapshot."""
    monkeypatch.setattr(file_system, "PART_BYTES", 5 * 2**20)
    path = UPath(LAKE) / "version"
    write_bytes(path, os.urandom(num_bytes))
    etag = uploaded_etag(path)
    assert etag
    assert etag == path.fs.info(path.path)["ETag"]
    assert uploaded_etag(path) == "", "told once"


def test_a_large_upload_that_fails_leaves_nothing(proxy: FaultyProxy, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_system, "PART_BYTES", 5 * 2**20)
    path = UPath(LAKE) / "failed"
    proxy.cut_upload(path="partNumber=2")
    with pytest.raises(errors.StoreError, match="s3://lake/here/failed"):
        write_bytes(path, os.urandom(16 * 2**20))
    proxy.clear()
    assert not path.is_file()
    assert no_uploads(s3)
    write_bytes(path, b"resumed")
    assert path.read_bytes() == b"resumed"


def test_a_check_that_fails_keeps_a_large_file_from_appearing(proxy: FaultyProxy, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from bliss_ops.lake import checked_by

    monkeypatch.setattr(file_system, "PART_BYTES", 5 * 2**20)
    path = UPath(LAKE) / "stale"

    def check() -> None:
        assert proxy.counts()["UPLOAD_PART"] == 4, "right before it appears"
        raise ValueError("replaced meanwhile")

    with pytest.raises(ValueError, match="replaced"), checked_by(check), atomic_file(path) as file:
        file.write_bytes(os.urandom(16 * 2**20))
    assert not path.is_file()
    assert no_uploads(s3)


def test_an_answer_that_was_lost_is_no_failure(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store has completed the upload; the client, which has not heard of it, asks again and is told that there is none."""
    monkeypatch.setattr(file_system, "PART_BYTES", 5 * 2**20)
    content = os.urandom(11 * 2**20)
    proxy.cut_download(method="POST", path="uploadId", count=1)
    write_bytes(UPath(LAKE) / "lost-answer", content)
    assert proxy.counts()["COMPLETE"] == 2
    assert (UPath(LAKE) / "lost-answer").read_bytes() == content


def test_uploads_of_killed_writers_are_swept(proxy: FaultyProxy, s3: Any) -> None:
    for key in ("here/run/a", "here/run-2/b"):
        s3.call_s3("create_multipart_upload", Bucket="lake", Key=key)
    sweep_temporary_files(UPath(LAKE) / "run", older_than_seconds=1e9)  # moto says that all were begun in 2010
    assert len(s3.list_multipart_uploads("lake")) == 2, "they may belong to writers that are alive"
    sweep_temporary_files(UPath(LAKE) / "run", older_than_seconds=-1)
    assert [upload["Key"] for upload in s3.list_multipart_uploads("lake")] == ["here/run-2/b"]
    sweep_temporary_files(UPath(LAKE), older_than_seconds=-1)
    assert no_uploads(s3)


def test_of_two_that_create_a_file_one_does(proxy: FaultyProxy) -> None:
    path, outcomes, start = UPath(LAKE) / "first", [], threading.Barrier(4)

    def create(content: bytes) -> None:
        start.wait()
        try:
            path.fs.create(path.path, content)
            outcomes.append(content)
        except FileExistsError:
            outcomes.append(b"")

    threads = [threading.Thread(target=create, args=(bytes([65 + number]),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = filter(None, outcomes)
    assert path.read_bytes() == winner


# ---- what is wrong, in a sentence --------------------------------------------------------------------------------------


def test_a_bucket_that_is_missing(proxy: FaultyProxy) -> None:
    for act in (
        lambda path: path.read_bytes(),
        lambda path: path.is_file(),
        lambda path: write_bytes(path, b"x"),
        lambda path: names_in(path.parent),
    ):
        with pytest.raises(
            errors.BucketMissingError, match=r"bucket 'no-such-bucket' does not exist at http://127.*aws s3 mb.*AWS_ENDPOINT_URL"
        ):
            act(UPath("s3://no-such-bucket/a/b"))


@pytest.mark.parametrize(
    ("status", "code", "error", "message"),
    [
        (403, "AccessDenied", errors.AccessDeniedError, r"s3://lake/x: access denied .*s3:GetObject.*bucket 'lake'"),
        (403, "InvalidAccessKeyId", errors.AccessDeniedError, r"does not take these credentials \(InvalidAccessKeyId.*BLISS_S3_CONNECTION"),
        (403, "ExpiredToken", errors.AccessDeniedError, r"ExpiredToken.*AWS_SESSION_TOKEN"),
        (403, "RequestTimeTooSkewed", errors.ClockSkewError, r"clock differs.*NTP"),
        (400, "AuthorizationHeaderMalformed", errors.WrongRegionError, r"not in region 'us-east-1'.*set AWS_DEFAULT_REGION"),
        (501, "NotImplemented", errors.StoreError, r"s3://lake/x: http://127.* refuses this \(NotImplemented"),
    ],
)
def test_what_does_not_pass_is_told_at_once(proxy: FaultyProxy, status: int, code: str, error: type[Exception], message: str) -> None:
    rule = proxy.fail(status, code=code)
    with pytest.raises(error, match=message):
        UPath("s3://lake/x").read_bytes()
    assert rule.num_hits == 1


def test_a_wrong_region_that_the_store_names(proxy: FaultyProxy) -> None:
    proxy.fail(400, code="AuthorizationHeaderMalformed", more="<Region>eu-west-3</Region>")
    with pytest.raises(errors.WrongRegionError, match=r"it is in 'eu-west-3': set AWS_DEFAULT_REGION=eu-west-3"):
        UPath("s3://lake/x").read_bytes()


def test_a_clock_that_is_wrong_is_found_by_the_date_of_a_refusal(proxy: FaultyProxy) -> None:
    proxy.fail(403, code="AccessDenied", headers={"Date": "Thu, 01 Jan 2037 00:00:00 GMT"})
    with pytest.raises(errors.ClockSkewError, match=r"differs from its own by \d+ s, it is behind: set the clock"):
        (UPath("s3://lake/x")).is_file()  # a HEAD's answer has no body


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:9", "http://no-such-host.invalid:9000"])
def test_an_endpoint_where_nothing_answers(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(errors.WrongEndpointError, match=rf"s3://lake/x: nothing answers at {endpoint} .*check AWS_ENDPOINT_URL"):
        UPath("s3://lake/x").read_bytes()


def test_no_credentials(proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(errors.AccessDeniedError, match=r"there are no credentials: set AWS_ACCESS_KEY_ID"):
        UPath("s3://lake/x").read_bytes()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (object_store.RETRY_SECONDS, "soon", "BLISS_S3_RETRY_SECONDS is 'soon': give a number of seconds above 0"),
        (object_store.TIMEOUT_SECONDS, "-1", "BLISS_S3_TIMEOUT_SECONDS is '-1'"),
        (object_store.ADDRESSING_STYLE, "wide", "BLISS_S3_ADDRESSING_STYLE is 'wide': use auto, path"),
        (object_store.CONNECTION, "store", "this process is none of Airflow's"),
    ],
)
def test_settings_that_are_wrong(monkeypatch: pytest.MonkeyPatch, name: str, value: str, message: str) -> None:
    for variable in object_store.VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(object_store, "_resolver", None)
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=message):
        UPath("s3://lake/x").fs  # noqa: B018 - makes it


# ---- what jobs are given -----------------------------------------------------------------------------------------------


def test_jobs_get_what_reaches_the_lake(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in object_store.VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "its-secret")  # pragma: allowlist secret
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://s3:9000")
    monkeypatch.setenv("AWS_CA_BUNDLE", "/only/here.pem")
    monkeypatch.setenv("BLISS_LAKE", "/a/disk")
    monkeypatch.delenv("BLISS_LANDING", raising=False)
    assert object_store.forwarded_environment() == {}
    monkeypatch.setenv("BLISS_LAKE", LAKE)
    assert object_store.forwarded_environment(to_ray=True) == {"AWS_ENDPOINT_URL": "http://s3:9000"}  # Ray logs what jobs get
    assert object_store.forwarded_environment() == {
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "its-secret",  # pragma: allowlist secret
        "AWS_ENDPOINT_URL": "http://s3:9000",
    }


def test_a_connection_counts_more_than_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    from bliss_ops.airflow import store_connection

    connection = {"region_name": "eu-west-3", "endpoint_url": "http://s3:9000", "config_kwargs": {"s3": {"addressing_style": "path"}}}
    monkeypatch.setattr(object_store, "_resolver", lambda name: store_connection._variables("of-" + name, "its-key", connection))
    monkeypatch.setenv("BLISS_LAKE", LAKE)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "other")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "other")
    monkeypatch.setenv(object_store.CONNECTION, "store")
    forwarded = object_store.forwarded_environment(to_ray=True)
    assert "AWS_SESSION_TOKEN" not in forwarded
    assert (
        forwarded.items()
        >= {
            "AWS_ACCESS_KEY_ID": "of-store",
            "AWS_SECRET_ACCESS_KEY": "its-key",  # pragma: allowlist secret
            "AWS_DEFAULT_REGION": "eu-west-3",
            "AWS_ENDPOINT_URL": "http://s3:9000",
            "BLISS_S3_ADDRESSING_STYLE": "path",
        }.items()
    )


def test_duckdb_asks_once_for_each_file(proxy: FaultyProxy) -> None:
    import duckdb
    import pyarrow as pa

    from bliss_ops.lake import Lake, write_parquet
    from bliss_ops.report.facts import reach

    lake = Lake.open(LAKE)
    files = [lake.root / "queried" / f"{number}.parquet" for number in range(3)]
    for file in files:
        write_parquet(file, pa.table({"a": list(range(1000))}))
    with duckdb.connect(":memory:") as con:
        reach(con, lake)
        proxy.forget()
        for _ in range(3):
            query = "select count(*), sum(a) from read_parquet($files)"
            assert con.execute(query, {"files": [str(file) for file in files]}).fetchall() == [(3000, 3 * 499500)]
    assert proxy.counts() == {"HEAD": 3, "GET": 3}
