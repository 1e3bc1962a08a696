"""Bringing the tables to the state the lake says: one transaction per shard, the row of `score_runs` last.

A shard's file is read once; its bytes are hashed, held against the manifest, and the rows that go in are parsed from those very
bytes, so a file that is cut, or rewritten by a stale worker meanwhile, never gets in. Scores of former content of a corpus leave the
tables before anything of its new content enters them, and scores that the lake has no longer leave before anything enters.
"""

import hashlib
import logging
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING

from bliss_ops.lake import Lake, at_once
from bliss_ops.sharding import Progress
from bliss_ops.store import summaries, tables
from bliss_ops.store.score_runs import Content, Part, ScoreRun, ScoreRuns, is_in_lake
from bliss_ops.store.transactions import execute, in_transaction, transaction

if TYPE_CHECKING:
    import pyarrow as pa
    from duckdb import DuckDBPyConnection

log = logging.getLogger(__name__)

Counts = dict[str, int]
Ledger = dict[tuple[str, str, int], str]
SECONDS_BETWEEN_LINES = 5.0
STAYS_IN_PARQUET = ("text", "context", "continuation")  # of documents and questions


def load(con: "DuckDBPyConnection", score_run: ScoreRun, score_runs: ScoreRuns, counts: Counts) -> None:
    """Load what the store does not hold of one score run, its part of the corpus, and its summaries.

    Raises:
        ValueError: a file is missing, cut or rewritten; shards loaded before it stay.
    """
    assert score_run.refusal is None
    forget_former_content(con, score_run.content, score_runs)
    wanted = [*score_run.corpus_parts(), *score_run.parts]
    ledger = read_ledger(con, score_run)
    missing = [part for part in wanted if ledger.get(part.key) != part.sha256]
    keys = {part.key for part in wanted}
    gone = [key for key in ledger if key[1] == score_run.id and key[0] not in ("score_runs", "summaries") and key not in keys]
    counts["num_skipped"] += len(wanted) - len(missing)
    if not (missing or gone) and ledger.get(score_run.row.key) == score_run.row.sha256 and summaries.are_current(con, score_run):
        counts["num_skipped"] += 1
        return
    _remove(con, tables.SCORE_RUNS, score_run.id, 0)
    for kind, owner, shard in gone:
        _remove(con, tables.KINDS[kind], owner, shard)
    progress = Progress(f"load {score_run.id}", len(missing), "parts", seconds_between_lines=SECONDS_BETWEEN_LINES)
    for part in missing:
        _load_part(con, part, counts, is_known=part.key in ledger)
        progress.advance()
    summaries.refresh(con, score_run)
    _load_part(con, score_run.row, counts, is_known=False)


def forget_former_content(con: "DuckDBPyConnection", content: Content, score_runs: ScoreRuns) -> None:
    """Drop everything that stands on other content of the corpus than the one it has now: scores first, then spans and documents."""
    loaded = con.execute(tables.SCORE_RUNS_OF_CORPUS, {"corpus": content.corpus}).fetchall()
    for score_run_id, sequence_set, digest in loaded:
        other = score_runs.content(content.corpus, sequence_set)
        if not (other.is_settled and other.packed is not None and other.packed.digest == digest):
            log.warning("score store: %s leaves the store, its scores are of former content of %s", score_run_id, sequence_set)
            forget(con, score_run_id)
    for kind, owner, manifest, folder, statements in (
        (tables.SPANS, content.sequence_set, content.packed, "spans/", tables.FORGET_SPANS),
        (tables.DOCUMENTS, content.corpus, content.documents, "", tables.FORGET_DOCUMENTS),
    ):
        now = {output.path: output.sha256 for output in manifest.outputs} if manifest else {}
        then = con.execute(tables.LOADED_SHARDS, {"kind": kind.name, "owner": owner}).fetchall()
        if any(now.get(f"{folder}shard-{shard:05d}.parquet") != sha256 for shard, sha256 in then):
            in_transaction(con, statements, {"owner": owner})


def forget_gone(con: "DuckDBPyConnection", lake: Lake, found: Iterable[ScoreRun]) -> None:
    """Drop score runs that the lake no longer has, or whose files `bliss gc` deleted, and what was loaded for the sake of them alone.

    A run may have been deleted on another machine, or the lake restored as it was earlier. Score runs of the store that are not among the
    `found` are asked for by name: listings may come late, and not every load looks at all of the lake.
    """
    is_collected = {score_run.id: bool(score_run.collected) for score_run in found}
    held = [owner for (owner,) in con.execute(tables.HELD, {"kinds": tables.OF_SCORE_RUN}).fetchall()]
    unseen = [id for id in held if id not in is_collected]  # noqa: A001 - what it is
    are_there = dict(zip(unseen, at_once(partial(is_in_lake, lake), unseen, lake.root), strict=True))
    gone = [id for id in held if is_collected.get(id) or not are_there.get(id, True)]  # noqa: A001
    if not gone:
        return
    in_transaction(con, tables.FORGET_UNSCORED, {"gone": gone})  # first: whoever is killed now finds the same ones gone again
    for id in gone:  # noqa: A001
        log.warning("score store: %s leaves the store, its scores are no longer in the lake", id)
        forget(con, id)


def forget(con: "DuckDBPyConnection", score_run_id: str) -> None:
    """Take a score run out of every table."""
    in_transaction(con, tables.FORGET_SCORE_RUN, {"owner": score_run_id})


def read_ledger(con: "DuckDBPyConnection", score_run: ScoreRun) -> Ledger:
    """Hashes of what is loaded of a score run and of its corpus."""
    content = score_run.content
    names = {"score_run_id": score_run.id, "sequence_set": content.sequence_set, "corpus": content.corpus}
    return {(kind, owner, shard): sha256 for kind, owner, shard, sha256 in con.execute(tables.LEDGER, names).fetchall()}


def read_part(part: Part) -> "pa.RecordBatchReader":
    """The rows of a part's file, from bytes whose hash is the recorded one.

    Raises:
        ValueError: the file is missing, or not the one that was recorded.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from bliss_ops import schemas

    assert part.file is not None
    remedy = f"Delete it and run `{part.made_by}` again; then load again."
    try:
        data = part.file.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{part.file} is missing: run `{part.made_by}` again, then load again") from None
    found = hashlib.sha256(data).hexdigest()
    if found != part.sha256:
        raise ValueError(
            f"{part.file} is not the file its manifest recorded: it was cut or rewritten since. "
            f"Its sha256 is {found}, {part.sha256} was expected. {remedy}"
        )
    file = pq.ParquetFile(pa.BufferReader(data))
    columns = [name for name in file.schema_arrow.names if name not in STAYS_IN_PARQUET]
    schema = pa.schema([file.schema_arrow.field(name) for name in columns])
    batches = file.iter_batches(batch_size=1 << 20, columns=columns)
    if part.kind is tables.EVALUATIONS and schema != schemas.EVALUATION:  # of a former version: its models have no step
        former = file.read()
        values = {name: former[name] if name in columns else pa.nulls(len(former)) for name in schemas.EVALUATION.names}
        return pa.table(values).cast(schemas.EVALUATION).to_reader()
    return pa.RecordBatchReader.from_batches(schema, batches)


def _load_part(con: "DuckDBPyConnection", part: Part, counts: Counts, *, is_known: bool) -> None:
    """One part in one transaction."""
    key = {"kind": part.kind.name, "owner": part.owner, "shard": part.shard}
    rows = read_part(part) if part.file is not None else None
    with transaction(con):
        if is_known:
            execute(con, part.kind.delete, key)
            con.execute(tables.FORGET, key)
        num_rows = _insert(con, part, rows)
        con.execute(tables.REMEMBER, key | {"sha256": part.sha256, "num_rows": num_rows})
    counts["num_loaded"] += 1
    counts["num_rows"] += num_rows


def _insert(con: "DuckDBPyConnection", part: Part, rows: "pa.RecordBatchReader | None") -> int:
    key = {"owner": part.owner, "shard": part.shard}
    if rows is None:
        (num_rows,) = execute(con, part.kind.insert, key | part.values).fetchone() or (0,)
        return int(num_rows)
    con.register("shard", rows)
    try:
        (num_rows,) = execute(con, part.kind.insert, key | part.values).fetchone() or (0,)
    finally:
        con.unregister("shard")
    return int(num_rows)


def _remove(con: "DuckDBPyConnection", kind: tables.Kind, owner: str, shard: int) -> None:
    key = {"kind": kind.name, "owner": owner, "shard": shard}
    in_transaction(con, (kind.delete, tables.FORGET), key)
