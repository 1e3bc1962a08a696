"""The drawings of a comparison's page that belong to no single table: curves by tokens, and how scores are spread."""

from collections.abc import Sequence

from markupsafe import Markup

from bliss_ops.report import charts
from bliss_ops.report.comparison import overlap
from bliss_ops.report.comparison.lines import lines_by_tokens, styles_of
from bliss_ops.report.comparison.members import Member
from bliss_ops.report.comparison.tasks import METRICS


def curves(members: Sequence[Member], kind: str) -> Markup | None:
    """A line per run, by training tokens; several seeds of a method are thin lines under their mean."""
    lines: dict[str, list[tuple[str, list[tuple[float, float]]]]] = {}
    for member in members:
        lines.setdefault(member.config.method, []).append((member.run.name, getattr(member.curve, kind)))
    return lines_by_tokens(lines, styles_of(list(lines)), title="Held-out loss of the targets by training tokens")


def task_charts(members: Sequence[Member], methods: Sequence[str]) -> list[tuple[str, Markup]]:
    """Curves of the tasks (of their average, where there are several) where models between the first and the last were evaluated."""
    tasks = list(dict.fromkeys(row.task for member in members for row in member.tasks))
    found = []
    for task in tasks[-1:]:  # the average, or the only one
        for metric in METRICS:
            lines: dict[str, list[tuple[str, list[tuple[float, float]]]]] = {method: [] for method in methods}
            for member in members:
                points = [(float(row.num_tokens or 0), row.value) for row in member.tasks if (row.task, row.metric) == (task, metric)]
                lines[member.config.method].append((member.run.name, sorted(points)))
            if max((len(points) for runs in lines.values() for _, points in runs), default=0) > 1:
                chart = lines_by_tokens(lines, styles_of(methods), title=f"{task}, {metric} by training tokens")
                found += [(f"{task}: {metric}", chart)] if chart is not None else []
    return found


def examples(members: Sequence[Member]) -> list[Member]:
    """Runs whose scores are drawn: all of a few, else the first of each method."""
    scored = [member for member in members if member.distribution is not None]
    if len(scored) <= overlap.MOST_RUNS:
        return scored
    return list({member.config.method: member for member in reversed(scored)}.values())[::-1]


def histogram(member: Member) -> Markup:
    shown = member.distribution
    assert shown is not None
    threshold = member.counts["threshold"]
    title = f"Scores of {member.run.name}"
    return charts.histogram(shown.edges, shown.counts, shown.counts_selected, threshold, title=title, width=520, height=220)
