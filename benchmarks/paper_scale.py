"""365 million documents on paper: the real planner, manifests, groups, readers and loader at 1,024 shards and 156B tokens, without text.

    .venv/bin/python benchmarks/paper_scale.py                        # about four minutes
    .venv/bin/python benchmarks/paper_scale.py --only requests        # of: plan, manifests, requests, reading, loading

What is small is real: manifests and records of 1,024 shards, the skipping, resuming and committing of groups of them, Parquet footers.
It is asked of an S3 server in memory that answers after 20 ms and counts (stand_ins/object_store.py), through the same s3fs as in
production. What is large is measured on a part (row groups of a few files, rows of the store); docs/scale.md multiplies it, and says what
limits first.
Where there was another way, both are measured, in turn. Ends with one line of JSON.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

import numpy as np
import pyarrow as pa
from stand_ins.object_store import Counted, num_requests, serve
from upath import UPath

from bliss_ops import planning, schemas
from bliss_ops.config import RunConfig
from bliss_ops.configure import run_config
from bliss_ops.corpus import reading
from bliss_ops.corpus.packing import parquet_file
from bliss_ops.lake import Lake, shard_file, write_bytes
from bliss_ops.manifest import Artifact, Manifest, describe, find_manifest
from bliss_ops.pipeline import CORPUS_STAGES, ROUND_STAGES
from bliss_ops.sharding import ROWS_PER_SHARD, Output, ShardRecord, group_shards
from bliss_ops.speeds import Speeds, given_speed

NUM_SHARDS, NUM_DOCUMENTS, NUM_TOKENS, T = 1024, 365_000_000, 156_000_000_000, 1024
NUM_SEQUENCES = NUM_TOKENS // T
GROUPS = 64
WINDOW_SHARDS = 160
VOCAB = 50_277
GROUPS_AT_ONCE = 16
RECIPES = ("pythia-410m", "pythia-1b", "pythia-2.8b")
FILES_PER_SHARD = {"documents": ("", "rejects/"), "sequences": ("", "spans/"), "scores": ("",)}
Figures = dict[str, Any]
ResultT = TypeVar("ResultT")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS))
    parser.add_argument("--shards", type=int, default=NUM_SHARDS)
    parser.add_argument("--groups", type=int, default=GROUPS)
    parser.add_argument("--latency-seconds", type=float, default=0.02, help="of every answer of the object store")
    parser.add_argument("--rows", type=int, default=10_000_000, help="that are loaded into the score store and selected from")
    arguments = parser.parse_args()
    result: Figures = {}
    for name in arguments.only:
        print(f"---- {name}", flush=True)
        result[name] = PARTS[name](arguments)
    print(json.dumps(result))
    return 0


# ---- the plan: tasks, disk, FLOPs ------------------------------------------------------------------------------------


def plan(arguments: argparse.Namespace) -> Figures:
    """What `bliss plan` says of the paper's settings, and how many task instances the scheduler is given."""
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as scratch:
        lake = Lake.open(scratch)
        from bliss_ops.models import language  # noqa: F401 - seconds of importing torch, which are not the planner's

        for recipe in RECIPES:
            config = run_config(lake, recipe, "bliss", 0)
            speeds = Speeds(flops_per_second=given_speed("h100", 0.4), described="h100 at 40 %")
            planned, seconds = timed(partial(planning.plan_of, lake, config, speeds))
            by_stage = {stage.stage: stage for stage in planned.stages}
            figures[recipe] = {
                "seconds": seconds,
                "rounds": config.num_rounds,
                "terabytes": (planned.total.num_bytes or 0) / 1e12,
                "exaflops": planned.total.flops / 1e18,
                "h100_hours": (planned.total.device_seconds or 0) / 3600,
                "selection_share": planned.selection_share,
                "gigabytes": {name: round(stage.num_bytes / 1e9, 2) for name, stage in by_stage.items() if stage.num_bytes},
            }
            show(recipe, figures[recipe])
        figures["task_instances"] = task_instances(config, arguments.groups)
    show("task instances", figures["task_instances"])
    return figures


def task_instances(config: RunConfig, most_groups: int) -> Figures:
    """Of one DAG run: as the recipe groups its shards, and with as many groups as a setting allows."""
    from bliss_ops.airflow.tasks import MAPPED

    def count(stages: Sequence[Any], groups: int, others: int) -> int:
        return others + sum(groups if stage.name in MAPPED else 1 for stage in stages)

    groups = config.scoring.num_groups
    return {
        f"ingest_{config.ingest.num_groups}_groups": count(CORPUS_STAGES, config.ingest.num_groups, 1),
        f"ingest_{most_groups}_groups": count(CORPUS_STAGES, most_groups, 1),
        f"round_{groups}_groups": count(ROUND_STAGES, groups, 2),
        f"round_{most_groups}_groups": count(ROUND_STAGES, most_groups, 2),
    }


# ---- manifests -------------------------------------------------------------------------------------------------------


def manifests(arguments: argparse.Namespace) -> Figures:
    """Real manifests and shard records of every shard: bytes, seconds to write, to read and to hash."""
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as scratch:
        lake = Lake.open(scratch)
        for name, folders in FILES_PER_SHARD.items():
            artifact = Artifact(lake, lake.root / name, stage=name, identity={"sequence_length": T})
            artifact.begin()
            records = [record_of(shard, folders) for shard in range(arguments.shards)]
            outputs = [output for record in records for output in record.outputs]
            _, write_seconds = timed(lambda: artifact.commit(outputs, {"num_sequences": NUM_SEQUENCES}, shards=range(arguments.shards)))  # noqa: B023
            path = artifact.directory / "manifest.json"
            manifest, read_seconds = timed(lambda: find_manifest(artifact.directory))  # noqa: B023
            assert manifest is not None
            _, digest_seconds = timed(lambda: manifest.digest)  # noqa: B023
            figures[name] = {
                "outputs": len(outputs),
                "bytes": path.stat().st_size,
                "record_bytes": sum(len(json.dumps(record.model_dump(), indent=2)) for record in records),
                "write_seconds": write_seconds,
                "read_seconds": read_seconds,
                "digest_seconds": digest_seconds,
            }
            show(name, figures[name])
    return figures


def record_of(shard: int, folders: Sequence[str]) -> ShardRecord:
    """What a shard's worker writes down, with numbers of the length they have in truth."""
    name = shard_file(UPath("/"), shard).name
    outputs = [Output(path=f"{folder}{name}", bytes=246_000_000 + shard, sha256=f"{shard:064x}", rows=148_773) for folder in folders]
    return ShardRecord(shard=shard, outputs=outputs, metrics={"num_sequences": 148_773, "num_tokens": 152_343_552})


# ---- what is asked of an object store --------------------------------------------------------------------------------


def requests(arguments: argparse.Namespace) -> Figures:
    """`produce_shards` of 64 groups: made, committed by the last, looked at again; beside each asking for all, one after the other."""
    figures: Figures = {}
    with serve(arguments.latency_seconds) as store:
        lake = Lake.open("s3://bucket/lake")
        shards, directory = list(range(arguments.shards)), lake.root / "sequences"

        def produce(only: list[int] | None, make_worker: Callable[..., Any] = writer) -> Manifest | None:
            artifact = Artifact(lake, directory, stage="pack", identity={})
            return artifact.produce_shards(partial(make_worker, directory), shards, only=only)

        groups = [group_shards(shards, group, arguments.groups) for group in range(arguments.groups)]
        with measured(store, figures, "made by all groups but one"), ThreadPoolExecutor(GROUPS_AT_ONCE) as threads:
            assert not any(threads.map(produce, groups[:-1]))
        with measured(store, figures, "the last group, which commits"):
            assert produce(groups[-1]) is not None
        for _ in range(2):
            with measured(store, figures, "a finished artifact, one group"):
                assert produce(groups[0], never) is not None
            with measured(store, figures, "... as it was: every file, one after the other"):
                as_it_was(directory)
        with measured(store, figures, "a finished artifact, one task"):
            assert produce(None, never) is not None
        (directory / "manifest.json").unlink()
        with measured(store, figures, "all shards done but no manifest, one group"):
            assert produce(groups[0], never) is not None
    return figures


def writer(directory: UPath) -> Callable[[int], ShardRecord]:
    """Two small files a shard, written as the packing writes its large ones."""

    def work(shard: int) -> ShardRecord:
        name = shard_file(directory, shard).name
        write_bytes(directory / name, b"tokens")
        write_bytes(directory / "spans" / name, b"spans")
        return ShardRecord(shard=shard, outputs=[describe(directory, name, 1), describe(directory, f"spans/{name}", 1)])

    return work


def never(_: UPath) -> Callable[[int], ShardRecord]:
    raise AssertionError("there is nothing to make")


def as_it_was(directory: UPath) -> None:
    """What every group did before: existence and size of each file of all groups."""
    manifest = find_manifest(directory)
    assert manifest is not None
    for output in manifest.outputs:
        path = directory / output.path
        assert path.exists()
        assert path.stat().st_size == output.bytes


# ---- reading sequences back ------------------------------------------------------------------------------------------


def read_back(arguments: argparse.Namespace) -> Figures:
    """Opening a window of 160 shards, and a block of the training stream, with and without s3fs's reading ahead."""
    figures: Figures = {}
    rows = NUM_SEQUENCES // NUM_SHARDS
    with serve(arguments.latency_seconds) as store:
        lake = Lake.open("s3://bucket/lake")
        long, wide = lake.root / "footers", lake.root / "row-groups"
        footers = parquet(rows, is_random=False)  # the footer of a whole shard over tokens that take no room
        for shard in range(WINDOW_SHARDS):
            write_bytes(shard_file(long, shard), footers)
        for shard in range(8):
            write_bytes(shard_file(wide, shard), parquet(20_000, is_random=True, seed=shard))
        with measured(store, figures, f"open {WINDOW_SHARDS} shards"):
            reading.SequenceReader([shard_file(long, shard) for shard in range(WINDOW_SHARDS)])
        for _ in range(2):
            for name, open_file in (("a block of 64 row groups", reading._open_for_parts), ("... read ahead by s3fs", open_plainly)):  # noqa: SLF001
                with mock.patch.object(reading, "_open_for_parts", open_file):
                    reader = reading.SequenceReader([shard_file(wide, shard) for shard in range(8)])
                    with measured(store, figures, name):
                        reader.batch(0, 16, 0)
    figures["footer_bytes"] = len(footers)
    figures["sequences_per_shard"] = rows
    return figures


def open_plainly(file: UPath) -> Any:
    return file.open("rb")


def parquet(num_rows: int, *, is_random: bool, seed: int = 0) -> bytes:
    """A file of sequences as the packing writes it."""
    from bliss_ops.corpus import packing

    with tempfile.NamedTemporaryFile(suffix=".parquet") as file:
        schema = schemas.sequences(T, VOCAB)
        with parquet_file(UPath(file.name), schema, tokens=packing._TOKENS) as written:  # noqa: SLF001 - its own way to write them
            rng = np.random.default_rng(seed)
            for first in range(0, num_rows, schemas.SEQUENCES_PER_ROW_GROUP):
                count = min(schemas.SEQUENCES_PER_ROW_GROUP, num_rows - first)
                tokens = rng.zipf(1.3, count * T) % VOCAB if is_random else np.zeros(count * T)
                values = pa.array(tokens.astype(np.uint16))
                ids = pa.array(seed * ROWS_PER_SHARD + np.arange(first, first + count))
                written.write_table(pa.Table.from_arrays([ids, pa.FixedSizeListArray.from_arrays(values, T)], schema=schema))
        return Path(file.name).read_bytes()


# ---- the score store -------------------------------------------------------------------------------------------------


def loading(arguments: argparse.Namespace) -> Figures:
    """Rows in 1,024 shards and the same rows in shards of two million: what a shard costs; and the selection from them."""
    figures: Figures = {}
    for shards in (arguments.shards, -(-arguments.rows // 2_000_000)):
        with tempfile.TemporaryDirectory(prefix="bliss-paper-scale-") as scratch:
            common = ["--lake", scratch, "--rows", str(arguments.rows), "--rows-per-shard", str(-(-arguments.rows // shards))]
            for step in ("generate", "load", "topk"):
                command = [sys.executable, str(Path(__file__).with_name("store.py")), "--step", step, *common]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                if step != "generate":
                    figures[f"{step}_{shards}_shards"] = json.loads(done.stdout.splitlines()[-1])
                    show(f"{step}, {shards} shards", figures[f"{step}_{shards}_shards"])
    return figures


# ---- how it is measured ----------------------------------------------------------------------------------------------


@contextmanager
def measured(store: Counted, figures: Figures, name: str) -> Iterator[None]:
    """Seconds, processor seconds, requests and bytes of what is done inside; of several turns the quickest."""
    store.counts()
    begun, cpu = time.perf_counter(), time.process_time()
    yield
    found: Figures = {"seconds": time.perf_counter() - begun, "cpu_seconds": time.process_time() - cpu}
    counts = store.counts()
    found |= {"requests": num_requests(counts)} | counts
    show(name, found)
    if name not in figures or found["seconds"] < figures[name]["seconds"]:
        figures[name] = found


def timed(function: Callable[[], ResultT]) -> tuple[ResultT, float]:
    begun = time.perf_counter()
    return function(), time.perf_counter() - begun


def show(name: str, figures: Figures) -> None:
    shown = (f"{key} {value:,.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in figures.items())
    print(f"{name:<50}" + "  ".join(shown), flush=True)


PARTS: dict[str, Callable[[argparse.Namespace], Figures]] = {
    "plan": plan, "manifests": manifests, "requests": requests, "reading": read_back, "loading": loading,
}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
