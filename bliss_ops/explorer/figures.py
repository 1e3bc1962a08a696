"""Facts of the explorer as figures, drawn by the report's charts: inline SVG whose colours are the page's own, in light and in dark."""

from collections.abc import Sequence

from markupsafe import Markup

from bliss_ops.explorer.snapshots import Row
from bliss_ops.report import charts

SPARK_BARS = 40


def spark(bins: Sequence[Row], threshold: float | None) -> Markup:
    """A histogram the size of a word, for a row of a table: selected part in the accent colour."""
    width, height = 160.0, 34.0
    size = max(1, len(bins) // SPARK_BARS)
    groups = [bins[i : i + size] for i in range(0, len(bins), size)]
    counts = [(sum(b["num_sequences"] for b in group), sum(b["num_selected"] or 0 for b in group)) for group in groups]
    highest = max((count for count, _ in counts), default=0) or 1
    step = width / max(len(counts), 1)
    parts = []
    for i, (count, chosen) in enumerate(counts):
        for value, base, style in ((count - chosen, chosen, "rest"), (chosen, 0, "chosen")):
            if value:
                top, tall = height * (1 - (base + value) / highest), height * value / highest
                parts.append(f'<rect class="{style}" x="{i * step:.2f}" y="{top:.2f}" width="{step - 0.7:.2f}" height="{tall:.2f}"/>')
    if threshold is not None and bins and bins[0]["lowest"] <= threshold <= bins[-1]["highest"]:
        x = (threshold - bins[0]["lowest"]) / ((bins[-1]["highest"] - bins[0]["lowest"]) or 1) * width
        parts.append(f'<line class="threshold" x1="{x:.2f}" x2="{x:.2f}" y1="0" y2="{height:.0f}"/>')
    box = f'viewBox="0 0 {width:.0f} {height:.0f}"'
    return Markup(f'<svg class="spark" {box} role="img" aria-label="score distribution">{"".join(parts)}</svg>')  # noqa: S704 - numbers only


def distribution(bins: Sequence[Row], threshold: float | None) -> Markup:
    """The histogram of a score run, threshold drawn."""
    edges = [b["lowest"] for b in bins] + [bins[-1]["highest"]]
    if edges[-1] <= edges[0]:  # all scores are equal
        edges = [edges[0] - 0.5 + i / len(bins) for i in range(len(bins) + 1)]
    counts, selected = [b["num_sequences"] for b in bins], [b["num_selected"] or 0 for b in bins]
    return charts.histogram(edges, counts, selected, threshold, title="How many sequences have which score")


def lengths(columns: Sequence[Row], threshold: float | None) -> Markup:
    """Score against document length."""
    members = [
        charts.Band(
            f"{c['lowest_tokens']:,}\N{EN DASH}{c['highest_tokens']:,}", c["num_documents"], c["q10"], c["q50"], c["q90"], c["mean"]
        )
        for c in columns
    ]
    return charts.bands(members, threshold, title="Score against document length", x_label="tokens of the document")


def share(part: float, whole: float) -> Markup:
    """A share as a bar, for a cell of a table."""
    value = part / whole if whole else 0.0
    bars = f'<rect class="rest" width="100" height="8" rx="2"/><rect class="chosen" width="{100 * value:.2f}" height="8" rx="2"/>'
    label = f'role="img" aria-label="{value:.1%}"'
    return Markup(f'<svg class="share-bar" viewBox="0 0 100 8" preserveAspectRatio="none" {label}>{bars}</svg>')  # noqa: S704 - numbers only


def deciles_of_both(counts: Sequence[Row], num_sampled: int) -> Markup:
    """Where the deciles of two score runs meet, in shares of each decile of the first."""
    table: list[list[float | None]] = [[0.0] * 10 for _ in range(10)]
    for count in counts:
        table[count["decile_a"] - 1][count["decile_b"] - 1] = count["num_sequences"] / max(num_sampled / 10, 1)
    names = [{1: "best", 10: "worst"}.get(k, f"{k}") for k in range(1, 11)]
    return charts.matrix(names, names, table, title="Deciles of both score runs", format_value=lambda value: f"{value:.0%}")


def overlaps(names: Sequence[str], short: Sequence[str], pairs: dict[tuple[str, str], float]) -> Markup:
    """How much two selections share, each with each: Jaccard, 1 is the same selection."""
    values = [[1.0 if a == b else pairs.get((a, b), pairs.get((b, a))) for b in names] for a in names]
    return charts.matrix(
        short, [str(i + 1) for i in range(len(names))], values, title="Selection overlap", format_value=lambda v: f"{v:.2f}"
    )


def shares_by_round(sources: Sequence[str], rounds: Sequence[int], kept: dict[tuple[str, int], float]) -> Markup:
    """How much of each source every round kept."""
    values = [[kept.get((source, number)) for number in rounds] for source in sources]
    highest = max((v for line in values for v in line if v is not None), default=1.0) or 1.0
    return charts.matrix(
        sources,
        [f"round {number}" for number in rounds],
        values,
        title="Share of each source kept, by round",
        format_value=lambda value: f"{value:.0%}",
        limits=(0.0, highest),
    )
