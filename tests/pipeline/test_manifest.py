"""Artifacts: skipped when done, resumed when killed, refused when settings changed, repaired when a shard is gone, fenced off."""

import logging
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from upath import UPath

from bliss_ops.fence import ReplacedError
from bliss_ops.lake import Lake, atomic_file, write_bytes
from bliss_ops.manifest import Artifact, ArtifactMismatchError, describe, find_manifest
from bliss_ops.sharding import ShardRecord


class Shards:
    """A sharded stage that counts its work and can be made to die."""

    def __init__(self, directory: UPath, die_at: int | None = None) -> None:
        self.directory, self.die_at, self.made = directory, die_at, []

    def worker(self) -> "Shards":
        return self

    def __call__(self, shard: int) -> ShardRecord:
        if shard == self.die_at:
            raise KeyboardInterrupt
        write_bytes(self.directory / f"shard-{shard:05d}.parquet", b"x" * (shard + 1))
        self.made.append(shard)
        return ShardRecord(shard=shard, outputs=[describe(self.directory, f"shard-{shard:05d}.parquet")], metrics={"rows": shard})


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake.open(tmp_path / "lake")


def artifact(lake: Lake, **settings: object) -> Artifact:
    return Artifact(lake, lake.root / "thing", stage="make", identity=settings)


def test_a_second_call_does_no_work_and_a_lost_file_is_made_again(lake: Lake) -> None:
    calls = []

    def make(directory: UPath) -> tuple[list[str], dict[str, int]]:
        calls.append(1)
        write_bytes(directory / "file", b"data")
        return ["file"], {"n": 1}

    first = artifact(lake, a=1).produce(make)
    assert artifact(lake, a=1).produce(make) == first
    assert len(calls) == 1
    (lake.root / "thing" / "file").unlink()
    assert artifact(lake, a=1).produce(make).digest == first.digest
    assert len(calls) == 2


def test_changed_settings_fail_with_the_field_level_difference(lake: Lake) -> None:
    artifact(lake, a={"b": 1, "c": 2}).produce(lambda _: ([], {}))
    with pytest.raises(ArtifactMismatchError, match=r"settings\.a\.b: was 1, now 5") as error:
        artifact(lake, a={"b": 5, "c": 2}).produce(lambda _: ([], {}))
    assert "a.c" not in str(error.value)
    assert "delete" in str(error.value)


def test_settings_changed_in_the_middle_of_an_artifact_fail_too(lake: Lake) -> None:
    begun = artifact(lake, a=1)
    begun.begin()
    with pytest.raises(ArtifactMismatchError, match=r"settings\.a: was 1, now 2"):
        artifact(lake, a=2).produce(lambda _: ([], {}))


def test_a_replaceable_artifact_is_made_again_instead(lake: Lake) -> None:
    for value in (1, 2):
        made = Artifact(lake, lake.root / "report", stage="report", identity={"a": value}, replaceable=True).produce(lambda _: ([], {}))
        assert made.identity == {"a": value}


def test_a_killed_stage_resumes_at_the_first_missing_shard(lake: Lake) -> None:
    killed = Shards(lake.root / "thing", die_at=2)
    with pytest.raises(KeyboardInterrupt):
        artifact(lake).produce_shards(killed.worker, [0, 1, 2, 3])
    assert killed.made == [0, 1]
    assert find_manifest(lake.root / "thing") is None
    resumed = Shards(lake.root / "thing")
    manifest = artifact(lake).produce_shards(resumed.worker, [0, 1, 2, 3])
    assert resumed.made == [2, 3]
    assert manifest is not None
    assert manifest.metrics == {"rows": 6}


@pytest.mark.parametrize("damage", ["deleted", "cut"])
def test_a_lost_or_cut_shard_is_the_only_one_made_again(lake: Lake, damage: str) -> None:
    first = artifact(lake).produce_shards(Shards(lake.root / "thing").worker, [0, 1, 2])
    path = Path(lake.root.path) / "thing" / "shard-00001.parquet"
    path.unlink() if damage == "deleted" else path.write_bytes(b"")
    again = Shards(lake.root / "thing")
    second = artifact(lake).produce_shards(again.worker, [0, 1, 2])
    assert again.made == [1]
    assert first is not None
    assert second is not None
    assert second.digest == first.digest


def test_the_last_group_writes_the_manifest(lake: Lake) -> None:
    assert artifact(lake).produce_shards(Shards(lake.root / "thing").worker, [0, 1, 2], only=[0, 2]) is None
    manifest = artifact(lake).produce_shards(Shards(lake.root / "thing").worker, [0, 1, 2], only=[1])
    assert manifest is not None
    assert manifest.shards == [0, 1, 2]


def test_resuming_removes_what_killed_writers_left_but_not_what_others_are_writing(lake: Lake) -> None:
    artifact(lake).begin()
    directory = Path(lake.root.path) / "thing"
    left, alive = directory / ".shard-00001.parquet.abc.tmp", directory / ".shard-00002.parquet.def.tmp"
    for file in (left, alive):
        file.write_bytes(b"half")
    os.utime(left, (0, 0))
    artifact(lake).begin()
    assert not left.exists()
    assert alive.exists()


def test_a_failed_write_leaves_neither_the_file_nor_a_temporary_one(tmp_path: Path) -> None:
    def fail_midway() -> None:
        with atomic_file(UPath(tmp_path / "file")) as temporary:
            temporary.write_bytes(b"half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match=r"the disk is full.*file"):
        fail_midway()
    assert list(tmp_path.iterdir()) == []


class Meanwhile(Shards):
    """A worker that writes `content`; something happens right before its first file appears."""

    def __init__(self, directory: UPath, content: bytes, event: Callable[[], object]) -> None:
        super().__init__(directory)
        self.content, self.event = content, event

    def __call__(self, shard: int) -> ShardRecord:
        name = f"shard-{shard:05d}.parquet"
        with atomic_file(self.directory / name) as file:
            file.write_bytes(self.content)
            if not self.made:
                self.made.append(shard)
                other = threading.Thread(target=self.event)  # what is said to one thread's files is not said to another's
                other.start()
                other.join()
        return ShardRecord(shard=shard, outputs=[describe(self.directory, name)])


def test_a_worker_whose_artifact_was_begun_again_puts_nothing_in_its_place(lake: Lake) -> None:
    """Cancelled, deleted, fitted again, while an actor of the cancelled run was still at work."""
    directory = lake.root / "thing"

    def begin_again() -> None:
        shutil.rmtree(directory.path)
        artifact(lake, model="new").produce_shards(Shards(directory).worker, [0, 1])

    stale = Meanwhile(directory, b"of the old model", begin_again)
    with pytest.raises(ReplacedError, match=r"begun again with other settings or inputs.*thrown away"):
        artifact(lake, model="old").produce_shards(stale.worker, [0, 1])
    assert (directory / "shard-00000.parquet").read_bytes() == b"x"
    manifest = find_manifest(directory)
    assert manifest is not None
    assert manifest.identity == {"model": "new"}
    assert not list(Path(directory.path).rglob("*.tmp"))


def test_a_worker_whose_artifact_was_deleted_leaves_no_file(lake: Lake) -> None:
    directory = lake.root / "thing"
    stale = Meanwhile(directory, b"late", lambda: (directory / "begun.json").unlink())
    with pytest.raises(ReplacedError, match="was deleted while it was worked on"):
        artifact(lake).produce_shards(stale.worker, [0])
    assert not list(Path(directory.path).rglob("*.parquet"))


def test_a_shard_that_another_driver_finished_meanwhile_stays_as_it_is(lake: Lake, caplog: pytest.LogCaptureFixture) -> None:
    """Even where the two differ, as scores of two GPUs do in the last bits: file and record belong together."""
    directory = lake.root / "thing"
    late = Meanwhile(directory, b"late", lambda: artifact(lake).produce_shards(Shards(directory).worker, [0, 1]))
    with caplog.at_level(logging.INFO):
        manifest = artifact(lake).produce_shards(late.worker, [0, 1])
    assert caplog.text.count("was made by another worker meanwhile") == 2
    assert manifest is not None
    for output in manifest.outputs:
        assert describe(directory, output.path).sha256 == output.sha256
    assert (directory / "shard-00001.parquet").read_bytes() == b"xx"


def test_a_driver_whose_artifact_was_replaced_writes_no_manifest(lake: Lake) -> None:
    stale = artifact(lake, a=1)
    stale.begin()
    (lake.root / "thing" / "begun.json").unlink()
    artifact(lake, a=2).begin()
    with pytest.raises(ReplacedError):
        stale.commit([])
    assert find_manifest(lake.root / "thing") is None
