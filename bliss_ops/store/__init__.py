"""The score store: every score in one DuckDB file that anyone can query while the pipeline runs.

Workers write Parquet; this loader is the only writer of tables. It brings a *working* file up to date, one transaction per shard
(delete, insert, ledger row), then publishes a snapshot that replaces the previous one in a single rename. Readers open the snapshot:
they never wait for the loader and never see half a load. Nothing here is the truth, the Parquet files are: `rebuild` starts over.
"""

import json
import logging
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from upath import UPath

from bliss_ops.lake import Lake, Run
from bliss_ops.manifest import Manifest, find_manifest
from bliss_ops.store import tables
from bliss_ops.store.working import is_remote, open_working, publish

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

log = logging.getLogger(__name__)

Counts = dict[str, int]


def sync(run: Run) -> dict[str, Any]:
    """Load what `run` has finished and the store does not hold yet, then publish the snapshot if anything changed.

    A store that was never published (first use, lost scratch disk, changed tables) is filled from every run of the lake. So it is, each
    time, for a lake on an object store: its working file is local to one machine, and another machine may have loaded meanwhile.

    Returns:
        num_loaded and num_skipped (shards), num_rows (loaded now), published.

    Raises:
        ValueError: another process holds the working file for longer than a minute.
    """
    with open_working(run.lake) as (con, is_unfilled):
        names = run.lake.run_names() if is_unfilled or is_remote(run.lake) else [run.name]
        return _load_and_publish(con, run.lake, names)


def rebuild(lake: Lake) -> dict[str, Any]:
    """Empty the store and load every finished round of the lake from Parquet; readers keep the old snapshot until the new one is there."""
    with open_working(lake, empty=True) as (con, _):
        return _load_and_publish(con, lake, lake.run_names())


def _load_and_publish(con: "DuckDBPyConnection", lake: Lake, names: Iterable[str]) -> dict[str, Any]:
    counts = {"num_loaded": 0, "num_skipped": 0, "num_rows": 0}
    for name in names:
        run = lake.run(name)
        for round_number in range(1, run.config.num_rounds + 1):
            _load_round(con, run, round_number, counts)
    published = publish(con, lake)
    log.info(
        "score store: %d shards loaded (%d rows), %d already there; snapshot %s",
        counts["num_loaded"],
        counts["num_rows"],
        counts["num_skipped"],
        "published" if published else "unchanged",
    )
    return counts | {"published": published}


def _load_round(con: "DuckDBPyConnection", run: Run, round_number: int, counts: Counts) -> None:
    """What one round has finished: its scores, the documents behind them, influences, selection and evaluation."""
    here, config, corpus = run.round(round_number), run.config, run.corpus
    scores = find_manifest(here / "scores")
    if scores is None:
        return
    score_run_id = f"{run.name}/round-{round_number:02d}"
    scored = set(scores.shards)
    sequence_set = f"{corpus.name}/{corpus.sequences.name}"
    for directory, kind, folder, owner, extra in (
        (corpus.documents, tables.DOCUMENTS, "", corpus.name, {}),
        (corpus.sequences, tables.SPANS, "spans/", sequence_set, {"corpus": corpus.name}),
    ):
        if manifest := find_manifest(directory):
            files = {shard: file for shard, file in _shard_files(manifest, folder).items() if shard in scored}
            for shard, (path, sha256) in files.items():
                _load_shard(con, kind, owner, shard, sha256, extra | {"file": str(directory / path)}, counts)

    row = {
        "run": run.name,
        "round": round_number,
        "recipe": config.recipe,
        "method": config.method,
        "seed": config.seed,
        "corpus": corpus.name,
        "sequence_set": sequence_set,
        "selector_fingerprint": getattr(find_manifest(here / "selector"), "fingerprint", ""),
        "scores_fingerprint": scores.fingerprint,
        "num_sequences": scores.metrics["num_sequences"],
        "finished_at": datetime.fromisoformat(scores.finished_at).astimezone(UTC).replace(tzinfo=None),
    }
    _load_shard(con, tables.SCORE_RUNS, score_run_id, 0, _digest(row), row, counts)
    _load_shards(con, tables.SCORES, score_run_id, here / "scores", scores, counts)
    if fidelity := find_manifest(here / "fidelity"):
        for output in fidelity.outputs:  # none where nothing could be measured
            _load_shard(con, tables.INFLUENCES, score_run_id, 0, output.sha256, {"file": str(here / "fidelity" / output.path)}, counts)
    if selection := find_manifest(here / "selection"):
        names = ("num_candidates", "num_selected", "threshold", "num_ties_at_threshold", "num_ties_kept", "num_tokens")
        row = {name: selection.metrics.get(name) for name in names}
        _load_shard(con, tables.SELECTION_COUNTS, score_run_id, 0, _digest(row), row, counts)
        _load_shards(con, tables.SELECTIONS, score_run_id, here / "selection", selection, counts)
    if evaluation := find_manifest(here / "evaluation"):
        results = next(output for output in evaluation.outputs if output.path == "results.parquet")
        _load_shard(con, tables.EVALUATIONS, score_run_id, 0, results.sha256, {"file": str(here / "evaluation" / results.path)}, counts)


def _load_shards(con: "DuckDBPyConnection", kind: tables.Kind, owner: str, directory: UPath, manifest: Manifest, counts: Counts) -> None:
    """Every shard of an artifact; shards the artifact no longer has leave the store."""
    files = _shard_files(manifest, "")
    loaded = con.execute(tables.LOADED_SHARDS, {"kind": kind.name, "owner": owner}).fetchall()
    for shard in {shard for (shard,) in loaded} - files.keys():
        key = {"kind": kind.name, "owner": owner, "shard": shard}
        con.begin()
        _execute(con, kind.delete, key)
        con.execute(tables.FORGET, key)
        con.commit()
    for shard, (path, sha256) in files.items():
        _load_shard(con, kind, owner, shard, sha256, {"file": str(directory / path)}, counts)


def _load_shard(
    con: "DuckDBPyConnection", kind: tables.Kind, owner: str, shard: int, sha256: str, parameters: dict[str, Any], counts: Counts
) -> None:
    """One shard in one transaction, unless the ledger says that exactly this content is loaded."""
    key = {"kind": kind.name, "owner": owner, "shard": shard}
    known = con.execute(tables.LOADED, key).fetchone()
    if known == (sha256,):
        counts["num_skipped"] += 1
        return
    con.begin()
    try:
        if known is not None:
            _execute(con, kind.delete, key)
            con.execute(tables.FORGET, key)
        (num_rows,) = _execute(con, kind.insert, key | parameters).fetchone() or (0,)
        con.execute(tables.REMEMBER, key | {"sha256": sha256, "num_rows": num_rows})
        con.commit()
    except BaseException:
        con.rollback()
        raise
    counts["num_loaded"] += 1
    counts["num_rows"] += num_rows


def _execute(con: "DuckDBPyConnection", statement: str, parameters: dict[str, Any]) -> "DuckDBPyConnection":
    """Execute with those of `parameters` that the statement names: DuckDB refuses the others."""
    (parsed,) = con.extract_statements(statement)
    return con.execute(parsed, {name: parameters[name] for name in parsed.named_parameters})


def _shard_files(manifest: Manifest, folder: str) -> dict[int, tuple[str, str]]:
    """Shard number to (path, sha256) of the artifact's Parquet files in `folder` (a pattern)."""
    pattern = re.compile(folder + r"shard-(\d+)[.]parquet")
    return {int(match[1]): (output.path, output.sha256) for output in manifest.outputs if (match := pattern.fullmatch(output.path))}


def _digest(row: dict[str, Any]) -> str:
    """A row made from manifests has no file, so its ledger entry is the row itself."""
    return json.dumps(row, sort_keys=True, default=str)
