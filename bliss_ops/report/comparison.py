"""`bliss compare`: one page of several runs, their held-out losses, their scores, and what each of them keeps.

Runs of one method with several seeds are told as a mean with its standard error; differences from the baseline are taken seed by seed,
because runs of one seed share their initial weights and differ by their data alone. Scores and selections are only held against each
other where the sequences are the same; what cannot be compared is said on the page.
"""

import hashlib
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from upath import UPath

from bliss_ops.config import RunConfig
from bliss_ops.corpus.arrays import Float64s, Int64s
from bliss_ops.lake import Lake, Run, write_bytes, write_json
from bliss_ops.manifest import find_manifest
from bliss_ops.rank_correlation import spearman
from bliss_ops.report import changes, charts, page
from bliss_ops.report.curves import Compared, Result, read_run
from bliss_ops.report.facts import Distribution, Facts, Source, reach

BASELINE = "random"
STYLES = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
SAMPLE = 50_000  # sequences whose ranks are correlated: a standard error of 0.004
MOST_SOURCES = 40
SAMPLED = "select sequence_id, score::double as score from candidates where hash(sequence_id) % $one_of::ubigint = 0 order by sequence_id"
NOT_SETTINGS = ("name", "recipe", "description", "method", "seed", "compare_with")


@dataclass
class Member:
    """One run of the comparison."""

    number: int
    run: Run
    config: RunConfig
    compared: Compared
    result: Result | None
    fidelity: dict[str, Any] | None
    sequences: str | None  # digest of the sequences it chose among
    distribution: Distribution | None = None
    counts: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)
    sample: tuple[Int64s, Float64s] | None = None

    @property
    def label(self) -> str:
        return f"{self.number} {self.run.name}"


@dataclass(frozen=True)
class MethodLoss:
    """The held-out loss of one method over its seeds, and its difference from the baseline's runs of the same seeds."""

    method: str
    numbers: list[int]
    seeds: list[int]
    mean: float
    standard_error: float | None  # None with one seed
    difference: float | None
    difference_error: float | None
    num_pairs: int


def compare(
    lake: Lake,
    names: Sequence[str],
    round_number: int | None = None,
    output: UPath | None = None,
    *,
    baseline: str = BASELINE,
    missing: Mapping[str, str] | None = None,
    title: str | None = None,
) -> UPath:
    """Write `index.html`, `summary.json` and `table.md` about several runs and return the page's address.

    Args:
        lake: the lake they are in.
        names: two runs or more.
        round_number: which round; none takes the last one that every run has evaluated, else the last any has.
        output: directory to write; none takes `comparisons/<names>` of the lake.
        baseline: the method that the others are held against.
        missing: runs that belong to the comparison and are not done, with how far they are.
        title: the comparison's name, where it has one.

    Raises:
        ValueError: fewer than two runs, or one of them is not in the lake or has nothing finished.
    """
    if len(set(names)) < 2:
        raise ValueError("name two runs or more: there is nothing to compare with one")
    runs = [lake.run(name) for name in dict.fromkeys(names)]
    round_number = round_number or _round_of(runs)
    with tempfile.TemporaryDirectory(prefix="bliss-compare-") as scratch:
        members = [_read(number, run, round_number, Path(scratch)) for number, run in enumerate(runs, start=1)]
        if not any(member.result or member.distribution for member in members):
            raise ValueError(f"none of {', '.join(names)} has finished scores or an evaluation in round {round_number}: run them first")
        directory = output or lake.root / "comparisons" / _name([run.name for run in runs])
        html, summary = _render(members, round_number)
    write_bytes(directory / "index.html", html.encode())
    write_json(directory / "summary.json", summary)
    write_bytes(directory / "table.md", b"")
    return directory / "index.html"


def losses_by_method(members: Sequence[Member]) -> list[MethodLoss]:
    """Methods by mean loss, best first. Their baseline is `random`; without it there are no differences."""
    measured = [(member, member.result.loss) for member in members if member.result]
    baseline = {(member.config.ingest.corpus, member.config.seed): loss for member, loss in measured if member.config.method == BASELINE}
    found = []
    for method in dict.fromkeys(member.config.method for member, _ in measured):
        mine = [(member, loss) for member, loss in measured if member.config.method == method]
        keys = [(member.config.ingest.corpus, member.config.seed) for member, _ in mine]
        pairs = [loss - baseline[key] for key, (_, loss) in zip(keys, mine, strict=True) if key in baseline and method != BASELINE]
        mean, error = _mean([loss for _, loss in mine])
        difference, difference_error = _mean(pairs) if pairs else (None, None)
        numbers, seeds = [member.number for member, _ in mine], [member.config.seed for member, _ in mine]
        found.append(MethodLoss(method, numbers, seeds, mean or 0.0, error, difference, difference_error, len(pairs)))
    return sorted(found, key=lambda one: (one.mean, one.method))


def correlations(members: Sequence[Member]) -> list[list[float | None]]:
    """Spearman of every two runs' scores on the sampled sequences that both scored; None where there are too few."""
    values: list[list[float | None]] = [[None] * len(members) for _ in members]
    for i, a in enumerate(members):
        for j, b in enumerate(members[:i]):
            if a.sample is None or b.sample is None:
                continue
            _, at_a, at_b = np.intersect1d(a.sample[0], b.sample[0], assume_unique=True, return_indices=True)
            if len(at_a) > 2:
                values[i][j] = values[j][i] = spearman(a.sample[1][at_a], b.sample[1][at_b])
    return values


def differing_settings(members: Sequence[Member]) -> list[tuple[str, list[tuple[str, list[int]]]]]:
    """Settings that are not the same everywhere: each value with the numbers of the runs that have it."""
    of_run = {member.number: {row["name"]: row["value"] for row in page.settings(member.config)} for member in members}
    names = [name for name in next(iter(of_run.values())) if name not in NOT_SETTINGS]
    found = []
    for name in names:
        values: dict[str, list[int]] = {}
        for number, settings in of_run.items():
            values.setdefault(settings[name], []).append(number)
        if len(values) > 1:
            found.append((name, list(values.items())))
    return found


def _read(number: int, run: Run, round_number: int, scratch: Path) -> Member:
    here, compared = run.round(round_number), read_run(run, round_number)
    fidelity = find_manifest(here / "fidelity")
    sequences = find_manifest(run.corpus.sequences)
    member = Member(
        number=number,
        run=run,
        config=run.config,
        compared=compared,
        result=compared.results.get(round_number),
        fidelity=fidelity.metrics if fidelity and fidelity.metrics["measured"] else None,
        sequences=sequences.digest if sequences else None,
    )
    if find_manifest(here / "scores") and find_manifest(here / "selection"):
        with Facts(run, round_number, str(scratch / str(number))) as facts:
            member.distribution, member.counts = facts.distribution(), facts.counts
            member.sources = {source.name: source for source in facts.sources()}
            one_of = math.ceil(member.distribution.num_sequences / SAMPLE)
            columns = facts.con.execute(SAMPLED, {"one_of": one_of}).fetchnumpy()
            member.sample = columns["sequence_id"], columns["score"]
    return member


def _round_of(runs: Sequence[Run]) -> int:
    """The last round that all have evaluated, else the last that any has."""
    finished = [
        {number for number in range(1, run.config.num_rounds + 1) if find_manifest(run.round(number) / "evaluation")} for run in runs
    ]
    return max(set.intersection(*finished) or set.union(*finished), default=1)


def _render(members: list[Member], round_number: int) -> tuple[str, dict[str, Any]]:
    groups: dict[str | None, list[Member]] = {}
    for member in members:
        if member.distribution is not None:
            groups.setdefault(member.sequences, []).append(member)
    together = max(groups.values(), key=len, default=[])
    losses, settings = losses_by_method(members), differing_settings(members)
    summary = {
        "round": round_number,
        "runs": [member.run.name for member in members],
        "validation_losses": {member.run.name: member.result.loss for member in members if member.result},
        "methods": [{name: value for name, value in vars(one).items() if name != "numbers"} for one in losses],
    }
    html = page.render(
        "compare.html",
        members=members,
        round_number=round_number,
        losses=losses,
        baseline=BASELINE,
        curves=_curves(members, round_number),
        spreads=[(member, _histogram(member)) for member in members if member.distribution is not None],
        together=together,
        apart=[member for member in members if member.distribution is not None and member not in together],
        unscored=[member for member in members if member.distribution is None],
        kept=_kept(together),
        overlap=_overlap(together, round_number),
        correlation=_correlation(together),
        settings=settings,
        unfair=[name for name, _ in settings if name.startswith(("target.", "pretraining.", "compute.", "selection.", "ingest."))],
    )
    return html, summary


def _curves(members: Sequence[Member], round_number: int) -> Markup | None:
    """A line per run; several seeds of a method are thin lines under their mean."""
    series: list[charts.Series] = []
    methods = list(dict.fromkeys(member.config.method for member in members if member.compared.curves.get(round_number)))
    for method, style in zip(methods, STYLES * math.ceil(len(methods) / len(STYLES)), strict=False):
        lines = [
            (member, curve)
            for member in members
            if member.config.method == method and (curve := member.compared.curves.get(round_number, []))
        ]
        if len(lines) == 1:
            series.append(charts.Series(lines[0][0].run.name, [lines[0][1]], style, markers=True))
            continue
        series += [charts.Series(member.run.name, [curve], style, thin=True) for member, curve in lines]
        shared = sorted(set.intersection(*({step for step, _ in curve} for _, curve in lines)))
        of_step = [dict(curve) for _, curve in lines]
        if shared:
            means = [(step, sum(curve[step] for curve in of_step) / len(of_step)) for step in shared]
            series.append(charts.Series(f"{method}, {len(lines)} runs", [means], style, markers=True))
    if not series:
        return None
    return charts.line_chart(series, title="Held-out loss of the targets", x_label="optimizer step", width=1080, height=380, right=190)


def _histogram(member: Member) -> Markup:
    shown = member.distribution
    assert shown is not None
    threshold = member.counts["threshold"]
    title = f"Scores of {member.run.name}"
    return charts.histogram(shown.edges, shown.counts, shown.counts_selected, threshold, title=title, width=520, height=220)


def _kept(members: Sequence[Member]) -> Markup | None:
    """Source by run: the share that is kept."""
    if not members:
        return None
    sizes = {name: source.num_sequences for member in members for name, source in member.sources.items()}
    names = sorted(sizes, key=lambda name: (-sizes[name], name))[:MOST_SOURCES]
    values = [
        [source.num_selected / source.num_sequences if (source := member.sources.get(name)) else None for member in members]
        for name in names
    ]
    highest = max((value for line in values for value in line if value is not None), default=1.0) or 1.0
    columns = [str(member.number) for member in members]
    title = "Which share of each source every run keeps"
    return charts.matrix(names, columns, values, title=title, format_value=lambda value: f"{value:.0%}", limits=(0.0, highest))


def _overlap(members: Sequence[Member], round_number: int) -> Markup | None:
    if len(members) < 2:
        return None
    import duckdb

    with duckdb.connect(":memory:") as con:
        reach(con, members[0].run.lake)
        _, shares = changes.overlap(con, [member.run for member in members], round_number)
    values = [[None if i == j else share for j, share in enumerate(line)] for i, line in enumerate(shares)]
    return _square(members, values, "Which share of a row's selection the column's has too", "{:.0%}", (0.0, 1.0))


def _correlation(members: Sequence[Member]) -> Markup | None:
    if len(members) < 2:
        return None
    return _square(members, correlations(members), "Rank correlation of the scores", "{:+.2f}", (0.0, 1.0))


def _square(
    members: Sequence[Member], values: Sequence[Sequence[float | None]], title: str, form: str, limits: tuple[float, float]
) -> Markup:
    rows, columns = [member.label for member in members], [str(member.number) for member in members]

    def written(value: float) -> str:
        return form.format(round(value, 2) + 0.0).replace("-", "\N{MINUS SIGN}")  # no minus before zero

    return charts.matrix(rows, columns, values, title=title, format_value=written, limits=limits)


def _mean(values: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean and its standard error; no error from one value."""
    if not values:
        return None, None
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
    return float(np.mean(values)), error


def _name(names: Sequence[str]) -> str:
    """A directory name for a comparison: the runs', or the first one's and a hash where they are too many."""
    together = "-vs-".join(names)
    if len(together) <= 80:
        return together
    return f"{names[0][:50]}-and-{len(names) - 1}-others-{hashlib.sha256(together.encode()).hexdigest()[:8]}"
