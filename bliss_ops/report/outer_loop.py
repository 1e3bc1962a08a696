"""Curves of the bilevel training: what every outer step logged, drawn for the report and for the explorer."""

import math
from collections.abc import Sequence
from typing import Any

from bliss_ops.report import charts
from bliss_ops.report.curves import Row


def training_charts(outer: list[Row]) -> list[tuple[str, str, Any]]:
    """(title, explanation, chart) of every curve the outer loop logged."""
    plans: Sequence[tuple[str, str, dict[str, str], dict[str, Any]]] = (
        (
            "Outer loss",
            "Loss of the proxy on the validation set (what the score model is trained to lower), and on the weighted batch.",
            {"validation_loss": "validation", "proxy_loss": "batch"},
            {"right": 84},
        ),
        (
            "Effective sample size",
            "Share of the batch that carries the weight: 100 % is uniform, a few per cent is a collapse.",
            {"effective_sample_size": "effective sample size"},
            {"y_range": (0.0, 1.0), "format_y": lambda value: f"{value:.0%}"},
        ),
        (
            "Hypergradient norm",
            "Size of the score model's gradient.",
            {"hypergradient_norm": "hypergradient norm"},
            {},
        ),
        (
            "Alignment and score",
            "Rank correlation of the score with the measured influence: is the score model learning the right thing?",
            {"alignment_score_correlation": "correlation"},
            {"y_range": (-1.0, 1.0)},
        ),
    )
    drawn = []
    for title, explanation, names, options in plans:
        series = []
        for (key, name), style in zip(names.items(), ("first", "second"), strict=False):
            points = charts.thinned([(row["step"], row[key]) for row in outer if key in row and math.isfinite(row[key])])
            if points:
                series.append(charts.Series(name, [points], style))
        if series:
            drawn.append((title, explanation, charts.line_chart(series, title=title, x_label="outer step", **options)))
    return drawn
