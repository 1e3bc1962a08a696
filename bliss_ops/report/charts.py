"""The report's charts as inline SVG: text is real text, colours are the page's CSS variables, so light and dark need no second figure.

Written by hand rather than by a plotting library because the page then owns every colour, font and tooltip, a chart weighs a few
kilobytes, and the report needs no import heavier than jinja2.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line of a chart; several pieces where it is interrupted (rounds). `style` is a class of style.css."""

    name: str
    pieces: Sequence[Sequence[Point]]
    style: str = "first"
    markers: bool = False
    thin: bool = False  # one of several under their mean: not named

    @property
    def points(self) -> list[Point]:
        return [point for piece in self.pieces for point in piece]


@dataclass(frozen=True)
class Band:
    """One column of `bands`: how the values are spread among the things of one kind or size."""

    name: str
    num_members: int
    low: float  # 10 % are below
    middle: float
    high: float  # 10 % are above
    mean: float


@dataclass(frozen=True)
class Part:
    """One piece of a bar of `stacked_bars`; `style` is a class of style.css."""

    style: str
    value: float
    tip: str


@dataclass(frozen=True)
class Frame:
    """A plot area with its scales; everything is in the units of the SVG's view box."""

    width: float
    height: float
    x_range: tuple[float, float]
    y_range: tuple[float, float]
    left: float = 54
    right: float = 16
    top: float = 14
    bottom: float = 36

    def x(self, value: float) -> float:
        low, high = self.x_range
        return self.left + (value - low) / (high - low) * (self.width - self.left - self.right)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return self.height - self.bottom - (value - low) / (high - low) * (self.height - self.top - self.bottom)

    def rows(self, format_y: Callable[[float], str]) -> list[str]:
        """Faint horizontal lines with their values, and the base line."""
        parts = []
        for tick in ticks(*self.y_range):
            y = self.y(tick)
            parts.append(f'<line class="grid" x1="{self.left:.1f}" x2="{self.width - self.right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text class="tick" x="{self.left - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{escape(format_y(tick))}</text>')
        base = self.height - self.bottom
        parts.append(f'<line class="axis" x1="{self.left:.1f}" x2="{self.width - self.right:.1f}" y1="{base:.1f}" y2="{base:.1f}"/>')
        return parts

    def axes(self, x_label: str, format_y: Callable[[float], str]) -> list[str]:
        """The rows, ticks below, and the name of the x axis."""
        parts, base = self.rows(format_y), self.height - self.bottom
        parts += [
            f'<text class="tick" x="{self.x(tick):.1f}" y="{base + 17:.1f}" text-anchor="middle">{number(tick)}</text>'
            for tick in ticks(*self.x_range, count=7 if self.width > 400 else 4, whole=x_label.endswith("step"))
        ]
        parts.append(label("label", self.width - self.right, base + 32, x_label, anchor="end"))
        return parts


def line_chart(
    series: Sequence[Series],
    *,
    title: str,
    x_label: str = "step",
    width: float = 520,
    height: float = 220,
    y_range: tuple[float, float] | None = None,
    format_y: Callable[[float], str] | None = None,
    right: float = 16,
) -> Markup:
    """Lines over a shared x axis; a line with room to the right (`right`) is named at its end."""
    xs = [x for one in series for x, _ in one.points]
    frame = Frame(width, height, padded(xs, 0.0), y_range or padded([y for one in series for _, y in one.points], 0.06), right=right)
    parts = frame.axes(x_label, format_y or number)
    ends = spread_labels([(one, frame.y(one.points[-1][1])) for one in series if not one.thin], gap=16)
    for one in series:
        for piece in one.pieces:
            path = " ".join(f"{'L' if i else 'M'}{frame.x(x):.1f} {frame.y(y):.1f}" for i, (x, y) in enumerate(piece))
            parts.append(f'<path class="line {one.style}{" thin" if one.thin else ""}" d="{path}"><title>{escape(one.name)}</title></path>')
        for x, y in one.points if one.markers else ():
            parts.append(
                f'<circle class="dot {one.style}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3.2">'
                f"<title>{escape(one.name)}, {escape(x_label)} {number(x)}: {y:.4g}</title></circle>"
            )
        if right > 40 and not one.thin:
            parts.append(label(f"name {one.style}", frame.x(one.points[-1][0]) + 10, ends[one.name] + 4, one.name))
    return svg(frame, title, parts)


def histogram(
    edges: Sequence[float],
    counts: Sequence[int],
    selected: Sequence[int],
    threshold: float | None,
    *,
    title: str,
    width: float = 1080,
    height: float = 300,
) -> Markup:
    """Bars of all scores, the selected part of each in the accent colour, and the threshold as a line."""
    frame = Frame(width, height, (edges[0], edges[-1]), (0, max(counts) * 1.14 or 1), left=64)
    parts = frame.axes("score", lambda value: f"{value:,.0f}")
    for low, high, count, chosen in zip(edges, edges[1:], counts, selected, strict=False):
        if count:
            x, thickness = frame.x(low) + 0.6, max(frame.x(high) - frame.x(low) - 1.2, 0.5)
            tip = f"<title>{number(low)} to {number(high)}: {count:,} sequences, {chosen:,} selected</title>"
            for value, base, style in ((count - chosen, chosen, "rest"), (chosen, 0, "chosen")):
                top = frame.y(base + value)
                box = f'x="{x:.1f}" y="{top:.1f}" width="{thickness:.1f}" height="{frame.y(base) - top:.1f}"'
                parts.append(f'<rect class="{style}" {box}>{tip}</rect>')
    if threshold is not None and edges[0] <= threshold <= edges[-1]:
        x = frame.x(threshold)
        name = f"threshold {threshold:.4g}"
        anchor, offset = ("end", -7) if x + 7 + 7.4 * len(name) > frame.width else ("start", 7)
        parts.append(f'<line class="threshold" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.top:.1f}" y2="{frame.height - frame.bottom:.1f}"/>')
        parts.append(label("name threshold-name", x + offset, frame.top + 11, name, anchor=anchor))
    return svg(frame, title, parts)


def scatter(
    points: Sequence[tuple[float, float, bool]],
    trend: Sequence[tuple[float, float, float]],
    level: tuple[float, str],
    *,
    title: str,
    x_label: str,
    width: float = 1080,
    height: float = 320,
) -> Markup:
    """Points (x in per cent, y, selected) with the means of neighbours (x, y, standard error) over them and a level to hold them against.

    A few far values would squeeze all others into one line: the y axis holds 98 in 100 of them, the rest lie on its edge.
    """
    ys = sorted(y for _, y, _ in points)
    core = [*ys[len(ys) // 100 : len(ys) - len(ys) // 100], *(y + sign * error for _, y, error in trend for sign in (-1, 1))]
    low, high = padded(core, 0.06)
    frame = Frame(width, height, (0.0, 100.0), (low, high), left=64, right=124)
    parts = frame.axes(x_label, number)
    for x, y, chosen in points:
        tip = f"<title>score rank {x:.0f} %, influence {y:.3g}{', selected' if chosen else ''}</title>"
        position = f'cx="{frame.x(x):.1f}" cy="{frame.y(min(max(y, low), high)):.1f}"'
        parts.append(f'<circle class="probe{" chosen" if chosen else ""}" {position} r="3.4">{tip}</circle>')
    value, name = level
    if low <= value <= high:
        y = frame.y(value)
        parts.append(f'<line class="threshold" x1="{frame.left:.1f}" x2="{width - frame.right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(label("name threshold-name", width - frame.right + 8, y + 4, name))
    path = " ".join(f"{'L' if i else 'M'}{frame.x(x):.1f} {frame.y(y):.1f}" for i, (x, y, _) in enumerate(trend))
    parts.append(f'<path class="line second" d="{path}"/>')
    for x, y, error in trend:
        at, top, bottom = frame.x(x), frame.y(y + error), frame.y(y - error)
        parts.append(f'<line class="error" x1="{at:.1f}" x2="{at:.1f}" y1="{top:.1f}" y2="{bottom:.1f}"/>')
        tip = f"<title>mean influence around score rank {x:.0f} %: {y:.3g} \N{PLUS-MINUS SIGN} {error:.2g}</title>"
        parts.append(f'<circle class="dot second" cx="{at:.1f}" cy="{frame.y(y):.1f}" r="4.5">{tip}</circle>')
    return svg(frame, title, parts)


def strip(quantiles: Sequence[float], mean: float, limits: tuple[float, float], threshold: float | None) -> Markup:
    """One row of the table of sources: 5-95 % as a line, the middle half as a bar, the mean as a dot, the threshold as a tick."""
    width, height = 300.0, 22.0
    low, high = limits

    def x(value: float) -> float:
        return 6 + (value - low) / (high - low) * (width - 12)

    p5, p25, p50, p75, p95 = (x(value) for value in quantiles)
    parts = [
        f"<title>mean {mean:.4g}; 5 %, 25 %, 50 %, 75 %, 95 %: {', '.join(f'{value:.4g}' for value in quantiles)}</title>",
        f'<line class="whisker" x1="{p5:.1f}" x2="{p95:.1f}" y1="11" y2="11"/>',
        f'<rect class="box" x="{p25:.1f}" y="5" width="{max(p75 - p25, 1):.1f}" height="12" rx="2"/>',
        f'<line class="median" x1="{p50:.1f}" x2="{p50:.1f}" y1="5" y2="17"/>',
        f'<circle class="mean" cx="{x(mean):.1f}" cy="11" r="3.4"/>',
    ]
    if threshold is not None and low <= threshold <= high:
        parts.insert(1, f'<line class="threshold" x1="{x(threshold):.1f}" x2="{x(threshold):.1f}" y1="0" y2="22"/>')
    return Markup(f'<svg class="strip" viewBox="0 0 {width:.0f} {height:.0f}" role="img" preserveAspectRatio="none">{"".join(parts)}</svg>')  # noqa: S704


def bands(
    columns: Sequence[Band],
    threshold: float | None = None,
    *,
    title: str,
    x_label: str,
    members: str = "documents",
    width: float = 1080,
    height: float = 280,
) -> Markup:
    """A column each: 10-90 % as a soft bar, the median as a line, the mean as a dot, and how many there are below its name."""
    values = [value for column in columns for value in (column.low, column.high, column.mean)]
    frame = Frame(width, height, (0, max(len(columns), 1)), padded(values or [0.0], 0.06), left=64, bottom=54)
    parts = frame.rows(number)
    base, thickness = height - frame.bottom, min(46.0, 0.6 * (frame.x(1) - frame.x(0)))
    for position, column in enumerate(columns):
        x = frame.x(position + 0.5)
        low, middle, high, mean = (frame.y(value) for value in (column.low, column.middle, column.high, column.mean))
        tip = (
            f"<title>{escape(column.name)}: {column.num_members:,} {escape(members)}, mean {column.mean:.4g}; "
            f"10 %, 50 %, 90 %: {column.low:.4g}, {column.middle:.4g}, {column.high:.4g}</title>"
        )
        left, right, tallness = x - thickness / 2, x + thickness / 2, max(low - high, 1)
        parts += [
            f'<rect class="box" x="{left:.1f}" y="{high:.1f}" width="{thickness:.1f}" height="{tallness:.1f}" rx="3">{tip}</rect>',
            f'<line class="median" x1="{left:.1f}" x2="{right:.1f}" y1="{middle:.1f}" y2="{middle:.1f}"/>',
            f'<circle class="mean" cx="{x:.1f}" cy="{mean:.1f}" r="4">{tip}</circle>',
            label("tick", x, base + 17, column.name, anchor="middle"),
            label("tick count", x, base + 31, f"{column.num_members:,}", anchor="middle"),
        ]
    if threshold is not None and frame.y_range[0] <= threshold <= frame.y_range[1]:
        y = frame.y(threshold)
        parts.append(f'<line class="threshold" x1="{frame.left:.1f}" x2="{width - frame.right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(label("name threshold-name", width - frame.right, y - 6, f"threshold {threshold:.4g}", anchor="end"))
    parts.append(label("label", width - frame.right, base + 48, f"{x_label}; below, how many {members}", anchor="end"))
    return svg(frame, title, parts)


def matrix(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    *,
    title: str,
    format_value: Callable[[float], str],
    limits: tuple[float, float] = (0.0, 1.0),
) -> Markup:
    """A table of numbers, the larger the deeper the colour; None is an empty cell. Rows carry names, columns short ones."""
    left = 18 + 7.2 * max((len(name) for name in rows), default=0)
    cell_width, cell_height, top = min(74.0, max(46.0, (1050 - left) / max(len(columns), 1))), 30.0, 26.0
    low, high = limits
    frame = Frame(left + cell_width * len(columns) + 4, top + cell_height * len(rows) + 4, (0, 1), (0, 1))
    parts = [label("tick", left + cell_width * (c + 0.5), top - 9, name, anchor="middle") for c, name in enumerate(columns)]
    for r, (name, line) in enumerate(zip(rows, values, strict=True)):
        y = top + cell_height * r
        parts.append(label("row-name", left - 10, y + cell_height / 2 + 4, name, anchor="end"))
        for c, (column, value) in enumerate(zip(columns, line, strict=True)):
            if value is None:
                continue
            x, depth = left + cell_width * c, min(max((value - low) / (high - low), 0.0), 1.0)
            tip = f"<title>{escape(name)}, {escape(column)}: {escape(format_value(value))}</title>"
            box = f'x="{x + 1:.1f}" y="{y + 1:.1f}" width="{cell_width - 2:.1f}" height="{cell_height - 2:.1f}" rx="3"'
            parts.append(f'<rect class="cell" {box} fill-opacity="{0.05 + 0.5 * depth:.3f}">{tip}</rect>')  # deeper, and text is lost on it
            parts.append(label("cell-value", x + cell_width / 2, y + cell_height / 2 + 4, format_value(value), anchor="middle"))
    return svg(frame, title, parts, fixed=True)


def stacked_bars(rows: Sequence[tuple[str, Sequence[Part]]], *, title: str, width: float = 1080) -> Markup:
    """A bar a row, its parts side by side; all bars share one scale."""
    row_height, left = 26.0, 18 + 7.2 * max((len(name) for name, _ in rows), default=0)
    longest = max((sum(part.value for part in parts) for _, parts in rows), default=0) or 1
    frame = Frame(width, row_height * len(rows) + 6, (0, longest), (0, 1), left=left, right=90)
    drawn = []
    for r, (name, row) in enumerate(rows):
        y, at = row_height * r + 3, 0.0
        drawn.append(label("row-name", left - 10, y + 14, name, anchor="end"))
        for part in row:
            thickness = frame.x(at + part.value) - frame.x(at)
            if thickness > 0:
                box = f'x="{frame.x(at):.1f}" y="{y + 2:.1f}" width="{thickness:.1f}" height="{row_height - 10:.1f}"'
                drawn.append(f'<rect class="{part.style}" {box}><title>{escape(name)}: {escape(part.tip)}</title></rect>')
            at += part.value
        drawn.append(label("tick", frame.x(at) + 8, y + 14, number(at)))
    return svg(frame, title, drawn)


def label(style: str, x: float, y: float, text: str, *, anchor: str = "start") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def svg(frame: Frame, title: str, parts: Sequence[str], *, fixed: bool = False) -> Markup:
    """The parts as one figure, as wide as the page unless `fixed`; what was text from outside has been escaped by then."""
    box = f'viewBox="0 0 {frame.width:.0f} {frame.height:.0f}"'
    style = "chart broad" if frame.width > 600 else "chart"  # broad charts scroll on a narrow screen, instead of shrinking past legibility
    role = "img"
    if fixed:  # a table of numbers: they are read out one by one
        style, box, role = "chart fixed", f'{box} width="{frame.width:.0f}" height="{frame.height:.0f}"', "group"
    return Markup(f'<svg class="{style}" {box} role="{role}" aria-label="{escape(title)}">{"".join(parts)}</svg>')  # noqa: S704


def ticks(low: float, high: float, count: int = 5, *, whole: bool = False) -> list[float]:
    """Round values inside the range, about `count` of them; whole numbers only where fractions make no sense."""
    step = 10 ** math.floor(math.log10((high - low) / count))
    step *= min((1, 2, 2.5, 5, 10), key=lambda factor: abs((high - low) / (step * factor) - count))
    if whole:
        step = max(1, round(step))
    first = math.ceil(low / step - 1e-9)
    return [float(f"{first * step + k * step:.12g}") for k in range(int((high - first * step) / step + 1e-9) + 1)]


def number(value: float) -> str:
    """A tick's value: no more digits than it needs, thousands separated."""
    if value and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.0e}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:,.4f}".rstrip("0").rstrip(".") or "0"


def digits_for(spread: float) -> int:
    """Decimals that tell values apart when they differ by about `spread`."""
    return min(8, max(2, 2 - math.floor(math.log10(spread)))) if spread > 0 else 3


def signed(value: float, digits: int = 3) -> str:
    """With its sign, a real minus: differences and scores."""
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def plain(value: float) -> str:
    """Four digits that matter, a real minus."""
    return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


def padded(values: Sequence[float], share: float) -> tuple[float, float]:
    """A range that holds the values with a margin; never empty."""
    low, high = min(values), max(values)
    margin = (high - low) * share if high > low else max(abs(low), 1.0) * 0.1
    return low - margin, high + margin


def spread_labels(series: Sequence[tuple[Series, float]], gap: float) -> dict[str, float]:
    """Heights of the names at the lines' ends, moved apart where they would overlap."""
    heights: dict[str, float] = {}
    last = -math.inf
    for one, y in sorted(series, key=lambda item: item[1]):
        last = heights[one.name] = max(y, last + gap)
    return heights


def thinned(points: Sequence[Point], most: int = 300) -> list[Point]:
    """At most `most` points: means of neighbours, for lines longer than the chart is wide."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / most)
    chunks = [points[i : i + size] for i in range(0, len(points), size)]
    return [(sum(x for x, _ in chunk) / len(chunk), sum(y for _, y in chunk) / len(chunk)) for chunk in chunks]
