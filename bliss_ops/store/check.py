"""Do Parquet, the ledger and the tables agree? `bliss store check`.

Four comparisons: every file of every score run with the hash its manifest recorded; the ledger with these hashes; the rows of the
tables with the rows of the files, by their number and a checksum; the working file with the snapshot that readers have. And nothing may
be in the tables that no file backs. Tables are scanned once each, files are read once each, one at a time.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bliss_ops.lake import Lake
from bliss_ops.sharding import Progress
from bliss_ops.store import overlaps, summaries, tables
from bliss_ops.store.loading import read_part
from bliss_ops.store.score_runs import Part, ScoreRun, ScoreRuns
from bliss_ops.store.working import open_to_check

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

log = logging.getLogger(__name__)

Key = tuple[str, str, int]  # kind, owner, shard
REBUILD = "run `bliss store rebuild`"


@dataclass
class Checked:
    """How much was looked at."""

    num_score_runs: int = 0
    num_files: int = 0
    num_rows: int = 0
    refused: list[str] = field(default_factory=list)  # why score runs are rightly not in the store

    def __str__(self) -> str:
        left_out = f"; {len(self.refused)} of former content, unfinished corpora or cleaned up stay out" if self.refused else ""
        return f"{self.num_score_runs} score runs, {self.num_files:,} files, {self.num_rows:,} rows{left_out}"


def check(lake: Lake, checked: Checked) -> Iterator[str]:
    """Every disagreement, in words that end with the way out, as soon as it is found.

    Args:
        lake: the lake whose store is checked.
        checked: is counted up.

    Raises:
        ValueError: there is no snapshot, or a load goes on for longer than a minute.
    """
    with open_to_check(lake) as (con, has_working, let_loaders_in):
        if has_working:
            yield from _two_files(con)
        let_loaders_in()
        con.execute("use snapshot")
        found = {kind.name: _checksums(con, kind) for kind in tables.KINDS.values()}
        lists = ScoreRuns(lake)
        score_runs = lists.of_lake()
        yield from lists.unreadable
        wanted = {score_run.id: score_run for score_run in score_runs if score_run.refusal is None}
        checked.refused = [score_run.refusal for score_run in score_runs if score_run.refusal]
        checked.num_score_runs = len(wanted)
        parts = {part.key: part for score_run in wanted.values() for part in [*score_run.corpus_parts(), *score_run.parts, score_run.row]}
        ledger = {(kind, owner, shard): (sha256, rows) for kind, owner, shard, sha256, rows in con.execute(tables.WHOLE_LEDGER).fetchall()}
        yield from _of_no_file(ledger, found, parts, {score_run.id: score_run for score_run in score_runs})
        yield from _summaries(con, wanted, ledger)
        yield from _parts(con, parts, ledger, found, checked)


def _checksums(con: "DuckDBPyConnection", kind: tables.Kind) -> dict[Key, tuple[int, int | None]]:
    return {(kind.name, owner, shard): (rows, checksum) for owner, shard, rows, checksum in con.execute(kind.checksums).fetchall()}


def _parts(
    con: "DuckDBPyConnection",
    parts: dict[Key, Part],
    ledger: dict[Key, tuple[str, int]],
    found: dict[str, dict[Key, tuple[int, int | None]]],
    checked: Checked,
) -> Iterator[str]:
    """Each part: its file, its ledger row, its rows."""
    unloaded: dict[str, Counter[str]] = {}
    progress = Progress("store check", sum(part.file is not None for part in parts.values()), "files", seconds_between_lines=5.0)
    for key, part in parts.items():
        expected: tuple[int, int | None] = (1, None)
        if part.file is not None:
            try:
                expected = _of_file(con, part)
            except ValueError as error:
                yield str(error)
            checked.num_files, checked.num_rows = checked.num_files + 1, checked.num_rows + expected[0]
            progress.advance()
        sha256, num_rows = ledger.get(key, (None, 0))
        in_table = found[part.kind.name].get(key, (0, None))
        if sha256 != part.sha256:
            unloaded.setdefault(part.owner, Counter())[part.kind.name] += 1
        elif in_table[0] != num_rows:
            yield f"{_named(key)}: the ledger has {num_rows:,} rows, the table {in_table[0]:,}: {REBUILD}"
        elif part.file is not None and expected[1] is not None and in_table != expected:
            yield f"{_named(key)}: the rows in the table are not those of {part.file}: {REBUILD}"
    for owner, kinds in unloaded.items():
        yield f"{owner}: not in the snapshot as in Parquet ({_counted(kinds)}): {_way_to_load(owner)}"


def _of_file(con: "DuckDBPyConnection", part: Part) -> tuple[int, int]:
    con.register("shard", read_part(part))
    try:
        ((rows, checksum),) = con.execute(part.kind.file_checksum).fetchall()
        return rows, checksum
    finally:
        con.unregister("shard")


def _of_no_file(
    ledger: dict[Key, tuple[str, int]],
    found: dict[str, dict[Key, tuple[int, int | None]]],
    parts: dict[Key, Part],
    score_runs: dict[str, ScoreRun],
) -> Iterator[str]:
    """What the ledger or a table has and the lake has not; one line for each owner and kind."""
    extra: dict[str, Counter[str]] = {}
    for key in sorted(ledger.keys() | {key for of_kind in found.values() for key in of_kind}):
        if key not in ledger:
            yield f"{_named(key)}: rows are in the table that the ledger knows nothing of: {REBUILD}"
        elif key not in parts:
            extra.setdefault(key[1], Counter())[key[0]] += 1
    for owner, kinds in extra.items():
        score_run = score_runs.get(owner)
        if score_run and score_run.refusal is None:
            yield f"{owner}: in the store but no longer in its directory ({_counted(kinds)}): {_way_to_load(owner)}"
        else:
            why = "of former content of its corpus" if score_run and score_run.is_former else "with no Parquet behind it"
            yield f"{owner}: in the store {why} ({_counted(kinds)}): {REBUILD}, which leaves it out"


def _summaries(con: "DuckDBPyConnection", wanted: dict[str, ScoreRun], ledger: dict[Key, tuple[str, int]]) -> Iterator[str]:
    promised, there = dict(con.execute(tables.LOADED_SUMMARIES).fetchall()), dict(con.execute(tables.ROWS_OF_SUMMARIES).fetchall())
    for id, score_run in wanted.items():  # noqa: A001 - what it is
        if ("score_runs", id, 0) in ledger and not (summaries.are_current(con, score_run) and promised[id] == there.get(id, 0)):
            yield f"{id}: its summaries are not of what is loaded: {REBUILD}"
    for a, b, _ in con.execute(overlaps.PAIRS).fetchall():
        yield f"the overlap of the selections of {a} and {b} is not of what is loaded: {_way_to_load(a)}"


def _two_files(con: "DuckDBPyConnection") -> Iterator[str]:
    """The working file has what the snapshot has: else something was loaded and not published, or one of them was changed."""
    con.execute("use working")
    for (owner,) in con.execute(tables.UNFINISHED, {"kinds": tables.OF_SCORE_RUN}).fetchall():
        yield f"{owner}: was loaded in part only and is left out of the snapshot: {_way_to_load(owner)}"
        return  # the two files differ by what is left out
    names = [[name for (name,) in con.execute(tables.TABLE_NAMES, {"database": file}).fetchall()] for file in ("working", "snapshot")]
    if names[0] != names[1]:
        yield f"the snapshot was published by another version of this package: {REBUILD}"
        return
    for table in names[0]:
        working, snapshot = (
            con.execute(tables.TABLE_CHECKSUM.format(database=file, table=table)).fetchone() for file in ("working", "snapshot")
        )
        if working != snapshot:
            yield f"table {table} of the snapshot is not that of the working file: run `bliss load` for any round, it publishes again"


def _named(key: Key) -> str:
    kind, owner, shard = key
    return f"{kind} of {owner}, shard {shard}"


def _counted(kinds: Counter[str]) -> str:
    """`scores: 2, selections: 1`, in shards."""
    return ", ".join(f"{kind}: {count}" for kind, count in sorted(kinds.items()))


def _way_to_load(owner: str) -> str:
    """The command that loads a score run, or a corpus with the score runs of it."""
    if owner.startswith("scores/"):
        return "run `bliss load-scores {} {}`".format(*owner.split("/")[1:])
    run, _, round_name = owner.partition("/round-")
    return f"run `bliss load {run} --round {int(round_name)}`" if round_name.isdecimal() else "run `bliss load` for a round of it"
