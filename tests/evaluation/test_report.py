"""Zero-shot tasks in a run's report: values with errors for every model, and what the contamination check found."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from upath import UPath

from bliss_ops import report, schemas, store
from bliss_ops.lake import Run, shard_file, write_parquet
from bliss_ops.report import tasks
from bliss_ops.sharding import ROWS_PER_SHARD
from tests.evaluation.answers import rows_of
from tests.lakes import make_corpus, make_run, produce


def page(run: Run) -> str:
    store.sync(run)
    report.write(run, 1, run.report)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", (run.report / "index.html").read_text()))


def contamination_of(run: Run) -> None:
    """Sequences 29 and 28 of code are sciq's; 29 is selected."""

    def make(directory: UPath) -> tuple[list[str], dict[str, Any]]:
        for shard, ids in ((0, [3]), (1, [ROWS_PER_SHARD + 29])):
            values = {"sequence_id": ids, "task": ["sciq"], "num_ngrams": [2]}
            write_parquet(shard_file(directory, shard), pa.table(values, schema=schemas.CONTAMINATED))
        guide = {"set": "lambada", "part": "guide", "num_rows": 8, "num_contaminated": 8, "by_task": {"sciq": 0, "piqa": 8}}
        counts = {"num_sequences": 60, "num_contaminated": 2, "by_task": {"sciq": 2, "piqa": 0}, "validation": [guide]}
        return ["shard-00000.parquet", "shard-00001.parquet"], counts

    produce(run.lake, run.round(1) / "contamination", "check_contamination", make, shards=(0, 1))


def test_a_report_shows_tasks_and_contamination(tmp_path: Path) -> None:
    right, wrong = [-1.0, -2.0], [-2.0, -1.0]
    answers = pa.concat_tables([rows_of(task, [right, right, wrong], [0, 0, 0], step=20) for task in ("sciq", "piqa")])
    run = make_run(make_corpus(tmp_path), score=lambda shard, rows: rows + 1000.0 * shard, answers=answers)
    contamination_of(run)
    text = page(run)
    assert re.search(r"sciq 20 1,280 3 0\.667 ± 0\.333 0\.667 ± 0\.333 0\.481 ± 0\.120 . piqa 20", text)
    assert re.search(r"average 20 \S+ 6 0\.667 ± 0\.236", text)
    assert "2 of 60 (3.33%) candidate sequences share 13 words in a row with a task (sciq 2)." in text
    assert "Of the selected ones 1 of 12 (8.33%) (sciq 1)." in text
    assert "Validation set lambada, the part that guided the selection: 8 of 8 (100.00%) rows (piqa 8)." in text
    assert tasks.read(run, 1).summary["sciq"]["accuracy"] == 2 / 3
    assert np.isclose(tasks.read(run, 1).summary["average"]["bits_per_byte"], 4 / 12 / np.log(2))


def test_a_report_without_tasks_says_nothing_of_them(tmp_path: Path) -> None:
    assert "length-normalised bits per byte" not in page(make_run(make_corpus(tmp_path)))
