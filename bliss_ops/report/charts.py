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

    @property
    def points(self) -> list[Point]:
        return [point for piece in self.pieces for point in piece]


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

    def axes(self, x_label: str, format_y: Callable[[float], str]) -> list[str]:
        """Faint horizontal lines with their values, ticks below, and the name of the x axis."""
        parts = []
        for tick in ticks(*self.y_range):
            y = self.y(tick)
            parts.append(f'<line class="grid" x1="{self.left:.1f}" x2="{self.width - self.right:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text class="tick" x="{self.left - 8:.1f}" y="{y + 4:.1f}" text-anchor="end">{escape(format_y(tick))}</text>')
        base = self.height - self.bottom
        parts.append(f'<line class="axis" x1="{self.left:.1f}" x2="{self.width - self.right:.1f}" y1="{base:.1f}" y2="{base:.1f}"/>')
        parts += [
            f'<text class="tick" x="{self.x(tick):.1f}" y="{base + 17:.1f}" text-anchor="middle">{number(tick)}</text>'
            for tick in ticks(*self.x_range, count=7, whole=x_label.endswith("step"))
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
    ends = spread_labels([(one, frame.y(one.points[-1][1])) for one in series], gap=16)
    for one in series:
        for piece in one.pieces:
            path = " ".join(f"{'L' if i else 'M'}{frame.x(x):.1f} {frame.y(y):.1f}" for i, (x, y) in enumerate(piece))
            parts.append(f'<path class="line {one.style}" d="{path}"><title>{escape(one.name)}</title></path>')
        for x, y in one.points if one.markers else ():
            parts.append(
                f'<circle class="dot {one.style}" cx="{frame.x(x):.1f}" cy="{frame.y(y):.1f}" r="3.2">'
                f"<title>{escape(one.name)}, {escape(x_label)} {number(x)}: {y:.4g}</title></circle>"
            )
        if right > 40:
            parts.append(label(f"name {one.style}", frame.x(one.points[-1][0]) + 10, ends[one.name] + 4, one.name))
    return svg(frame, title, parts)


def histogram(edges: Sequence[float], counts: Sequence[int], selected: Sequence[int], threshold: float | None, *, title: str) -> Markup:
    """Bars of all scores, the selected part of each in the accent colour, and the threshold as a line."""
    frame = Frame(1080, 300, (edges[0], edges[-1]), (0, max(counts) * 1.14 or 1), left=64)
    parts = frame.axes("score", lambda value: f"{value:,.0f}")
    for low, high, count, chosen in zip(edges, edges[1:], counts, selected, strict=False):
        if count:
            x, width = frame.x(low) + 0.6, max(frame.x(high) - frame.x(low) - 1.2, 0.5)
            tip = f"<title>{number(low)} to {number(high)}: {count:,} sequences, {chosen:,} selected</title>"
            for value, base, style in ((count - chosen, chosen, "rest"), (chosen, 0, "chosen")):
                top = frame.y(base + value)
                parts.append(
                    f'<rect class="{style}" x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" height="{frame.y(base) - top:.1f}">{tip}</rect>'
                )
    if threshold is not None and edges[0] <= threshold <= edges[-1]:
        x = frame.x(threshold)
        anchor, offset = ("end", -7) if x > frame.width * 0.7 else ("start", 7)
        parts.append(f'<line class="threshold" x1="{x:.1f}" x2="{x:.1f}" y1="{frame.top:.1f}" y2="{frame.height - frame.bottom:.1f}"/>')
        parts.append(label("name threshold-name", x + offset, frame.top + 11, f"threshold {threshold:.4g}", anchor=anchor))
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


def label(style: str, x: float, y: float, text: str, *, anchor: str = "start") -> str:
    return f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def svg(frame: Frame, title: str, parts: Sequence[str]) -> Markup:
    """The parts as one figure; what was text from outside has been escaped by then."""
    box = f'viewBox="0 0 {frame.width:.0f} {frame.height:.0f}"'
    style = "chart broad" if frame.width > 600 else "chart"  # broad charts scroll on a narrow screen, instead of shrinking past legibility
    return Markup(f'<svg class="{style}" {box} role="img" aria-label="{escape(title)}">{"".join(parts)}</svg>')  # noqa: S704


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
