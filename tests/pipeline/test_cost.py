"""What manifests say the work took: over attempts, shards and workers; and that it changes no fingerprint and no digest."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from upath import UPath

from bliss_ops import metering
from bliss_ops.lake import Lake, write_bytes
from bliss_ops.launching import launch_here
from bliss_ops.manifest import Artifact, Manifest, describe, find_manifest
from bliss_ops.sharding import Cost, ShardRecord

MEGABYTE = 1 << 20


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake.open(tmp_path / "lake")


def artifact(lake: Lake, **settings: object) -> Artifact:
    return Artifact(lake, lake.root / "thing", stage="make", identity=settings)


def cost_of(manifest: Manifest | None) -> Cost:
    assert manifest is not None
    assert manifest.cost is not None
    return manifest.cost


def make(directory: UPath, *, seconds: float = 0.0, megabytes: int = 0, busy_seconds: float = 0.0) -> tuple[list[str], dict[str, int]]:
    held = np.ones(megabytes * MEGABYTE, np.uint8)
    until = time.process_time() + busy_seconds
    while time.process_time() < until:
        pass
    time.sleep(seconds)
    write_bytes(directory / "file", b"data")
    return ["file"], {"n": len(held) // MEGABYTE}


def test_seconds_memory_and_device_of_a_stage(lake: Lake) -> None:
    cost = cost_of(artifact(lake).produce(partial(make, seconds=0.2, megabytes=300, busy_seconds=0.1)))
    assert cost.seconds >= 0.3
    assert 0.1 <= cost.cpu_seconds <= cost.seconds + 0.1
    assert cost.device_seconds == cost.seconds
    assert cost.device.startswith("cpu")
    assert cost.peak_memory_bytes > 300 * MEGABYTE
    assert cost.peak_gpu_memory_bytes is None
    after = cost_of(artifact(Lake.open(lake.root / "another")).produce(make))
    assert after.peak_memory_bytes < cost.peak_memory_bytes - 200 * MEGABYTE  # its own high-water mark, not the process's of all time


def test_cost_is_no_part_of_what_the_artifact_is(lake: Lake, tmp_path: Path) -> None:
    quick = artifact(lake).produce(make)
    slow = artifact(Lake.open(tmp_path / "other")).produce(partial(make, seconds=0.1))
    assert quick.cost != slow.cost
    assert (quick.digest, quick.fingerprint, quick.outputs) == (slow.digest, slow.fingerprint, slow.outputs)


def test_attempts_that_failed_count_too_and_those_before_a_new_beginning_do_not(lake: Lake) -> None:
    def fail(directory: UPath) -> tuple[list[str], dict[str, int]]:
        make(directory, seconds=0.2)
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            artifact(lake).produce(fail)
    assert 0.5 <= cost_of(artifact(lake).produce(partial(make, seconds=0.1))).seconds < 2
    (lake.root / "thing" / "begun.json").unlink()
    (lake.root / "thing" / "manifest.json").unlink()
    assert cost_of(artifact(lake, other=1).produce(make)).seconds < 0.1


def test_a_killed_process_has_written_down_what_it_took(lake: Lake) -> None:
    code = (
        "import sys, time; from bliss_ops import metering; from bliss_ops.lake import Lake; from bliss_ops.manifest import Artifact\n"
        "metering.SECONDS_BETWEEN_RECORDS = 0.05\n"
        "lake = Lake.open(sys.argv[1])\n"
        "Artifact(lake, lake.root / 'thing', stage='make', identity={}).produce(lambda _: time.sleep(60))\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(lake.root)])
    records = Path(lake.root.path) / "thing" / metering.RECORDS
    deadline = time.monotonic() + 60
    while not (records.exists() and metering.spent(lake.root / "thing", artifact(lake).fingerprint).seconds > 0.3):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert cost_of(artifact(lake).produce(make)).seconds > 0.3


def shard_worker(directory: UPath) -> Callable[[int], ShardRecord]:
    def work(shard: int) -> ShardRecord:
        time.sleep(0.15)
        name = f"shard-{shard:05d}.parquet"
        write_bytes(directory / name, b"x")
        return ShardRecord(shard=shard, outputs=[describe(directory, name)])

    return work


@pytest.mark.parametrize("in_flight", [1, 2])
def test_shards_are_added_up_and_those_side_by_side_share_the_time(lake: Lake, in_flight: int) -> None:
    begun = time.monotonic()
    make_worker = partial(shard_worker, lake.root / "thing")
    assert artifact(lake).produce_shards(make_worker, [0, 1, 2, 3], only=[0, 1], in_flight=in_flight) is None
    half = time.monotonic() - begun
    cost = cost_of(artifact(lake).produce_shards(make_worker, [0, 1, 2, 3], in_flight=in_flight))
    whole = time.monotonic() - begun
    assert half < cost.seconds <= whole + 0.01
    assert cost.seconds == pytest.approx(0.6 / in_flight, abs=0.15 + (whole - 0.6 / in_flight))
    assert cost.num_workers == 1


def test_an_artifact_deleted_meanwhile_is_not_brought_back_by_its_record(lake: Lake) -> None:
    directory = lake.root / "thing"
    with metering.recorded(directory, "gone"):
        pass
    assert not directory.exists()


def test_a_full_disk_does_not_end_the_work(lake: Lake, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(metering, "write_json", full)
    assert find_manifest(lake.root / "thing") is None
    assert cost_of(artifact(lake).produce(make)).seconds == 0
    assert "is not recorded: [Errno 28] No space left" in caplog.text


def sleep() -> None:
    time.sleep(0.3)


@pytest.mark.slow
def test_workers_count_device_seconds_and_the_stage_its_own(lake: Lake) -> None:
    one = artifact(lake)

    def launch(directory: UPath) -> tuple[list[str], dict[str, int]]:
        one.metered(launch_here)(sleep, 2)
        return make(directory)

    cost = cost_of(one.produce(launch))
    assert cost.num_workers == 2
    assert 0.6 <= cost.device_seconds < 1.5  # not the start of the processes
    assert cost.seconds > 0.3
