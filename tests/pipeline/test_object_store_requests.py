"""What an object store is asked: groups of shards look after their own files, and nothing is downloaded that is not used."""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upath import UPath

from benchmarks.stand_ins.object_store import Counted, Counts, serve
from bliss_ops import landed, landing
from bliss_ops.corpus.reading import SequenceReader
from bliss_ops.lake import Lake, at_once, shard_file, write_bytes
from bliss_ops.manifest import Artifact, Manifest, describe, read_manifest
from bliss_ops.sharding import ShardRecord, group_shards
from bliss_ops.store.score_runs import ScoreRuns
from tests import lakes

SHARDS, GROUPS = list(range(80)), 8


@pytest.fixture(scope="module")
def store() -> Iterator[Counted]:
    with serve(latency_seconds=0) as store:
        yield store


@pytest.fixture
def directory(store: Counted, request: pytest.FixtureRequest) -> UPath:
    return Lake.open(f"s3://bucket/{request.node.name}").root / "thing"


def make_worker(directory: UPath) -> Callable[[int], ShardRecord]:
    def work(shard: int) -> ShardRecord:
        path = shard_file(directory, shard)
        write_bytes(path, b"content of %d" % shard)
        return ShardRecord(shard=shard, outputs=[describe(directory, path.name)])

    return work


def produce(directory: UPath, group: int | None = None) -> Manifest | None:
    artifact = Artifact(Lake(directory.parent), directory, stage="make", identity={})
    only = None if group is None else group_shards(SHARDS, group, GROUPS)
    return artifact.produce_shards(partial(make_worker, directory), SHARDS, only=only)


def asked(store: Counted, directory: UPath, group: int | None = None) -> tuple[Manifest | None, Counts]:
    store.counts()
    manifest = produce(directory, group)
    return manifest, store.counts()


def test_a_group_of_a_finished_artifact_asks_for_its_own_files_alone(store: Counted, directory: UPath) -> None:
    assert produce(directory) is not None
    manifest, of_group = asked(store, directory, group=0)
    assert manifest is not None
    assert (of_group["get"], of_group["head"], of_group.get("put", 0)) == (1, len(SHARDS) // GROUPS, 0)
    manifest, of_all = asked(store, directory)
    assert manifest is not None
    assert (of_all["get"], of_all["head"]) == (1, len(SHARDS))


def test_a_group_that_is_not_the_last_does_not_read_every_record(store: Counted, directory: UPath) -> None:
    for group in range(GROUPS - 2):
        assert produce(directory, group) is None
    _, of_group = asked(store, directory, group=GROUPS - 2)
    for_its_shards = 6 * len(SHARDS) // GROUPS  # three looks each at begun.json and at its record
    assert of_group["get"] < for_its_shards + len(SHARDS) - 20
    assert produce(directory, GROUPS - 1) is not None


def test_what_another_group_has_lost_is_that_groups_to_make_again(store: Counted, directory: UPath) -> None:
    assert produce(directory) is not None
    shard_file(directory, 1).unlink()
    assert produce(directory, group=0) is not None
    assert not shard_file(directory, 1).exists()
    assert produce(directory, group=1) is not None
    assert shard_file(directory, 1).read_bytes() == b"content of 1"


def test_a_file_of_a_stage_in_one_piece_takes_one_look_at_what_is_begun(store: Counted, directory: UPath) -> None:
    def make(num_files: int, here: UPath) -> tuple[list[str], dict[str, int]]:
        files = [f"file-{number}" for number in range(num_files)]
        for file in files:
            write_bytes(here / file, b"content")
        return files, {}

    def asked_for(num_files: int) -> Counts:
        where = directory / f"{num_files}"
        store.counts()
        Artifact(Lake(directory), where, stage="make", identity={}).produce(partial(make, num_files))
        return store.counts()

    few, many = asked_for(1), asked_for(11)
    assert {name: many[name] - few[name] for name in ("get", "put")} == {"get": 10, "put": 10}
    assert many.get("head", 0) == few.get("head", 0)


def test_what_was_uploaded_is_not_downloaded_to_be_hashed(store: Counted, directory: UPath) -> None:
    content = bytes(range(256)) * 10_000
    store.counts()
    write_bytes(directory / "large.bin", content)
    described = describe(directory, "large.bin")
    assert store.counts().get("bytes_got", 0) == 0
    assert described == describe(directory, "large.bin"), "read back, it is the same"
    assert store.counts()["bytes_got"] >= len(content)


def test_of_a_shard_only_the_wanted_row_groups_are_read(store: Counted, directory: UPath) -> None:
    """The stream's first block is of 64 of 400 row groups."""
    num_files, rows, length = 4, 25_600, 128
    for shard in range(num_files):
        ids = shard * 10_000_000 + np.arange(rows)
        tokens = np.random.default_rng(shard).integers(0, 1 << 16, rows * length, np.uint16)
        table = pa.table({"sequence_id": ids, "input_ids": pa.FixedSizeListArray.from_arrays(pa.array(tokens), length)})
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, row_group_size=256, use_dictionary=False, compression=None)
        content = sink.getvalue().to_pybytes()
        write_bytes(shard_file(directory, shard), content)
    reader = SequenceReader([shard_file(directory, shard) for shard in range(num_files)])
    store.counts()
    reader.batch(0, 16, seed=0)
    wanted, footers = len(content) * num_files * 64 / 400, num_files * 2**18
    assert store.counts()["bytes_got"] < 1.1 * wanted + footers


def test_a_list_of_what_landed_is_read_once_in_a_look_and_never_again_by_the_watcher(
    store: Counted, directory: UPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    lake, prefix = Lake.open(str(directory.parent)), str(directory)
    for number in range(1, 6):
        write_bytes(directory / "news" / f"{number}.jsonl", b'{"text": "a"}\n')
        assert len(landing.land(lake, prefix, recipe="smoke", settle_seconds=0).parts) == number
    lists = {f"part-{number:02d}.list" for number in range(1, 6)}
    read, read_bytes = Counter[str](), landed.read_bytes
    monkeypatch.setattr(landed, "read_bytes", lambda path: read.update([path.name]) or read_bytes(path))
    landing.land(lake, prefix, recipe="smoke", settle_seconds=0)
    assert {name: count for name, count in read.items() if name in lists} == dict.fromkeys(lists, 1)

    memory, folders = landed.Memory(), landing.look(prefix).folders
    for expected in ({"list": 1, "get": 6, "missing": 1}, {"list": 1, "get": 1, "missing": 1}):  # the sixth is missing
        store.counts()
        assert landing.unlanded(landed.Lists(lake, memory), folders) == {}
        assert {kind: count for kind, count in store.counts().items() if kind not in ("bytes_got", "at_once")} == expected


def test_what_the_score_store_should_hold_is_asked_for_many_rounds_at_once(tmp_path: Path) -> None:
    """Each manifest once; the config of the run, its corpus, and the listings beside."""
    num_rounds = 24
    local = lakes.make_corpus(tmp_path)
    run = lakes.make_run(local, num_rounds=num_rounds, finished=False)
    for number in range(1, num_rounds + 1):
        here = run.round(number)
        make = partial(lakes.produce, local, make=lambda _: ([], {}))
        scored, selected = (read_manifest(here / name, made_by="make_run") for name in ("scores", "selection"))
        make(directory=here / "fidelity", stage="fidelity", inputs=[scored])
        subset = make(directory=here / "subset", stage="materialize", inputs=[selected])
        trained = make(directory=here / "pretrain", stage="pretrain", inputs=[subset])
        make(directory=here / "evaluation", stage="evaluate", inputs=[trained])
    with serve(latency_seconds=0.1) as slow:
        lake = Lake.open("s3://bucket/lake")
        files = [file for name in ("manifest.json", "config.json") for file in tmp_path.rglob(name)]
        list(at_once(lambda file: write_bytes(lake.root / file.relative_to(tmp_path).as_posix(), file.read_bytes()), files, lake.root))
        slow.counts()
        score_runs = ScoreRuns(lake).of_lake()
        counts = slow.counts()
        assert [found.id for found in score_runs] == [found.id for found in ScoreRuns(local).of_lake()]
        assert (counts["get"], counts["head"], counts["list"]) == (7 * num_rounds + 1 + 2, 1, 2)
        assert counts["at_once"] > 16
        known = {found.id for found in score_runs[1:]}
        assert [found.id for found in ScoreRuns(lake).of_lake(but=known)] == [score_runs[0].id]
        assert slow.counts()["get"] == 7 + 1 + 2
