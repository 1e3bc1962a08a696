"""Do the runs choose the same text? Shares kept by source, Jaccard overlap of selections, rank correlation of scores.

Up to a handful of runs the matrices have a row for each; beyond that, a row for each method: between two methods the mean over runs of
equal seeds, on the diagonal the mean over pairs of seeds of one method, which is what chance alone changes in it.
"""

from collections.abc import Callable, Sequence

import numpy as np
from markupsafe import Markup

from bliss_ops.rank_correlation import spearman
from bliss_ops.report import changes, charts
from bliss_ops.report.comparison.members import Member, methods_of
from bliss_ops.report.facts import reach

MOST_SOURCES = 40
LONGEST_COLUMN = 10  # characters
MOST_RUNS = 8  # more make unreadable matrices
Matrix = list[list[float | None]]


def kept(members: Sequence[Member]) -> Markup | None:
    """Source by run (or method): the share that is kept."""
    if not members:
        return None
    sizes = {name: source.num_sequences for member in members for name, source in member.sources.items()}
    names = sorted(sizes, key=lambda name: (-sizes[name], name))[:MOST_SOURCES]
    groups = _columns(members)
    values = [[_mean([_share(member, name) for member in group]) for _, group in groups] for name in names]
    highest = max((value for line in values for value in line if value is not None), default=1.0) or 1.0
    title = "Which share of each source every run keeps"
    columns = [name for name, _ in groups]
    return charts.matrix(names, columns, values, title=title, format_value=lambda value: f"{value:.0%}", limits=(0.0, highest))


def overlap(members: Sequence[Member], round_number: int) -> tuple[Markup | None, Matrix]:
    """Jaccard of every two selections, drawn, and the values by method (mean over pairs)."""
    if len(members) < 2:
        return None, []
    import duckdb

    with duckdb.connect(":memory:") as con:
        reach(con, members[0].run.lake)
        _, shares = changes.overlap(con, [member.run for member in members], round_number)
    values: Matrix = [[None if i == j else jaccard(shares[i][j], shares[j][i]) for j in range(len(members))] for i in range(len(members))]
    title = "Jaccard overlap of the selections"
    return _drawn(members, values, title, "{:.0%}"), by_method(members, values)


def correlation(members: Sequence[Member]) -> Markup | None:
    """Spearman of every two runs' scores, drawn."""
    return _drawn(members, correlations(members), "Rank correlation of the scores", "{:+.2f}") if len(members) > 1 else None


def correlations(members: Sequence[Member]) -> Matrix:
    """Spearman of every two runs' scores on the sampled sequences that both scored; None where there are too few."""
    values: Matrix = [[None] * len(members) for _ in members]
    for i, a in enumerate(members):
        for j, b in enumerate(members[:i]):
            if a.sample is None or b.sample is None:
                continue
            _, at_a, at_b = np.intersect1d(a.sample[0], b.sample[0], assume_unique=True, return_indices=True)
            if len(at_a) > 2:
                values[i][j] = values[j][i] = spearman(a.sample[1][at_a], b.sample[1][at_b])
    return values


def jaccard(share_of_a: float, share_of_b: float) -> float:
    """|A and B| / |A or B|, from which share of each the other has too."""
    return 1 / (1 / share_of_a + 1 / share_of_b - 1) if share_of_a and share_of_b else 0.0


def by_chance(share: float) -> float:
    """The Jaccard overlap of two selections that take the same share independently of each other."""
    return share / (2 - share)


def by_method(members: Sequence[Member], values: Matrix) -> Matrix:
    """Means over pairs of runs: of equal seeds between two methods, of different seeds within one."""
    methods = methods_of(members)

    def mean(a: str, b: str) -> float | None:
        pairs = [
            values[i][j]
            for i, one in enumerate(members)
            for j, other in enumerate(members)
            if i != j and (one.config.method, other.config.method) == (a, b) and (a == b or one.config.seed == other.config.seed)
        ]
        return _mean(pairs)

    return [[mean(a, b) for b in methods] for a in methods]


def numbered(members: Sequence[Member]) -> tuple[list[str], list[str]]:
    """The methods as names of rows and of columns; where a name is longer than a column is wide, columns have numbers."""
    methods = methods_of(members)
    if max(map(len, methods)) <= LONGEST_COLUMN:
        return methods, methods
    return [f"{number} {method}" for number, method in enumerate(methods, start=1)], [str(number + 1) for number in range(len(methods))]


def _drawn(members: Sequence[Member], values: Matrix, title: str, form: str) -> Markup:
    if len(members) <= MOST_RUNS:
        rows, columns = [member.label for member in members], [str(member.number) for member in members]
    else:
        rows, columns = numbered(members)
        values = by_method(members, values)
    return charts.matrix(rows, columns, values, title=title, format_value=_written(form))


def _written(form: str) -> Callable[[float], str]:
    return lambda value: form.format(round(value, 2) + 0.0).replace("-", "\N{MINUS SIGN}")  # no minus before zero


def _columns(members: Sequence[Member]) -> list[tuple[str, list[Member]]]:
    """What the columns stand for: each run by its number, or, of many runs, each method."""
    if len(members) <= MOST_RUNS:
        return [(str(member.number), [member]) for member in members]
    methods = methods_of(members)
    _, names = numbered(members)
    return [(name, [member for member in members if member.config.method == method]) for name, method in zip(names, methods, strict=True)]


def _share(member: Member, name: str) -> float | None:
    source = member.sources.get(name)
    return source.num_selected / source.num_sequences if source else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
