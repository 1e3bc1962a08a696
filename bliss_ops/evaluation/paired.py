"""Two runs asked the same questions: how much do they differ, and is that more than the choice of questions explains?

The bootstrap draws the questions of a task with replacement, the same questions for both runs, and computes the difference anew each
time. Pairing takes out what makes a question hard for both, so differences have much smaller errors than the two values. What it does
not see is the other noise, of seeds: two runs of one method and different seeds differ, too. Ten tasks with 10,000 resamples each take
a few seconds.

Legend of shapes: N questions, R resamples of a chunk, K columns (numerators and denominators of both runs).
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from upath import UPath

from bliss_ops.evaluation import measures
from bliss_ops.evaluation.measures import ACCURACY, ACCURACY_NORM, AVERAGE, BITS_PER_BYTE, Outcomes

CONFIDENCE = 0.95
_AVERAGED = (ACCURACY, ACCURACY_NORM, BITS_PER_BYTE)
_DRAWS_PER_CHUNK = 1 << 20  # 8 MB of indices at a time


@dataclass(frozen=True)
class PairedDifference:
    """The first run's value minus the second's, and the interval that 95 % of the resamples fall into."""

    task: str
    metric: str
    difference: float
    standard_error: float
    low: float
    high: float
    num_questions: int


def paired_differences(a: UPath, b: UPath, *, seed: int = 0, num_resamples: int = 10_000) -> list[PairedDifference]:
    """Differences of the last models of two evaluations, `a` minus `b`, for every task and measure, then averages over tasks.

    Args:
        a: directory of an evaluation.
        b: directory of the other; equal arguments and seeds give equal results.
        seed: of the resampling.
        num_resamples: draws of all questions.

    Returns:
        A difference for each measure that both have of each task that both have; task `average` is the mean over tasks.

    Raises:
        ValueError: one was evaluated without tasks, they share none, or they were not asked the same questions.
    """
    first, second = ({one.task: one for one in measures.read(directory)} for directory in (a, b))
    shared = [task for task in first if task in second]
    if not shared:
        raise ValueError(
            f"{a} and {b} have no task in common (one has {', '.join(first) or 'none'}, the other {', '.join(second) or 'none'}): "
            "give both the same evaluation.tasks"
        )
    _check_same_texts(a, b, shared)
    generator = np.random.default_rng(seed)
    found: list[PairedDifference] = []
    sums: dict[str, list[np.ndarray]] = {metric: [] for metric in _AVERAGED}
    for task in shared:
        pair = first[task], second[task]
        names = [name for name in pair[0].ratios if name in pair[1].ratios]
        resampled = resampled_differences(*pair, names, generator, num_resamples)
        for name in names:
            difference = pair[0].value(name) - pair[1].value(name)
            found.append(_summary(task, name, difference, resampled[name], len(pair[0].question_N)))
            if name in sums:
                sums[name].append(resampled[name])
    for metric, resamples in sums.items():
        if of_metric := [one for one in found if one.metric == metric]:
            difference, num = float(np.mean([one.difference for one in of_metric])), sum(one.num_questions for one in of_metric)
            found.append(_summary(AVERAGE, metric, difference, np.mean(resamples, axis=0), num))
    return found


def resampled_differences(
    a: Outcomes, b: Outcomes, names: list[str], generator: np.random.Generator, num_resamples: int
) -> dict[str, np.ndarray]:
    """`num_resamples` differences of each measure, a minus b, over questions drawn with replacement, the same for both."""
    num = len(a.question_N)
    columns_NK = np.stack([column for name in names for one in (a, b) for column in one.ratios[name]], axis=1)
    chunks = []
    for begin in range(0, num_resamples, per_chunk := max(1, _DRAWS_PER_CHUNK // num)):
        rows = min(per_chunk, num_resamples - begin)
        drawn_RN = generator.integers(0, num, (rows, num)) + num * np.arange(rows)[:, None]
        times_RN = np.bincount(drawn_RN.ravel(), minlength=rows * num).reshape(rows, num)
        chunks.append(times_RN @ columns_NK)
    sums = np.concatenate(chunks)
    return {name: sums[:, 4 * k] / sums[:, 4 * k + 1] - sums[:, 4 * k + 2] / sums[:, 4 * k + 3] for k, name in enumerate(names)}


def _summary(task: str, metric: str, difference: float, resamples: np.ndarray, num_questions: int) -> PairedDifference:
    low, high = np.quantile(resamples, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    error = float(resamples.std(ddof=1)) if len(resamples) > 1 else 0.0
    return PairedDifference(task, metric, difference, error, float(low), float(high), num_questions)


def _check_same_texts(a: UPath, b: UPath, tasks: list[str]) -> None:
    """The two were asked the same: equal numbers of questions, right choices and lengths of continuations."""
    tables = [_facts(directory, tasks) for directory in (a, b)]
    for task in tasks:
        asked = [table.filter(pc.field("task") == task) for table in tables]
        if not asked[0].equals(asked[1]):
            raise ValueError(
                f"{a} and {b} were not asked the same questions of {task} ({len(asked[0])} and {len(asked[1])} choices, or other texts): "
                "evaluate both with the same evaluation.data and evaluation.max_examples_per_task"
            )


def _facts(directory: UPath, tasks: list[str]) -> pa.Table:
    table = measures.read_table(directory)
    table = table.filter((pc.field("step") == measures.last_step(table)) & pc.field("task").isin(tasks))
    columns = ["task", "question", "choice", "num_bytes", "is_right"]
    return table.select(columns).sort_by([(name, "ascending") for name in columns[:3]]).combine_chunks()
