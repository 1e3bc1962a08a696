"""The score store at scale: load, publish, top-k by threshold, readers during a load, the named queries; seconds and megabytes.

    .venv/bin/python benchmarks/store.py                                     # 5 million rows, about a minute
    .venv/bin/python benchmarks/store.py --rows 10_000_000 50_000_000 200_000_000
    .venv/bin/python benchmarks/store.py --rows 50_000_000 --documents 2     # two documents a sequence, three spans, strings and all

Rows are generated: normal scores in shards of at most two million sequences, in Parquet with manifests, in a scratch lake that is
removed at the end. Every step is a process of its own, so its peak memory (resident set, with Arrow's and Python's) is its own. What is
compared is measured A B A B. `topk` is the selection of the pipeline, from Parquet to Parquet. Ends with one line of JSON, of the last
size.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from bliss_ops import queries, schemas, selection, store
from bliss_ops.config import IngestConfig, RunConfig
from bliss_ops.lake import Lake, Run, shard_file, write_json, write_parquet
from bliss_ops.manifest import Artifact, Manifest, describe, read_manifest
from bliss_ops.sharding import ROWS_PER_SHARD, Output
from bliss_ops.sql import open_snapshot
from bliss_ops.store import summaries, working

CORPUS, T = "generated", 1024
FRACTION = 0.2
NUM_QUERIES = 1000
NUM_DOMAINS = 200_000
BY_ORDER = (
    "copy (select sequence_id, score from read_parquet($files) order by score desc, sequence_id limit {k}) to '{file}' (format parquet)"
)
Figures = dict[str, Any]


def main() -> int:
    """The sizes one after the other, or one step of one size in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[5_000_000], help="sequences; several to see how time grows")
    parser.add_argument("--rows-per-shard", type=int, default=2_000_000)
    parser.add_argument("--documents", type=int, default=0, help="documents per sequence, with spans; 0 for scores alone")
    parser.add_argument("--lake", help=argparse.SUPPRESS)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.step:
        figures = STEPS[arguments.step](Lake.open(arguments.lake), arguments)
        used = resource.getrusage(resource.RUSAGE_SELF)
        print(json.dumps(figures | {"cpu_seconds": used.ru_utime + used.ru_stime, "peak_mb": used.ru_maxrss >> 10}))
        return 0
    result: Figures = {}
    for rows in arguments.rows:
        with tempfile.TemporaryDirectory(prefix="bliss-store-benchmark-") as scratch:
            result = measure(rows, arguments, scratch)
    print(json.dumps(result))
    return 0


def measure(rows: int, arguments: argparse.Namespace, scratch: str) -> Figures:
    """Every step on one size."""

    def step(name: str) -> Figures:
        command = [sys.executable, __file__, "--step", name, "--lake", scratch, "--rows", str(rows)]
        command += ["--rows-per-shard", str(arguments.rows_per_shard), "--documents", str(arguments.documents)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        figures: Figures = json.loads(done.stdout.splitlines()[-1])
        print(f"{rows:>11,} rows  {name:<9}" + "  ".join(f"{key} {_shown(value)}" for key, value in figures.items()), flush=True)
        return figures

    step("generate")
    loaded = step("load")
    rounds = [{name: step(name) for name in ("publish", "copy", "topk", "ordered")} for _ in range(2)]
    best = {name: min((each[name] for each in rounds), key=lambda figures: figures["seconds"]) for name in rounds[0]}
    asked, read = step("queries"), step("readers")
    return {
        "rows": rows,
        "load_seconds": loaded["load_seconds"],
        "summary_seconds": loaded["summary_seconds"],
        "load_cpu_seconds": loaded["cpu_seconds"],
        "load_peak_mb": loaded["peak_mb"],
        "publish_seconds": best["publish"]["seconds"],
        "publish_by_copy_from_database_seconds": best["copy"]["seconds"],
        "working_mb": loaded["working_mb"],
        "snapshot_mb": loaded["snapshot_mb"],
        "topk_seconds": best["topk"]["seconds"],
        "topk_peak_mb": max(each["topk"]["peak_mb"] for each in rounds),
        "order_by_limit_seconds": best["ordered"]["seconds"],
        "order_by_limit_peak_mb": max(each["ordered"]["peak_mb"] for each in rounds),
        "reader_queries": read["queries"],
        "reader_errors": read["errors"],
        "reader_snapshots": read["snapshots"],
        "slowest_query_seconds": asked["slowest_seconds"],
        "queries_peak_mb": asked["peak_mb"],
    }


# ---- steps -----------------------------------------------------------------------------------------------------------


def generate(lake: Lake, arguments: argparse.Namespace) -> Figures:
    """A packed corpus (without tokens) and a run that scored all of it."""
    begun = time.perf_counter()
    sizes, corpus = _sizes(arguments), lake.corpus(CORPUS)
    write_json(corpus.path / "config.json", IngestConfig(corpus=CORPUS, source="generated", sequence_length=T).model_dump())
    documents = spans = None
    if arguments.documents:
        documents = _produce(lake, corpus.documents, "extract", sizes, _documents_of(arguments.documents))
    spans = _spans_of(arguments.documents) if arguments.documents else None
    packed = _produce(lake, corpus.sequences, "pack", sizes, spans, [documents] if documents else [], folder="spans/")
    _generate_run(lake, 0, sizes, packed)
    return {"shards": len(sizes), "seconds": time.perf_counter() - begun}


def load(lake: Lake, _: argparse.Namespace) -> Figures:
    """The first run into an empty store."""
    with _timed(summaries, "refresh") as summary, _timed(store, "publish") as publication:
        begun = time.perf_counter()
        store.sync(_run(lake, 0))
        seconds = time.perf_counter() - begun
    return {
        "load_seconds": seconds - summary[0] - publication[0],
        "summary_seconds": summary[0],
        "publish_seconds": publication[0],
        "working_mb": working.working_file(lake).stat().st_size >> 20,
        "snapshot_mb": lake.score_store.stat().st_size >> 20,
    }


def publish(lake: Lake, _: argparse.Namespace) -> Figures:
    """The working file's bytes, synced, in place."""
    lake.score_store.unlink()
    with working.open_working(lake) as (con, _):
        begun = time.perf_counter()
        assert working.publish(con, lake)
        return {"seconds": time.perf_counter() - begun}


def copy(lake: Lake, _: argparse.Namespace) -> Figures:
    """The same by DuckDB's `copy from database`, synced."""
    file = Path(lake.root.path) / "copied.duckdb"
    with working.open_working(lake) as (con, _):
        begun = time.perf_counter()
        con.execute(f"attach '{file}' as snapshot (storage_version 'v1.5.0')")
        con.execute("copy from database working to snapshot")
        con.execute("detach snapshot")
        with file.open("rb+") as written:
            os.fsync(written.fileno())
        seconds = time.perf_counter() - begun
    file.unlink()
    return {"seconds": seconds}


def topk(lake: Lake, _: argparse.Namespace) -> Figures:
    """The best fifth by the exact threshold: `bliss select`."""
    run, begun = _run(lake, 0), time.perf_counter()
    scores = read_manifest(run.round(1) / "scores", made_by="generate")
    _, metrics = selection.select(run.config, run.round(1) / "scores", scores.shards, run.round(1) / "selected")
    return {"seconds": time.perf_counter() - begun, "selected": metrics["num_selected"], "threshold": metrics["threshold"]}


def ordered(lake: Lake, _: argparse.Namespace) -> Figures:
    """The same rows by `order by ... limit` in DuckDB, which may use 2 GB."""
    run = _run(lake, 0)
    scores = read_manifest(run.round(1) / "scores", made_by="generate")
    files = [str(shard_file(run.round(1) / "scores", shard)) for shard in scores.shards]
    target, k = Path(lake.root.path) / "ordered.parquet", selection.num_to_keep(run.config, scores.metrics["num_sequences"])
    con = duckdb.connect(config={"memory_limit": "2GB", "temp_directory": str(lake.root / "spill")})
    begun = time.perf_counter()
    con.execute(BY_ORDER.format(k=k, file=target), {"files": files})
    return {"seconds": time.perf_counter() - begun, "selected": k}


def ask(lake: Lake, _: argparse.Namespace) -> Figures:
    """Every named query whose parameters have defaults, on the snapshot."""
    seconds: dict[str, float] = {}
    with open_snapshot(lake) as con:
        for name in queries.names():
            query, begun = queries.load(name), time.perf_counter()
            try:
                con.execute(query.sql, query.bind(con, {})).fetchall()
            except ValueError as error:
                print(f"{'':22}{name}: not asked, {str(error).splitlines()[0]}")
                continue
            seconds[name] = time.perf_counter() - begun
            print(f"{'':22}{name}: {seconds[name]:.2f} s", file=sys.stderr)
    slowest = max(seconds, key=lambda name: seconds[name])
    return {"asked": len(seconds), "slowest": slowest, "slowest_seconds": seconds[slowest]}


def readers(lake: Lake, arguments: argparse.Namespace) -> Figures:
    """A second run is loaded and published while another process opens the snapshot and asks, again and again."""
    _generate_run(lake, 1, _sizes(arguments), read_manifest(lake.corpus(CORPUS).sequences, made_by="generate"))
    reader = subprocess.Popen(
        [sys.executable, "-c", READER, str(lake.root), str(NUM_QUERIES)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert reader.stdout is not None
    reader.stdout.readline()
    begun = time.perf_counter()
    store.sync(_run(lake, 1))
    seconds = time.perf_counter() - begun
    answer, _ = reader.communicate(b"loaded\n")
    assert reader.returncode == 0
    return {"second_load_seconds": seconds} | json.loads(answer)


READER = """
import json, select, sys, time
from bliss_ops.lake import Lake
from bliss_ops.sql import open_snapshot
lake, queries, errors, seen, slowest = Lake.open(sys.argv[1]), 0, 0, [], 0.0
print("reading", flush=True)
loaded = False
while queries < int(sys.argv[2]) or not loaded:
    loaded = loaded or bool(select.select([sys.stdin], [], [], 0)[0])
    begun = time.perf_counter()
    try:
        with open_snapshot(lake) as con:
            (counted,) = con.execute("select count(*) from all_scores").fetchone()
            (promised,) = con.execute("select sum(num_sequences) from score_runs").fetchone()
            con.execute("from decile_summaries order by all").fetchall()
            errors += counted != promised
            seen += [counted] * (counted not in seen)
    except Exception as error:
        print(error, file=sys.stderr)
        errors += 1
    queries, slowest = queries + 1, max(slowest, time.perf_counter() - begun)
print(json.dumps({"queries": queries, "errors": errors, "snapshots": len(seen), "slowest_read_seconds": slowest}))
"""

STEPS: dict[str, Callable[[Lake, argparse.Namespace], Figures]] = {
    "generate": generate, "load": load, "publish": publish, "copy": copy, "topk": topk, "ordered": ordered, "queries": ask,
    "readers": readers,
}  # fmt: skip


# ---- what is generated -----------------------------------------------------------------------------------------------


def _sizes(arguments: argparse.Namespace) -> list[int]:
    """Sequences of each shard."""
    (rows,) = arguments.rows
    return [min(arguments.rows_per_shard, rows - start) for start in range(0, rows, arguments.rows_per_shard)]


def _generate_run(lake: Lake, seed: int, sizes: list[int], packed: Manifest) -> None:
    run, here = _run(lake, seed), _run(lake, seed).round(1)
    config = {"name": run.name, "recipe": "generated", "method": "dsir", "seed": seed, "selection": {"fraction": FRACTION}}
    config |= {"ingest": {"corpus": CORPUS, "sequence_length": T}}
    write_json(run.path / "config.json", RunConfig.model_validate(config).model_dump(mode="json"))
    fitted = _produce(lake, here / "selector", "fit", [], None, [packed])
    _produce(lake, here / "scores", "score", sizes, _scores_of(seed), [fitted])


def _produce(
    lake: Lake,
    directory: Any,
    stage: str,
    sizes: list[int],
    make: Callable[[int, int], pa.Table] | None,
    inputs: list[Manifest] | None = None,
    folder: str = "",
) -> Manifest:
    artifact = Artifact(lake, directory, stage=stage, identity={}, inputs=inputs or [])
    artifact.begin()
    outputs: list[Output] = []
    for shard, size in enumerate(sizes if make else []):
        assert make is not None
        write_parquet(shard_file(directory / folder if folder else directory, shard), make(shard, size))
        outputs.append(describe(directory, f"{folder}shard-{shard:05d}.parquet", rows=size))
    return artifact.commit(outputs, {"num_sequences": sum(sizes)}, shards=range(len(sizes)))


def _scores_of(seed: int) -> Callable[[int, int], pa.Table]:
    def make(shard: int, size: int) -> pa.Table:
        values = np.random.default_rng([seed, shard]).standard_normal(size, np.float32)
        return pa.table({"sequence_id": shard * ROWS_PER_SHARD + np.arange(size), "score": values}, schema=schemas.SCORES)

    return make


def _spans_of(per_sequence: int) -> Callable[[int, int], pa.Table]:
    """Documents of T / per_sequence tokens on average, geometric: a sequence holds pieces of one more than that."""

    def make(shard: int, size: int) -> pa.Table:
        lengths = _lengths(shard, size, per_sequence)
        ends = np.concatenate([lengths.cumsum(), np.arange(1, size + 1) * T])
        ends = np.unique(ends[ends <= size * T])
        starts = np.concatenate([[0], ends[:-1]])
        documents = np.searchsorted(lengths.cumsum(), starts, side="right")
        columns = {"sequence_id": shard * ROWS_PER_SHARD + starts // T, "document_id": shard * ROWS_PER_SHARD + documents}
        return pa.table(columns | {"num_tokens": (ends - starts).astype(np.int32)}, schema=schemas.SPANS)

    return make


def _documents_of(per_sequence: int) -> Callable[[int, int], pa.Table]:
    def make(shard: int, size: int) -> pa.Table:
        count = len(_lengths(shard, size, per_sequence))
        domain = np.minimum(np.random.default_rng([2, shard]).zipf(1.3, count), NUM_DOMAINS)
        domains = pa.array([f"www.site-{number}.example" for number in range(NUM_DOMAINS + 1)]).take(pa.array(domain))
        ids = shard * ROWS_PER_SHARD + np.arange(count)
        columns = {
            "document_id": ids,
            "source": pa.array(["web", "books"]).take(pa.array(np.full(count, shard % 2))),
            "url": pa.array(np.char.add("https://www.site.example/articles/", ids.astype(str))),
            "domain": domains,
            "timestamp": pa.array(["2024-01-01", "2024-02-01"]).take(pa.array(np.arange(count) % 2)),
            "text": pa.array([""]).take(pa.array(np.zeros(count, np.int64))),
            "num_bytes": np.full(count, 2000),
        }
        return pa.table(columns, schema=schemas.DOCUMENTS)

    return make


def _lengths(shard: int, size: int, per_sequence: int) -> np.ndarray:
    """Tokens of each document of a shard; they fill its sequences."""
    lengths = np.random.default_rng([3, shard]).geometric(per_sequence / T, int(size * per_sequence * 1.01) + 1000)
    return lengths[: int(np.searchsorted(lengths.cumsum(), size * T)) + 1]


def _run(lake: Lake, seed: int) -> Run:
    return lake.run(f"run-{seed}")


@contextmanager
def _timed(module: Any, name: str) -> Iterator[list[float]]:
    """Seconds spent in a function of a module, in a list of one."""
    spent, function = [0.0], getattr(module, name)

    def timed(*arguments: Any) -> Any:
        begun = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            spent[0] += time.perf_counter() - begun

    setattr(module, name, timed)
    try:
        yield spent
    finally:
        setattr(module, name, function)


def _shown(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    sys.exit(main())
