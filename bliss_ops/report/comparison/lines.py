"""Lines by tokens: a method's seeds are thin lines under their mean, and a method has the same colour in every chart."""

import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from bliss_ops.report import charts
from bliss_ops.report.comparison.curves import Point

STYLES = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
UNITS = ((1e9, "billions"), (1e6, "millions"), (1e3, "thousands"))
Lines = Mapping[str, Sequence[tuple[str, Sequence[Point]]]]  # method -> (run, points)


def styles_of(methods: Sequence[str]) -> dict[str, str]:
    """A class of style.css for each method; the ninth has the first one's again."""
    return {method: STYLES[number % len(STYLES)] for number, method in enumerate(dict.fromkeys(methods))}


def lines_by_tokens(lines: Lines, styles: Mapping[str, str], *, title: str) -> Markup | None:
    """The chart, or None where there is not a single point."""
    lines = {method: [(name, points) for name, points in runs if points] for method, runs in lines.items()}
    most = max((tokens for runs in lines.values() for _, points in runs for tokens, _ in points), default=0.0)
    if not most:
        return None
    size, unit = next(((size, unit) for size, unit in UNITS if most >= 2 * size), (1.0, ""))
    series: list[charts.Series] = []
    for method, runs in lines.items():
        scaled = [(name, [(tokens / size, value) for tokens, value in points]) for name, points in runs]
        if len(scaled) == 1:
            series.append(charts.Series(scaled[0][0], [scaled[0][1]], styles[method], markers=True))
            continue
        series += [charts.Series(name, [points], styles[method], thin=True) for name, points in scaled]
        if means := mean_line([points for _, points in scaled]):
            series.append(charts.Series(f"{method}, {len(scaled)} runs", [means], styles[method], markers=True))
    label = f"training tokens, {unit}" if unit else "training tokens"
    longest = max(len(one.name) for one in series if not one.thin) if any(not one.thin for one in series) else 0
    return charts.line_chart(series, title=title, x_label=label, width=1080, height=380, right=max(60.0, min(260.0, 24 + 7.4 * longest)))


def mean_line(lines: Sequence[Sequence[Point]]) -> list[Point]:
    """The mean wherever all of them have a point."""
    values = [dict(points) for points in lines if points]
    shared = sorted(set.intersection(*(set(one) for one in values))) if values else []
    return [(tokens, math.fsum(one[tokens] for one in values) / len(values)) for tokens in shared]
