"""Zero-shot tasks for the report: what each model of a round reached, and which texts of the tasks it may have seen.

Measured by the stages `evaluate` and `check_contamination`; here it is only read and put into a table.
"""

from dataclasses import dataclass, field
from typing import Any

import pyarrow.parquet as pq

from bliss_ops import contamination
from bliss_ops.evaluation import RESULTS
from bliss_ops.evaluation.measures import ACCURACY, ACCURACY_NORM, AVERAGE, BITS_PER_BYTE, LOG_LIKELIHOOD, PERPLEXITY
from bliss_ops.lake import Run
from bliss_ops.manifest import find_manifest
from bliss_ops.sharding import Metrics

METRICS = (ACCURACY, ACCURACY_NORM, BITS_PER_BYTE, PERPLEXITY)


@dataclass(frozen=True)
class Value:
    """One measured number."""

    value: float
    standard_error: float | None


@dataclass(frozen=True)
class TaskRow:
    """One task as one model did it."""

    task: str
    step: int
    num_tokens: int
    num_questions: int
    by_metric: dict[str, Value]


@dataclass(frozen=True)
class Tasks:
    """What is known of a round's tasks; no rows where none were set."""

    rows: list[TaskRow] = field(default_factory=list)
    contamination: list[str] = field(default_factory=list)  # sentences

    @property
    def summary(self) -> dict[str, Any]:
        """What `summary.json` keeps: the last model's values."""
        last = max((row.step for row in self.rows), default=0)
        return {row.task: {name: value.value for name, value in row.by_metric.items()} for row in self.rows if row.step == last}


def read(run: Run, round_number: int) -> Tasks:
    """The results table of a round, a row for each task and model, and what its contamination check found."""
    return Tasks(_rows(run, round_number), _contamination(run, round_number))


def _rows(run: Run, round_number: int) -> list[TaskRow]:
    directory = run.round(round_number) / "evaluation"
    if find_manifest(directory) is None:
        return []
    with (directory / RESULTS).open("rb") as file:
        found = pq.read_table(file).to_pylist()
    rows: dict[tuple[str, int], TaskRow] = {}
    for row in found:
        if row["metric"] in (*METRICS, LOG_LIKELIHOOD) and not row["task"].startswith("validation"):
            new = TaskRow(row["task"], row["step"], row["num_tokens"], row["num_examples"], {})
            of_task = rows.setdefault((row["task"], row["step"]), new)
            of_task.by_metric[row["metric"]] = Value(row["value"], row["standard_error"])
    order = {task: number for number, task in enumerate([*dict.fromkeys(task for task, _ in rows if task != AVERAGE), AVERAGE])}
    return sorted(rows.values(), key=lambda row: (order[row.task], row.step))


def _contamination(run: Run, round_number: int) -> list[str]:
    checked = find_manifest(run.round(round_number) / "contamination")
    if checked is None or not checked.shards:
        return []
    found, length = checked.metrics, run.config.evaluation.contamination_ngram
    share = _share(found["num_contaminated"], found["num_sequences"])
    sentences = [f"{share} candidate sequences share {length} words in a row with a task{_by_task(found)}."]
    if (selected := contamination.of_selection(run, round_number)) is not None:
        kept = find_manifest(run.round(round_number) / "selection")
        assert kept is not None
        left_out = f"; {kept.metrics['num_excluded']:,} were left out for it" if "num_excluded" in kept.metrics else ""
        by_task = _by_task({"by_task": {task: count for task, count in selected.items() if task != "any"}})
        sentences.append(f"Of the selected ones {_share(selected['any'], kept.metrics['num_selected'])}{by_task}{left_out}.")
    for row in found["validation"]:
        if row["num_contaminated"]:
            what = "guided the selection" if row["part"] == "guide" else "only measures"
            rows = _share(row["num_contaminated"], row["num_rows"])
            sentences.append(f"Validation set {row['set']}, the part that {what}: {rows} rows{_by_task(row)}.")
    return sentences


def _share(count: int, total: int) -> str:
    return f"{count:,} of {total:,} ({count / max(total, 1):.2%})"


def _by_task(found: Metrics) -> str:
    listing = ", ".join(f"{task} {count:,}" for task, count in found["by_task"].items() if count)
    return f" ({listing})" if listing else ""
