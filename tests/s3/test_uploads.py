"""Uploads that end otherwise than their writer hears: completed, removed, or left by a killed writer; and deleting what is gone."""

import os
import time
from typing import Any

import pytest
from upath import UPath

from bliss_ops.lake import Lake, remove, sweep_temporary_files, write_bytes
from bliss_ops.object_store import errors, file_system
from bliss_ops.operations import checks_lake, collecting
from bliss_ops.operations.retention import Plan, Policy, plan
from tests.s3.faulty_proxy import FaultyProxy

ROOT = UPath("s3://lake/uploads")
SIZE = 11 * 2**20


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_system, "PART_BYTES", 5 * 2**20)


@pytest.fixture(params=["md5", "other"])
def etags(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """ETags of parts: MD5 sums, and what a store that encrypts has."""
    once = file_system.ObjectStore._once

    async def disguised(self: Any, method: str, *options: Any, **arguments: Any) -> Any:
        if method == "complete_multipart_upload":
            arguments["MultipartUpload"] = {"Parts": [backwards(part) for part in arguments["MultipartUpload"]["Parts"]]}
        answer = await once(self, method, *options, **arguments)
        return backwards(answer) if method == "upload_part" else answer

    if request.param == "other":
        monkeypatch.setattr(file_system.ObjectStore, "_once", disguised)
    return str(request.param)


def backwards(answer: dict[str, Any]) -> dict[str, Any]:
    return answer | {"ETag": answer["ETag"][::-1]}


def abort_all(s3: Any) -> None:
    for upload in s3.list_multipart_uploads("lake"):
        s3.call_s3("abort_multipart_upload", Bucket="lake", Key=upload["Key"], UploadId=upload["UploadId"])


@pytest.mark.parametrize("num_lost", [0, 1])
@pytest.mark.usefixtures("etags")
def test_an_object_of_the_same_size_is_not_taken_for_an_upload_that_was_removed(proxy: FaultyProxy, s3: Any, num_lost: int) -> None:
    path, former = ROOT / "state", os.urandom(SIZE)
    s3.pipe_file("lake/uploads/state", former)
    time.sleep(1.1)  # objects have whole seconds
    proxy.reset(method="POST", path="uploadId", count=num_lost)
    proxy.fail(404, code="NoSuchUpload", method="POST", path="uploadId")  # what moto answers then is no better than a 500
    with pytest.raises(errors.StoreError, match=r"its upload was removed before it was complete.*run the same command again"):
        write_bytes(path, os.urandom(SIZE))
    assert proxy.counts()["COMPLETE"] == 1 + num_lost
    assert path.read_bytes() == former


@pytest.mark.usefixtures("etags")
def test_an_upload_whose_last_answer_was_lost_is_found_by_its_parts(proxy: FaultyProxy) -> None:
    path, content = ROOT / "lost-answer", os.urandom(SIZE)
    proxy.cut_download(method="POST", path="uploadId", count=1)
    write_bytes(path, content)
    assert proxy.counts()["COMPLETE"] == 2
    assert path.read_bytes() == content


def test_uploads_beyond_the_first_page_are_swept(proxy: FaultyProxy, s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """moto has no pages: its answer is cut into some."""
    once = file_system.ObjectStore._once

    async def by_twos(self: Any, method: str, *options: Any, **arguments: Any) -> Any:
        answer = await once(self, method, *options, **arguments)
        if method == "list_multipart_uploads":
            after = (arguments.get("KeyMarker", ""), arguments.get("UploadIdMarker", ""))
            uploads = sorted(answer.get("Uploads", []), key=lambda each: (each["Key"], each["UploadId"]))
            left = [each for each in uploads if (each["Key"], each["UploadId"]) > after]
            answer |= {"Uploads": left[:2], "IsTruncated": len(left) > 2}
        return answer

    monkeypatch.setattr(file_system.ObjectStore, "_once", by_twos)
    for number in range(5):
        s3.call_s3("create_multipart_upload", Bucket="lake", Key=f"uploads/run/{number // 2}")
    assert len(plan(Lake(ROOT / "run"), Policy(older_than_seconds=0)).items) == 5
    sweep_temporary_files(ROOT / "run")
    assert s3.list_multipart_uploads("lake") == []


def test_deleting_what_is_gone_from_a_store_that_says_so(proxy: FaultyProxy) -> None:
    rule = proxy.fail(404, code="NoSuchKey", method="DELETE")
    remove(ROOT / "gone")
    (ROOT / "gone").unlink(missing_ok=True)
    assert rule.num_hits >= 1
    proxy.clear()
    with pytest.raises(errors.BucketMissingError):
        remove(UPath("s3://no-such-bucket/x"))


# ---- what `bliss gc` and `bliss doctor` say of them --------------------------------------------------------------------


@pytest.fixture
def lake(proxy: FaultyProxy, s3: Any) -> Lake:
    """With one upload that was cut, in which 100 bytes are."""
    abort_all(s3)
    which = {"Bucket": "lake", "Key": "uploads/lake/x", "UploadId": ""}
    which["UploadId"] = s3.call_s3("create_multipart_upload", Bucket="lake", Key="uploads/lake/x")["UploadId"]
    s3.call_s3("upload_part", **which, PartNumber=1, Body=b"a" * 100)
    return Lake(ROOT / "lake")


def uploads(lake: Lake) -> Plan:
    return plan(lake, Policy(kinds=("uploads",), older_than_seconds=0))


def test_without_the_right_to_list_parts_an_upload_goes_all_the_same(lake: Lake, proxy: FaultyProxy, s3: Any) -> None:
    assert [item.num_bytes for item in uploads(lake).items] == [100]
    proxy.fail(403, code="AccessDenied", method="GET", path="uploadId=")
    (item,) = uploads(lake).items
    assert (item.num_bytes, item.address) == (0, "x")
    assert item.reason.endswith("its size is not known without the right s3:ListMultipartUploadParts")
    assert [finding.level for finding in checks_lake.object_store(str(lake.root))] == ["ok", "ok", "warning"]
    assert collecting.collect(lake, [item]).problems == []
    assert s3.list_multipart_uploads("lake") == []


@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (501, "NotImplemented")])
def test_without_the_right_to_list_uploads_the_plan_says_so(lake: Lake, proxy: FaultyProxy, status: int, code: str) -> None:
    proxy.fail(status, code=code, method="GET", path=r"[?&]uploads")
    found = uploads(lake)
    assert found.items == []
    ((address, reason),) = found.kept
    assert address == "uploads"
    assert reason.startswith("those that were never completed cannot be looked for: s3://lake")
    told = list(checks_lake.object_store(str(lake.root)))
    assert (told[-1].level, "docs/s3.md" in told[-1].fix) == ("warning", True)


def test_an_upload_that_ends_meanwhile_is_none(lake: Lake, proxy: FaultyProxy, s3: Any) -> None:
    items = uploads(lake).items
    rule = proxy.fail(404, code="NoSuchUpload", method="GET", path="uploadId=")
    assert uploads(lake).items == []
    assert rule.num_hits == 1
    abort_all(s3)
    outcome = collecting.collect(lake, items)
    assert (outcome.problems, outcome.num_bytes) == ([], 0)
