"""The results file as tables for docs/reliability.md, between its two marks."""

from collections.abc import Sequence
from pathlib import Path

from tests.faults.blows import FAULTS
from tests.faults.rows import GOOD, STAGE_SECONDS, Outcome, Row

BEGIN, END = "<!-- made by `python -m tests.faults --write`: begin -->", "<!-- made by `python -m tests.faults --write`: end -->"

COLUMNS = (
    "broken, once in every stage",
    "stages hit",
    "at work",
    "same try",
    "a later try",
    "red",
    "longest from blow to green",
    "noticed within",
    "lost, doubled, orphaned, stuck, late",
    "row",
    "date",
)
BOUND = (
    f"A stage is *late* when its task ends more than {STAGE_SECONDS:.0f} s after what is stated as *noticed within*; its own work, its "
    "retries and waiting for a place in a pool take place in that time."
)
LEGEND = "Each stage: tries, and seconds from the blow to the end of its task; `·` nothing of the kind was there to hit, `✗` red."


def write(document: Path, rows: Sequence[Row]) -> None:
    """Put the tables between the marks of a document; the rest stays."""
    before, rest = document.read_text().split(BEGIN)
    document.write_text(f"{before}{BEGIN}\n\n{markdown(rows)}\n{END}{rest.split(END)[1]}")


def markdown(rows: Sequence[Row]) -> str:
    """A table of what came of each fault, and one of every stage under it."""
    known = {row.fault: row for row in rows}
    ordered = [known[name] for name in FAULTS if name in known]
    missing = [FAULTS[name].words for name in FAULTS if name not in known]
    lines = [
        f"| {' | '.join(COLUMNS)} |",
        "|---" * len(COLUMNS) + "|",
        *map(_summary, ordered),
        "",
        BOUND,
        "",
    ]
    if missing:
        lines += [f"Not run yet: {'; '.join(missing)}.", ""]
    stages = list(dict.fromkeys(outcome.stage for row in ordered for outcome in sorted(row.stages, key=_order)))
    lines += [
        LEGEND,
        "",
        "| stage | " + " | ".join(row.fault for row in ordered) + " |",
        "|---|" + "---|" * len(ordered),
        *(_stage(stage, ordered) for stage in stages),
        "",
    ]
    return "\n".join(lines)


def _summary(row: Row) -> str:
    hit = [outcome for outcome in row.stages if outcome.hit]
    green = [outcome for outcome in hit if outcome.state in GOOD]
    longest = max((outcome for outcome in green), key=lambda outcome: outcome.seconds or 0.0, default=None)
    later = sum(outcome.tries > 1 for outcome in green)
    at_work = sum(outcome.was_running for outcome in hit)
    counts = f"{len(hit)} | {at_work} | {len(green) - later} | {later} | {len(hit) - len(green)}"
    longest_words = f"{longest.stage} {longest.seconds or 0:.0f} s" if longest else ""
    stated = f"{FAULTS[row.fault].noticed_within:.0f} s"
    problems = "; ".join(row.problems) or "nothing"
    return f"| {row.words} | {counts} | {longest_words} | {stated} | {problems} | {row.seconds:.0f} s | {row.date} |"


def _stage(stage: str, rows: Sequence[Row]) -> str:
    found = [next((outcome for outcome in row.stages if outcome.stage == stage), None) for row in rows]
    return f"| {stage} | " + " | ".join(map(_cell, found)) + " |"


def _cell(outcome: Outcome | None) -> str:
    if outcome is None or not outcome.hit:
        return "·"
    if outcome.state not in GOOD:
        return "✗"
    return f"{outcome.tries}, {outcome.seconds or 0:.0f} s"


def _order(outcome: Outcome) -> int:
    from bliss_ops.pipeline import CORPUS_STAGES, ROUND_STAGES

    names = [stage.command for stage in (*CORPUS_STAGES, *ROUND_STAGES)] + ["rescore", "load-scores"]
    return names.index(outcome.stage)
