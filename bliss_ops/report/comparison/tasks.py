"""What the tasks say: means over seeds, differences from the baseline with the noise of seeds and that of questions, curves by tokens.

A difference has two noises. That of seeds is seen in how the pairs of runs differ; that of questions, which a larger set of questions
would take away, is the paired bootstrap's (evaluation/paired.py), its mean over the pairs because every pair was asked the same
questions. What is said of a difference goes by the larger of the two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bliss_ops.config import identity
from bliss_ops.evaluation.measures import ACCURACY, ACCURACY_NORM, AVERAGE, BITS_PER_BYTE, QUESTIONS
from bliss_ops.evaluation.paired import PairedDifference, paired_differences
from bliss_ops.lake import Run
from bliss_ops.manifest import find_manifest
from bliss_ops.report.comparison.losses import Key, Mean, mean_of, verdict
from bliss_ops.report.comparison.rows import Row, evaluation_rows

METRICS = (ACCURACY_NORM, ACCURACY, BITS_PER_BYTE)  # the others of a task are in its run's own results
LOWER_IS_BETTER = (BITS_PER_BYTE,)


@dataclass(frozen=True)
class TaskResult:
    """One method on one task by one measure."""

    task: str
    metric: str
    method: str
    value: Mean
    difference: Mean | None
    question_error: float | None  # of the difference, over questions
    num_questions: int
    verdict: str


def task_rows(run: Run, round_number: int) -> list[Row]:
    """Task rows of every model of the rounds up to this one, by tokens; the average over tasks only where there are several."""
    found: list[Row] = []
    for number in range(1, round_number + 1):
        directory = run.round(number) / "evaluation"
        if find_manifest(directory):
            found += [row for row in evaluation_rows(directory) if row.metric in METRICS and not row.task.startswith("validation")]
    several = len({row.task for row in found} - {AVERAGE}) > 1
    return [row for row in found if several or row.task != AVERAGE]


def pair(run: Run, baseline: Run, round_number: int) -> list[PairedDifference]:
    """The run minus the baseline's run, question by question; nothing where one was not asked, or asked by other settings."""
    if identity(run.config.evaluation) != identity(baseline.config.evaluation):  # which the page warns of
        return []
    directories = [one.round(round_number) / "evaluation" for one in (run, baseline)]
    return paired_differences(*directories) if all((directory / QUESTIONS).is_file() for directory in directories) else []


def task_results(
    rows: Mapping[tuple[str, Key], Sequence[Row]], pairs: Mapping[tuple[str, Key], Sequence[PairedDifference]], baseline: str
) -> list[TaskResult]:
    """Every task and measure, method by method; the average over tasks comes last.

    Args:
        rows: of (method, (corpus, seed)), all models; the last one counts.
        pairs: the differences of the same runs from the baseline's.
        baseline: the method that is subtracted.
    """
    final = {run: last_model(of_run) for run, of_run in rows.items()}
    names = list(dict.fromkeys((row.task, row.metric) for of_run in final.values() for row in of_run))
    found = []
    for task, metric in sorted(names, key=lambda name: (name[0] == AVERAGE, names.index(name), METRICS.index(name[1]))):
        for method in dict.fromkeys(method for method, _ in rows):
            mine = [
                row for (other, _), of_run in final.items() if other == method for row in of_run if (row.task, row.metric) == (task, metric)
            ]
            value = mean_of([row.value for row in mine])
            if value is None:
                continue
            paired = [
                one for (other, _), of_run in pairs.items() if other == method for one in of_run if (one.task, one.metric) == (task, metric)
            ]
            difference = mean_of([one.difference for one in paired])
            errors = mean_of([one.standard_error for one in paired])
            said = verdict(difference, baseline, lower_is_better=metric in LOWER_IS_BETTER, least_error=errors.value if errors else 0.0)
            found.append(
                TaskResult(
                    task,
                    metric,
                    method,
                    value,
                    difference,
                    errors.value if errors else None,
                    max(row.num_examples for row in mine),
                    "" if method == baseline else said,
                )
            )
    return found


def last_model(rows: Sequence[Row]) -> list[Row]:
    """The rows of the model that was trained on most tokens."""
    last = max((row.num_tokens or 0 for row in rows), default=0)
    return [row for row in rows if (row.num_tokens or 0) == last]
