"""Files that are being written: a stage that is begun again takes away what killed writers left, and nothing of a slow one."""

import os
import time
from pathlib import Path

from bliss_ops.lake import Lake
from bliss_ops.manifest import Artifact


def test_a_group_that_begins_later_leaves_a_slow_writer_alone(tmp_path: Path) -> None:
    lake = Lake.open(tmp_path)
    artifact = Artifact(lake, lake.root / "documents", stage="extract", identity={})
    artifact.begin()
    slow, killed = (tmp_path / "documents" / "rejects" / f".shard-0000{number}.parquet.x.tmp" for number in range(2))
    for file, hours in ((slow, 20), (killed, 30)):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"")
        os.utime(file, (time.time() - hours * 3600,) * 2)
    artifact.begin()
    assert (slow.exists(), killed.exists()) == (True, False)
