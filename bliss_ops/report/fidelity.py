"""Score fidelity for the report: the probes of a round as a picture, and Spearman overall and per source.

Measured by the stage `fidelity`; here it is only read, joined with the sources, and drawn.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup

from bliss_ops.fidelity import INFLUENCES
from bliss_ops.lake import Run
from bliss_ops.manifest import find_manifest
from bliss_ops.rank_correlation import midranks, spearman, spearman_standard_error
from bliss_ops.report import charts
from bliss_ops.report.facts import Facts
from bliss_ops.sharding import Metrics

ENOUGH_PROBES = 8  # below it a rank correlation is grey: its standard error is a third and more
PROBES = """
select c.source, i.score, i.influence, c.selected
from read_parquet($influences) i join candidates c using (sequence_id) order by i.sequence_id
"""


@dataclass(frozen=True)
class SourceFidelity:
    """The probes of one source."""

    name: str
    num_probes: int
    mean_influence: float
    spearman: float
    standard_error: float

    @property
    def is_enough(self) -> bool:
        return self.num_probes >= ENOUGH_PROBES


@dataclass(frozen=True)
class Fidelity:
    """One round's fidelity; `reason` says why there is none."""

    reason: str
    metrics: Metrics = field(default_factory=dict)
    sources: list[SourceFidelity] = field(default_factory=list)
    chart: Markup | None = None
    digits: int = 4  # decimals that tell influences apart

    @property
    def summary(self) -> dict[str, Any]:
        """What `summary.json` keeps."""
        if self.reason:
            return {"measured": False, "reason": self.reason}
        return self.metrics | {"by_source": {one.name: one.spearman for one in self.sources if one.is_enough}}


def read(run: Run, round_number: int, facts: Facts) -> Fidelity:
    """What the round's fidelity stage measured, by source."""
    here = run.round(round_number) / "fidelity"
    manifest = find_manifest(here)
    if manifest is None:
        return Fidelity(f"not measured yet: run `bliss fidelity {run.name} --round {round_number}`")
    if not manifest.metrics["measured"]:
        return Fidelity(manifest.metrics["reason"])
    rows = facts.con.execute(PROBES, {"influences": str(here / INFLUENCES)}).fetchall()
    source_M, score_M, influence_M, chosen_M = (np.array(column) for column in zip(*rows, strict=True))
    sources = []
    for name in np.unique(source_M):
        mine = source_M == name
        pair = score_M[mine], influence_M[mine]
        error = spearman_standard_error(*pair, seed=run.config.seed)
        sources.append(SourceFidelity(str(name), int(mine.sum()), float(pair[1].mean()), spearman(*pair), error))
    return Fidelity(
        "",
        manifest.metrics,
        sorted(sources, key=lambda one: (-one.num_probes, one.name)),
        _chart(score_M, influence_M, chosen_M, manifest.metrics["momentum_influence"]),
        charts.digits_for(float(influence_M.std())),
    )


def headline(summary: dict[str, Any]) -> str:
    """One line for a terminal."""
    if not summary["measured"]:
        return f"fidelity not measured: {summary['reason']}"
    value, error, probes = (summary[name] for name in ("spearman", "spearman_standard_error", "num_probes"))
    return f"fidelity {value:+.3f} +- {error:.3f}: Spearman of score and measured influence, {probes} probes of the {summary['model']}"


def _chart(score_M: np.ndarray, influence_M: np.ndarray, chosen_M: np.ndarray, momentum: float) -> Markup:
    """Every probe by the rank of its score, with the means of eight groups (four when there are few probes)."""
    rank_M = 100 * (midranks(score_M) - 0.5) / len(score_M)
    order = np.argsort(rank_M, kind="stable")
    groups = np.array_split(order, 8 if len(order) >= 96 else 4)
    trend = [
        (float(rank_M[group].mean()), float(influence_M[group].mean()), float(influence_M[group].std(ddof=1) / len(group) ** 0.5))
        for group in groups
        if len(group) > 1
    ]
    points = [(float(x), float(y), bool(chosen)) for x, y, chosen in zip(rank_M, influence_M, chosen_M, strict=True)]
    return charts.scatter(
        points,
        trend,
        (momentum, "a step on nothing"),
        title="Measured influence by rank of the score",
        x_label="score rank among the probes, %: the best on the right",
    )
