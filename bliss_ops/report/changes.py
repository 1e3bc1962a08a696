"""What a selection shares with others: what entered and left since the round before, and how far it overlaps other runs' selections."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from markupsafe import Markup

from bliss_ops.lake import Run, shard_file
from bliss_ops.manifest import find_manifest
from bliss_ops.report import charts
from bliss_ops.report.facts import Facts, Source, parquet_files

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

BETWEEN_ROUNDS = """
with before as (select s.sequence_id, k.sequence_id is not null as selected
                from read_parquet($scores) s left join read_parquet($selected) k using (sequence_id))
select c.source, count(*) filter (where c.selected and b.selected) as num_stayed,
       count(*) filter (where c.selected and not b.selected) as num_entered,
       count(*) filter (where not c.selected and b.selected) as num_left
from candidates c join before b using (sequence_id)
group by c.source order by num_stayed + num_entered + num_left desc, c.source
"""
BOTH = "select count(*) from read_parquet($a) x join read_parquet($b) y using (sequence_id)"
SIZE = "select count(*) from read_parquet($files)"


@dataclass(frozen=True)
class Exchanged:
    """One source between two rounds, among the candidates that both have."""

    source: str
    num_stayed: int
    num_entered: int
    num_left: int


@dataclass(frozen=True)
class Kept:
    """The share kept of one source, in the round before and in this one; None where the source is no candidate."""

    source: str
    before: float | None
    now: float | None

    @property
    def difference(self) -> float | None:
        return None if self.before is None or self.now is None else self.now - self.before


@dataclass(frozen=True)
class Changes:
    """What changed since the round before; `reason` says why nothing can be said."""

    reason: str = ""
    exchanged: list[Exchanged] = field(default_factory=list)  # empty where the two windows share no candidate
    kept: list[Kept] = field(default_factory=list)
    chart: Markup | None = None


def since_the_round_before(run: Run, round_number: int, facts: Facts, sources: Sequence[Source]) -> Changes:
    """Entered, left and stayed by source; the two rounds may have other candidates, so also the share kept of each source."""
    if round_number == 1:
        return Changes("this is the first round")
    here = run.round(round_number - 1)
    scores, selection = find_manifest(here / "scores"), find_manifest(here / "selection")
    if scores is None or selection is None:
        return Changes(f"round {round_number - 1} has no finished selection")
    files = {
        "scores": [str(shard_file(here / "scores", shard)) for shard in scores.shards],
        "selected": parquet_files(here / "selection", selection),
    }
    exchanged = [Exchanged(*row) for row in facts.con.execute(BETWEEN_ROUNDS, files).fetchall() if any(row[1:])]
    with tempfile.TemporaryDirectory(prefix="bliss-report-") as scratch, Facts(run, round_number - 1, scratch) as earlier:
        before = {source.name: source.num_selected / source.num_sequences for source in earlier.sources()}
    now = {source.name: source.num_selected / source.num_sequences for source in sources}
    names = [source.name for source in sources] + sorted(before.keys() - now.keys())
    return Changes("", exchanged, [Kept(name, before.get(name), now.get(name)) for name in names], _exchange_chart(exchanged))


def overlap(con: "DuckDBPyConnection", runs: Sequence[Run], round_number: int) -> tuple[list[Run], list[list[float]]]:
    """The runs of the first one's corpus with a selection in that round, and which share of each one's the others have too."""
    found = [run for run in runs if (run.path / "config.json").is_file() and _sequences(run) == _sequences(runs[0])]
    directories = {run.name: run.round(round_number) / "selection" for run in found}
    files = {name: parquet_files(directory, manifest) for name, directory in directories.items() if (manifest := find_manifest(directory))}
    found = [run for run in found if run.name in files]
    sizes = {run.name: _count(con, SIZE, {"files": files[run.name]}) for run in found}
    both: dict[tuple[str, str], int] = {(run.name, run.name): sizes[run.name] for run in found}
    for number, a in enumerate(found):
        for b in found[number + 1 :]:
            both[a.name, b.name] = both[b.name, a.name] = _count(con, BOTH, {"a": files[a.name], "b": files[b.name]})
    return found, [[both[a.name, b.name] / sizes[a.name] for b in found] for a in found]


def overlap_chart(con: "DuckDBPyConnection", runs: Sequence[Run], round_number: int) -> Markup | None:
    """The matrix, where there are at least two selections of the same sequences."""
    found, shares = overlap(con, runs, round_number)
    if len(found) < 2:
        return None
    values = [[None if a is b else share for b, share in zip(found, line, strict=True)] for a, line in zip(found, shares, strict=True)]
    rows = [f"{number} {run.name}" for number, run in enumerate(found, start=1)]
    columns = [str(number) for number in range(1, len(found) + 1)]
    title = "Which share of each selection the others have too"
    return charts.matrix(rows, columns, values, title=title, format_value=lambda value: f"{value:.0%}")


def _sequences(run: Run) -> str | None:
    """What tells whether two runs chose among the same sequences; None where they are not there."""
    manifest = find_manifest(run.corpus.sequences)
    return manifest.digest if manifest else None


def _count(con: "DuckDBPyConnection", query: str, parameters: dict[str, list[str]]) -> int:
    return int((con.execute(query, parameters).fetchone() or (0,))[0])


def _exchange_chart(exchanged: Sequence[Exchanged], most: int = 30) -> Markup | None:
    rows = []
    for one in exchanged[:most]:
        numbers = {"stayed": one.num_stayed, "entered": one.num_entered, "left": one.num_left}
        rows.append((one.source, [charts.Part(style, value, f"{value:,} sequences {style}") for style, value in numbers.items()]))
    return charts.stacked_bars(rows, title="What stayed, entered and left, by source") if rows else None
