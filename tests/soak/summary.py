"""The verdict: `summary.json` for a program, `summary.md` and `timeline.svg` for a person."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bliss_ops.report import charts
from bliss_ops.report.charts import Series
from tests.soak import timeline as timelines
from tests.soak.invariants import Check

MOST_FINDINGS = 20
STYLE = (
    "svg{font:12px system-ui,sans-serif;background:#fff}.line{fill:none;stroke:#888;stroke-width:1.6}.line.first{stroke:#1f5fa8}"
    ".line.second{stroke:#b8612a}.line.third{stroke:#3b7d4f}.grid{stroke:#e4e4e4}.axis{stroke:#777}.tick,.label{fill:#555;font-size:11px}"
    ".kill{stroke:#c03030;stroke-opacity:.45}.name{font-size:11px}"
)


def write(directory: Path, facts: dict[str, Any], checks: Sequence[Check]) -> bool:
    """Write all three; returns whether everything held."""
    held = all(check.held for check in checks)
    verdict = {"held": held, **facts, "checks": [asdict(check) for check in checks]}
    (directory / "summary.json").write_text(json.dumps(verdict, indent=2, default=str) + "\n")
    (directory / "summary.md").write_text(markdown(held, facts, checks))
    (directory / "timeline.svg").write_text(chart(directory / "timeline.jsonl"))
    return held


def markdown(held: bool, facts: dict[str, Any], checks: Sequence[Check]) -> str:
    lines = [f"# Soak: {'everything held' if held else 'NOT everything held'}", ""]
    lines += [f"- {name}: {_words(value)}" for name, value in facts.items()]
    lines += ["", "| invariant | held | figures |", "|---|---|---|"]
    for check in checks:
        flat = {name: value for name, value in check.figures.items() if not isinstance(value, dict)}
        lines.append(f"| {check.name} | {'yes' if check.held else '**no**'} | {_words(flat)} |")
    for check in checks:
        nested = {name: value for name, value in check.figures.items() if isinstance(value, dict)}
        if nested or check.findings:
            lines += ["", f"## {check.name}"]
        if nested:
            lines += ["", *_table(nested)]
        if check.findings:
            lines += ["", *(f"- {finding}" for finding in check.findings[:MOST_FINDINGS])]
            lines += [f"- ... and {len(check.findings) - MOST_FINDINGS} more"] if len(check.findings) > MOST_FINDINGS else []
    return "\n".join(lines) + "\n"


def _table(rows: dict[str, dict[str, Any]]) -> list[str]:
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [f"| | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    return lines + [f"| {name} | {' | '.join(_words(row.get(column, '')) for column in columns)} |" for name, row in rows.items()]


def chart(timeline: Path) -> str:
    """Memory of the stack over the time, with a line at each kill."""
    samples, kills = timelines.read(timeline, "sample"), timelines.read(timeline, "kill")
    if len(samples) < 2:
        return "<svg xmlns='http://www.w3.org/2000/svg'/>\n"
    kinds = ("api-server", "scheduler", "ray dashboard")
    series = [Series("whole stack", [[(s["seconds"] / 60, s["megabytes"]) for s in samples]])]
    for kind, style in zip(kinds, ("second", "third", "fourth"), strict=True):
        series.append(Series(kind, [[(s["seconds"] / 60, s["by_kind"].get(kind, 0.0)) for s in samples]], style=style))
    drawn = str(
        charts.line_chart(
            series, title="Memory of the stack, MB", x_label="minutes", width=1080, height=360, right=110, format_y="{:,.0f}".format
        )
    )
    frame = charts.Frame(1080, 360, charts.padded([s["seconds"] / 60 for s in samples], 0.0), (0, 1), right=110)
    lines = "".join(
        f'<line class="kill" x1="{frame.x(kill["seconds"] / 60):.1f}" x2="{frame.x(kill["seconds"] / 60):.1f}" y1="14" y2="324">'
        f"<title>{kill['victim']} at {kill['seconds']:.0f} s</title></line>"
        for kill in kills
    )
    opened, _, rest = drawn.partition(">")
    return f'{opened} xmlns="http://www.w3.org/2000/svg"><style>{STYLE}</style>{lines}{rest}\n'


def counted(timeline: Path) -> dict[str, Any]:
    """How much of what there was."""
    events = timelines.read(timeline)
    return {
        "kills": dict(Counter(event["victim"] for event in events if event["kind"] == "kill")),
        "kills without a victim": sum(event["kind"] == "no victim" for event in events),
        "DAG runs": dict(Counter(dag for dag, _ in {(event["dag"], event["run"]) for event in events if event["kind"] == "dag run"})),
    }


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(
            f"{name} {_words(each)}" if not isinstance(each, dict) else f"{name}: {_words(each)}" for name, each in value.items()
        )
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
