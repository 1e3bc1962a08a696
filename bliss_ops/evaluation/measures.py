"""From kept log-likelihoods to what a task says: one outcome per question, and means over questions with their standard errors.

Everything here is a function of `questions.parquet`, so that a number of a report can be made again, and two runs compared, without
asking a model again. Accuracy is the harness's `acc`, length-normalised accuracy its `acc_norm` (log-likelihood by *characters* of the
choice; the harness's `acc_bytes` divides by bytes). Of equal choices the first counts as chosen, as numpy's argmax and the harness do.

Legend of shapes: C rows (choices of all questions), N questions, M measures.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from upath import UPath

QUESTIONS = "questions.parquet"
ACCURACY, ACCURACY_NORM, BITS_PER_BYTE, LOG_LIKELIHOOD, PERPLEXITY = (
    "accuracy", "accuracy_norm", "bits_per_byte", "log_likelihood", "perplexity",
)  # fmt: skip
AVERAGE = "average"  # over tasks
COLUMNS = ("task", "question", "choice", "step", "log_likelihood", "num_bytes", "num_characters", "is_right", "is_greedy")

# What a measure of many questions is: the sum of the numerators over the sum of the denominators.
Ratio = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Outcomes:
    """What came of the N questions of one task, question by question, sorted by their numbers."""

    task: str
    question_N: np.ndarray
    ratios: dict[str, Ratio]  # by measure: numerator and denominator of each question

    def value(self, measure: str) -> float:
        numerator_N, denominator_N = self.ratios[measure]
        return float(numerator_N.sum() / denominator_N.sum())

    def standard_error(self, measure: str) -> float | None:
        """Over questions; with unequal denominators of the ratio, to first order. None for a single question."""
        numerator_N, denominator_N = self.ratios[measure]
        num = len(numerator_N)
        if num < 2:
            return None
        residual_N = numerator_N - self.value(measure) * denominator_N
        return float(np.sqrt((residual_N**2).sum() * num / (num - 1)) / denominator_N.sum())


@dataclass(frozen=True)
class Measure:
    """One number about one task."""

    task: str
    metric: str
    value: float
    standard_error: float | None
    num_questions: int


def read(directory: UPath, *, step: int | None = None) -> list[Outcomes]:
    """Outcomes of every task in an evaluation's directory, in order of first appearance; of its last model unless a step is named."""
    table = read_table(directory)
    if not len(table):
        return []
    wanted = last_step(table) if step is None else step
    return list(outcomes(table.filter(pc.field("step") == wanted)))


def last_step(table: pa.Table) -> int:
    """The step of the last model that was asked."""
    return int(table["step"].to_numpy().max())


def read_table(directory: UPath) -> pa.Table:
    """The kept questions without their texts.

    Raises:
        ValueError: the evaluation kept none, it had no tasks.
    """
    try:
        with (directory / QUESTIONS).open("rb") as file:
            return pq.read_table(file, columns=list(COLUMNS))
    except FileNotFoundError:
        raise ValueError(
            f"{directory} has no {QUESTIONS}: its run was evaluated without tasks. Set evaluation.tasks, delete that directory and "
            f"{directory.parent / 'contamination'}, and run it again: nothing is trained again"
        ) from None


def outcomes(table: pa.Table) -> Iterator[Outcomes]:
    """Outcomes of each task of a table of one model's questions."""
    for task in map(str, table["task"].unique().to_pylist()):
        yield of_task(task, table.filter(pc.field("task") == task))


def of_task(task: str, table: pa.Table) -> Outcomes:
    """Outcomes of the questions of one task, asked of one model."""
    table = table.sort_by([("question", "ascending"), ("choice", "ascending")])
    question_C = table["question"].to_numpy()
    log_likelihood_C = table["log_likelihood"].to_numpy()
    is_right_C = table["is_right"].to_numpy(zero_copy_only=False)
    question_N, first_N, number_C = np.unique(question_C, return_index=True, return_inverse=True)
    right_N = np.flatnonzero(is_right_C)
    assert np.array_equal(question_C[right_N], question_N), f"{task}: one right choice for each question"
    one_N = np.ones(len(question_N))
    right_likelihood_N, num_bytes_N = log_likelihood_C[right_N], table["num_bytes"].to_numpy()[right_N].astype(float)
    ratios: dict[str, Ratio] = {}
    if (np.bincount(number_C) == 1).all():  # nothing to choose from: right is what the model would have written
        ratios[ACCURACY] = table["is_greedy"].to_numpy(zero_copy_only=False)[right_N].astype(float), one_N
    else:
        ratios[ACCURACY] = (_first_best(log_likelihood_C, first_N, number_C) == right_N).astype(float), one_N
    if not table["num_characters"].null_count:
        by_length_C = log_likelihood_C / table["num_characters"].to_numpy()
        ratios[ACCURACY_NORM] = (_first_best(by_length_C, first_N, number_C) == right_N).astype(float), one_N
    ratios[BITS_PER_BYTE] = -right_likelihood_N / np.log(2), num_bytes_N
    ratios[LOG_LIKELIHOOD] = right_likelihood_N, one_N
    return Outcomes(task, question_N, ratios)


def measures(of_tasks: list[Outcomes]) -> list[Measure]:
    """All measures of all tasks, then their averages over tasks (of those that have the measure)."""
    found = [
        Measure(one.task, metric, one.value(metric), one.standard_error(metric), len(one.question_N))
        for one in of_tasks
        for metric in one.ratios
    ]
    for one in [*found]:
        if one.metric == LOG_LIKELIHOOD and one.task.startswith("lambada"):
            value = float(np.exp(-one.value))  # of the last word; its error to first order
            error = None if one.standard_error is None else value * one.standard_error
            found.append(Measure(one.task, PERPLEXITY, value, error, one.num_questions))
    return found + _averages(found)


def _averages(found: list[Measure]) -> list[Measure]:
    averages = []
    for metric in (ACCURACY, ACCURACY_NORM, BITS_PER_BYTE):
        of_metric = [one for one in found if one.metric == metric]
        errors = [one.standard_error for one in of_metric if one.standard_error is not None]
        if of_metric:
            error = float(np.sqrt(np.square(errors).sum())) / len(of_metric) if len(errors) == len(of_metric) else None
            value = float(np.mean([one.value for one in of_metric]))
            averages.append(Measure(AVERAGE, metric, value, error, sum(one.num_questions for one in of_metric)))
    return averages


def _first_best(value_C: np.ndarray, first_N: np.ndarray, number_C: np.ndarray) -> np.ndarray:
    """Row of each question's largest value; of equal ones the first."""
    best_N = np.maximum.reduceat(value_C, first_N)
    is_best_C = value_C == best_N[number_C]
    rows = np.flatnonzero(is_best_C)
    _, first = np.unique(number_C[rows], return_index=True)
    return rows[first]
