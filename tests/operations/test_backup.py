"""`bliss backup` and `bliss restore`: the same lake again, whatever happened meanwhile."""

import contextlib
import json
import multiprocessing
import os
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from bliss_ops.cli import main
from bliss_ops.lake import Lake, write_bytes
from bliss_ops.manifest import Artifact, find_manifest
from bliss_ops.operations import backup as backups
from bliss_ops.operations import restoring, snapshots
from bliss_ops.operations.backup import backup, verify
from bliss_ops.operations.restoring import restore
from bliss_ops.operations.snapshots import Entry, Target
from tests.lakes import make_corpus, make_run
from tests.operations.lakes import RUN, contents, digests


def copied(lake: Lake) -> dict[str, str]:
    """What a backup has of a lake."""
    return {address: sha256 for address, sha256 in contents(lake).items() if not address.startswith("scores.working.")}


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return Target.at(str(tmp_path / "backups"))


@pytest.fixture
def small(tmp_path: Path) -> Lake:
    """A lake without models, where the time matters."""
    lake = make_corpus(tmp_path / "small")
    make_run(lake, "random", num_rounds=2)
    return lake


def test_a_lake_comes_back_with_every_byte_and_a_store_that_checks(lake: Lake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backup", str(tmp_path / "b"), "--lake", str(lake.root)]) == 0
    assert main(["backup", str(tmp_path / "b"), "--verify"]) == 0
    assert main(["restore", str(tmp_path / "b"), "--lake", str(tmp_path / "new")]) == 0
    new = Lake.open(tmp_path / "new")
    assert contents(new) == copied(lake)
    assert digests(new) == digests(lake)
    root = ["--lake", str(new.root)]
    assert main(["store", "rebuild", *root]) == 0
    assert main(["store", "check", *root]) == 0
    assert main(["pretrain", RUN, "--round", "2", *root]) == 0  # nothing to do
    assert digests(new) == digests(lake)


def test_a_second_backup_copies_only_what_is_new(small: Lake, target: Target) -> None:
    first = backup(small, target)
    objects = target.objects()
    second = backup(small, target)
    assert first.num_copied == len(objects) > 0
    assert (second.num_copied, target.objects(), len(target.names())) == (0, objects, 2)
    write_bytes(small.run("demo-random-s0").path / "note.txt", b"new")
    assert backup(small, target).num_copied == 1


def test_older_snapshots_stay_what_they_were(small: Lake, target: Target, tmp_path: Path) -> None:
    before = copied(small)
    name = backup(small, target).snapshot.name
    small.root.fs.rm((small.run("demo-random-s0").path).path, recursive=True)
    make_run(small, "random", seed=1)
    backup(small, target)
    restore(target, Lake.open(tmp_path / "old"), name)
    assert contents(Lake.open(tmp_path / "old")) == before
    restore(target, Lake.open(tmp_path / "now"))
    assert contents(Lake.open(tmp_path / "now")) == copied(small)


def test_a_killed_backup_is_no_snapshot_and_the_next_one_goes_on(small: Lake, target: Target) -> None:
    process = multiprocessing.get_context("fork").Process(target=_die_after, args=(small, target, 7))
    process.start()
    process.join()
    assert (process.exitcode, target.names(), len(target.objects())) == (9, [], 7)
    with pytest.raises(ValueError, match="no finished snapshot"):
        target.read()
    total = len({entry.sha256 for entry in backup(small, target).snapshot.entries})
    assert len(target.objects()) == total
    assert verify(target)[1] == []


def _die_after(lake: Lake, target: Target, num_objects: int) -> None:
    put, done = target.put, []

    def put_some(source: Any) -> tuple[str, int]:
        done.append(put(source))
        if len(target.objects()) == num_objects:
            os._exit(9)
        return done[-1]

    target.put = put_some  # type: ignore[method-assign]
    backup(lake, target)


def test_a_damaged_object_is_found_put_aside_and_copied_again(small: Lake, target: Target, tmp_path: Path) -> None:
    entry = next(entry for entry in backup(small, target).snapshot.entries if entry.address.endswith("round-01/scores/shard-00001.parquet"))
    file = Path(target.object(entry.sha256).path)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    with pytest.raises(ValueError, match=r"shard-00001\.parquet: the object .* is damaged"):
        restore(target, Lake.open(tmp_path / "new"))
    assert not (tmp_path / "new" / entry.address).exists()
    _, problems = verify(target)
    assert len(problems) == 1
    assert entry.address in problems[0]
    assert "is missing" in verify(target)[1][0]
    assert backup(small, target).num_copied == 1
    assert verify(target)[1] == []
    restore(target, Lake.open(tmp_path / "whole"))
    assert contents(Lake.open(tmp_path / "whole")) == copied(small)


def test_a_damaged_file_of_the_lake_is_named_and_left_out(
    small: Lake, target: Target, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = small.run("demo-random-s0").round(1) / "scores" / "shard-00000.parquet"
    Path(file.path).write_bytes(b"x" * file.stat().st_size)
    assert main(["backup", str(target.root), "--lake", str(small.root)]) == 1
    assert "round-01/scores/shard-00000.parquet is not what its manifest says" in capsys.readouterr().err
    restore(target, Lake.open(tmp_path / "new"))
    assert not (tmp_path / "new" / small.relative(file)).exists()


def test_a_killed_restore_is_marked_and_goes_on(small: Lake, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = backup(small, target).snapshot.name
    new, num_written = Lake.open(tmp_path / "new"), 0
    write = restoring._write

    def write_some(*arguments: Any) -> None:
        nonlocal num_written
        if (num_written := num_written + 1) > 9:
            raise KeyboardInterrupt
        write(*arguments)

    monkeypatch.setattr(restoring, "_write", write_some)
    with pytest.raises(KeyboardInterrupt):
        restore(target, new)
    monkeypatch.undo()
    assert new.run_names() == []  # settings come last: nobody takes it for a lake
    backup(small, target)
    with pytest.raises(ValueError, match=f"is being restored from the snapshot {name}"):
        restore(target, new)
    restore(target, new, name)
    assert contents(new) == copied(small)


def test_nothing_is_written_over(small: Lake, target: Target) -> None:
    backup(small, target)
    with pytest.raises(ValueError, match="is not empty: restore into a new lake"):
        restore(target, small)


@pytest.mark.parametrize("inside", [True, False])
def test_a_backup_in_the_lake_or_around_it_is_refused(small: Lake, inside: bool) -> None:
    with pytest.raises(ValueError, match="lie in each other"):
        backup(small, Target.at(str(small.root / "backups") if inside else str(Path(small.root.path).parent)))


def test_a_snapshot_that_leads_out_of_the_lake_is_refused(
    small: Lake, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = backup(small, target).snapshot
    snapshot.entries[0] = snapshots.Entry("../outside", 1, "0" * 64)
    target.write(snapshot)
    with pytest.raises(ValueError, match="is not an address below a directory"):
        restore(target, Lake.open(tmp_path / "new"))


@pytest.mark.parametrize("address", ["https://example.org/b", "s3://key:secret@bucket/b", "gs://bucket/b", "s3://bucket/../other", ""])
def test_an_address_that_is_no_place_for_backups_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"backups are kept|credential|not an address|'\.\.'|an address has") as refusal:
        Target.at(address)
    assert "secret" not in str(refusal.value)


def test_a_cut_snapshot_is_refused(small: Lake, target: Target, tmp_path: Path) -> None:
    name = backup(small, target).snapshot.name
    path = Path(target.root.path) / "snapshots" / f"{name}.jsonl"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ValueError, match="cannot be read"):
        restore(target, Lake.open(tmp_path / "new"))


def test_links_are_not_followed(small: Lake, target: Target, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("not of the lake")
    (Path(small.root.path) / "runs" / "link").symlink_to(tmp_path / "secret")
    assert not any("link" in entry.address for entry in backup(small, target).snapshot.entries)


def test_work_goes_on_while_it_is_copied(small: Lake, target: Target, tmp_path: Path) -> None:
    """Artifacts are made, deleted and made anew the whole time; whatever a snapshot has is whole, and so is what it was made from."""
    run, stop = small.run("demo-random-s0"), threading.Event()

    def make(number: int, content: bytes) -> None:
        before = find_manifest(run.path / f"made-{number - 1:03d}")
        artifact = Artifact(
            small, run.path / f"made-{number:03d}", stage="make", identity={"content": content.decode()}, inputs=[before] if before else []
        )

        def write(directory: UPath) -> tuple[list[str], dict[str, Any]]:
            for name in "abc":
                write_bytes(directory / name, content * 5000)
            return list("abc"), {}

        artifact.produce(write)

    def work() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            make(number, b"first")
            if number % 3 == 0:
                directory = run.path / f"made-{number:03d}"
                directory.fs.rm(directory.path, recursive=True)
                make(number, b"second")

    worker = threading.Thread(target=work)
    worker.start()
    try:
        names = [backup(small, target).snapshot.name for _ in range(6)]
    finally:
        stop.set()
        worker.join()
    for name in names:
        snapshot = target.read(name)
        assert snapshot.problems == []
        new = Lake.open(tmp_path / name)
        restore(target, new, name)
        manifests = {entry.address.removesuffix("/manifest.json") for entry in snapshot.entries if entry.address.endswith("/manifest.json")}
        for address in manifests:
            manifest = find_manifest(new.root / address)
            assert manifest is not None
            assert all((new.root / address / output.path).exists() for output in manifest.outputs)
            assert all(before in manifests for before in manifest.inputs if before.startswith("runs/"))


def test_an_artifact_that_changes_while_it_is_copied_is_copied_again(
    small: Lake, target: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = small.run("demo-random-s0").path / "made"
    versions = [b"first", b"second"]

    def make() -> None:
        content = versions.pop(0)
        artifact = Artifact(small, directory, stage="make", identity={"content": content.decode()})
        artifact.produce(lambda place: (write_bytes(place / "a", content), (["a"], {}))[1])

    make()
    outputs = backups._Copying._outputs

    def replaced_meanwhile(self: Any, root: str, *arguments: Any) -> Any:
        if root.endswith("/made") and versions:
            directory.fs.rm(directory.path, recursive=True)
            make()
        return outputs(self, root, *arguments)

    monkeypatch.setattr(backups._Copying, "_outputs", replaced_meanwhile)
    snapshot = backup(small, target).snapshot
    assert snapshot.problems == []
    restore(target, Lake.open(tmp_path / "new"))
    assert (tmp_path / "new" / small.relative(directory) / "a").read_bytes() == b"second"


def test_shards_of_an_artifact_in_work_come_along_with_their_records(small: Lake, target: Target, tmp_path: Path) -> None:
    scores = Path((small.run("demo-random-s0").round(2) / "scores").path)
    (scores / "manifest.json").unlink()
    records = scores / "_shards"
    records.mkdir(exist_ok=True)
    for shard in (0, 1):
        data = f"scores of shard {shard}".encode()
        (scores / f"shard-0000{shard}.parquet").write_bytes(data)
        output = {"path": f"shard-0000{shard}.parquet", "bytes": len(data), "sha256": snapshots.hashlib.sha256(data).hexdigest()}
        (records / f"shard-0000{shard}.json").write_text(json.dumps({"shard": shard, "outputs": [output]}))
    (scores / "shard-00001.parquet").write_bytes(b"half a rewrite")
    (scores / "shard-00002.parquet").write_bytes(b"no record yet")
    backup(small, target)
    restore(target, Lake.open(tmp_path / "new"))
    found = tmp_path / "new" / small.relative(UPath(scores))
    assert sorted(path.name for path in found.rglob("*shard-*")) == ["shard-00000.json", "shard-00000.parquet"]


def test_to_an_object_store_and_back(small: Lake, tmp_path: Path, s3: Any) -> None:
    s3.mkdir("backups")
    target = Target.at("s3://backups/here")
    first = backup(small, target)
    assert backup(small, target).num_copied == 0
    assert verify(target)[1] == []
    restore(target, Lake.open(tmp_path / "new"))
    assert contents(Lake.open(tmp_path / "new")) == copied(small)
    remote = Lake.open("s3://backups/lake")
    restore(target, remote)
    again = backup(remote, Target.at(str(tmp_path / "local")))
    wanted = {(entry.address, entry.sha256) for entry in first.snapshot.entries}
    assert {(entry.address, entry.sha256) for entry in again.snapshot.entries} == wanted


def test_an_object_store_gets_several_files_at_once_and_manifests_after_them(
    small: Lake, target: Target, s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.mkdir("restored")
    backup(small, target)
    write, at_work, beside = restoring._write, set[str](), set[tuple[bool, bool]]()

    def watched(target: Target, entry: Entry, path: UPath) -> None:
        at_work.add(entry.address)
        time.sleep(0.01)  # a round trip
        others = at_work.copy() - {entry.address}
        beside.update((_is_manifest(entry.address), _is_manifest(other)) for other in others)
        write(target, entry, path)
        at_work.remove(entry.address)

    monkeypatch.setattr(restoring, "_write", watched)
    restore(target, Lake.open("s3://restored/lake"))
    assert beside == {(False, False), (True, True)}


def _is_manifest(address: str) -> bool:
    return address.endswith("/manifest.json")


def test_artifacts_of_an_object_store_are_copied_side_by_side(
    small: Lake, target: Target, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.mkdir("side-by-side")
    backup(small, target)
    remote = Lake.open("s3://side-by-side/lake")
    restore(target, remote)
    contents, two = backups._Copying._contents, threading.Barrier(2)

    def together(self: Any, *arguments: Any) -> Any:
        with contextlib.suppress(threading.BrokenBarrierError):  # the last of an odd number
            two.wait(timeout=10)
            met.append(1)
        return contents(self, *arguments)

    met: list[int] = []
    monkeypatch.setattr(backups._Copying, "_contents", together)
    assert backup(remote, Target.at(str(tmp_path / "local"))).snapshot.problems == []
    assert len(met) >= 2


def test_the_database_of_airflow_comes_along(small: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", raising=False)
    home = tmp_path / "stack" / "airflow"
    home.mkdir(parents=True)
    with sqlite3.connect(home / "airflow.db") as con:  # left open, with a write that has not ended: Airflow is up
        con.execute("create table dag_run (run_id text)")
        con.execute("insert into dag_run values ('done')")
        con.commit()
        con.execute("insert into dag_run values ('in work')")
        command = ["backup", str(tmp_path / "b"), "--lake", str(small.root), "--airflow", "--state", str(tmp_path / "stack")]
        assert main(command) == 0
    con.close()
    assert main(["restore", str(tmp_path / "b"), "--lake", str(tmp_path / "new"), "--airflow", str(tmp_path / "back")]) == 0
    with sqlite3.connect(tmp_path / "back" / "airflow.db") as con:
        assert con.execute("select run_id from dag_run").fetchall() == [("done",)]
    con.close()
    assert not list((tmp_path / "new").glob("@airflow*"))


def test_a_database_nobody_knows_is_said(
    small: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "mysql://airflow:secret@db/airflow")
    assert main(["backup", str(tmp_path / "b"), "--lake", str(small.root), "--airflow"]) == 1
    message = capsys.readouterr().err
    assert "'mysql'" in message
    assert "secret" not in message
