"""Uploads that end otherwise than their writer hears: completed, removed, or left by a killed writer; and deleting what is gone."""

from typing import Any

import pytest
from upath import UPath

from bliss_ops.lake import sweep_temporary_files
from bliss_ops.object_store import file_system
from tests.s3.faulty_proxy import FaultyProxy

ROOT = UPath("s3://lake/uploads")
SIZE = 11 * 2**20


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
    sweep_temporary_files(ROOT / "run")
    assert s3.list_multipart_uploads("lake") == []
