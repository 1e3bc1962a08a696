"""Evaluations made of numbers: `questions.parquet` without a model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from upath import UPath

from bliss_ops import schemas
from bliss_ops.evaluation.measures import QUESTIONS
from bliss_ops.lake import write_parquet


def rows_of(task: str, likelihoods: Sequence[Sequence[float]], right: Sequence[int], *, step: int = 10, num_bytes: int = 4) -> pa.Table:
    """One question for each list of choices' log-likelihoods; every choice is `num_bytes` long and as many characters."""
    rows = [
        (task, question, choice, step, value, num_bytes, num_bytes, choice == right[question], False, "context", " word")
        for question, choices in enumerate(likelihoods)
        for choice, value in enumerate(choices)
    ]
    columns = [pa.array(column, field.type) for column, field in zip(zip(*rows, strict=True), schemas.QUESTIONS, strict=True)]
    return pa.Table.from_arrays(columns, schema=schemas.QUESTIONS)


def random_rows(task: str, num_questions: int, seed: int, *, ease: float = 0.0, step: int = 10) -> pa.Table:
    """Four choices a question, what is right fixed for all seeds; `ease` is what the right one's log-likelihood has more."""
    generator, right = np.random.default_rng(seed), np.random.default_rng(1).integers(0, 4, num_questions)
    likelihoods = generator.normal(-8, 1, (num_questions, 4))
    likelihoods[np.arange(num_questions), right] += ease
    return rows_of(task, likelihoods.tolist(), right.tolist(), step=step)


def evaluation_of(directory: Path, *tables: pa.Table) -> UPath:
    write_parquet(UPath(directory) / QUESTIONS, pa.concat_tables(tables))
    return UPath(directory)
