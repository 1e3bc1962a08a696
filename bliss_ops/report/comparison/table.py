"""The comparison as a Markdown table, to put into a README: what the page says in its tables, and its caveats below."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bliss_ops.report.charts import signed
from bliss_ops.report.comparison.losses import Mean

if TYPE_CHECKING:
    from bliss_ops.report.comparison.summary import MethodRow

UNITS = ((1e18, "EFLOP"), (1e15, "PFLOP"), (1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"))


def markdown(rows: Sequence["MethodRow"], baseline: str, caveats: Sequence[str]) -> str:
    """One row per method, best loss first."""
    titles = [
        "method", "seeds", "held-out loss", f"difference from {baseline}", "", "speed-up, tokens", "speed-up, FLOPs with selection",
        "selection FLOPs", "selection time", "peak memory",
    ]  # fmt: skip
    lines = ["| " + " | ".join(titles) + " |", "| --- | ---: | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |"]
    for row in rows:
        loss, cost = row.loss, row.cost
        cells = [
            row.method,
            str(len(loss.seeds)),
            with_error(Mean(loss.mean, loss.standard_error, len(loss.seeds)), 4),
            with_error(row.difference, 4, sign=True) if row.difference else "",
            loss.verdict,
            row.by_tokens,
            row.by_flops,
            flops(cost.selection_flops) if cost else "",
            seconds(cost.selection_seconds) if cost else "",
            memory(cost.peak_memory_bytes) if cost else "",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *caveats]) + "\n"


def with_error(mean: Mean | None, digits: int, *, sign: bool = False) -> str:
    """A mean with its standard error, where it has one."""
    if mean is None:
        return "\N{EN DASH}"
    value = signed(mean.value, digits) if sign else f"{mean.value:.{digits}f}"
    return value if mean.standard_error is None else f"{value} \N{PLUS-MINUS SIGN} {mean.standard_error:.{digits}f}"


def flops(value: float) -> str:
    """FLOPs with a unit."""
    size, unit = next(((size, unit) for size, unit in UNITS if value >= size), (1.0, "FLOP"))
    return "0" if value == 0 else f"{value / size:.3g} {unit}"


def seconds(value: float | None) -> str:
    """A duration in the unit a person would take."""
    if value is None:
        return "\N{EN DASH}"
    if value >= 5400:
        return f"{value / 3600:.1f} h"
    return f"{value / 60:.1f} min" if value >= 90 else f"{value:.0f} s"


def memory(value: int | None) -> str:
    return "\N{EN DASH}" if value is None else f"{value / 2**30:.1f} GiB" if value >= 2**30 else f"{value / 2**20:.0f} MiB"
