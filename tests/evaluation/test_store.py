"""Questions and evaluations in the score store: loaded, checked, rebuilt, and of lakes that were written before there were steps."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bliss_ops import schemas, store
from bliss_ops.lake import Lake, write_parquet
from bliss_ops.manifest import Artifact, describe, read_manifest
from bliss_ops.sql import open_snapshot
from bliss_ops.store.check import Checked, check
from tests.evaluation.answers import rows_of
from tests.lakes import make_corpus, make_run

RIGHT, WRONG = [-1.0, -2.0, -3.0], [-2.0, -1.0, -1.0]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """A round with two models: the earlier one answers one of three questions, the last one two."""
    lake = make_corpus(tmp_path)
    early, late = (
        rows_of("sciq", answers, [0, 0, 0], step=step) for answers, step in (([RIGHT, WRONG, WRONG], 10), ([RIGHT, RIGHT, WRONG], 20))
    )
    run = make_run(lake, answers=late)
    directory = run.round(1) / "evaluation"
    write_parquet(directory / "questions.parquet", pa.concat_tables([early, late]))
    final = pq.read_table(str(directory / "results.parquet"))
    rows = [row | {"step": 10, "num_tokens": 640, "value": row["value"] + 1} for row in final.to_pylist()]
    write_parquet(directory / "results.parquet", pa.concat_tables([pa.Table.from_pylist(rows, schema=schemas.EVALUATION), final]))
    commit(lake)
    store.sync(run)
    return lake


def commit(lake: Lake) -> None:
    """Make what is in the evaluation's directory its content."""
    directory = lake.run("demo-bliss-s0").round(1) / "evaluation"
    outputs = [output.path for output in read_manifest(directory, made_by="make_run").outputs]
    artifact = Artifact(lake, directory, stage="evaluate", identity={}, replaceable=True)
    artifact.begin()
    artifact.commit([describe(directory, path) for path in outputs])


def ask(lake: Lake, statement: str) -> list[tuple[object, ...]]:
    with open_snapshot(lake) as con:
        return con.execute(statement).fetchall()  # type: ignore[no-any-return]


def test_questions_are_loaded_and_answers_are_one_row_each(lake: Lake) -> None:
    assert ask(lake, "select score_run_id, count(*) from questions group by all") == [("demo-bliss-s0/round-01", 18)]
    answers = ask(lake, "select step, question, num_choices, is_right, log_likelihood, is_final from answers order by step, question")
    assert answers == [
        (10, 0, 3, True, -1.0, False), (10, 1, 3, False, -2.0, False), (10, 2, 3, False, -2.0, False),
        (20, 0, 3, True, -1.0, True), (20, 1, 3, True, -1.0, True), (20, 2, 3, False, -2.0, True),
    ]  # fmt: skip


def test_rounds_show_the_last_model(lake: Lake) -> None:
    assert ask(lake, "select validation_loss from rounds") == [(4.0,)]
    assert ask(lake, "select distinct step from final_evaluations") == [(20,)]


def test_an_equal_likelihood_goes_to_the_first_choice_as_in_the_harness(tmp_path: Path) -> None:
    lake = make_corpus(tmp_path)
    store.sync(make_run(lake, answers=rows_of("sciq", [[-1.0, -1.0], [-1.0, -1.0]], [0, 1], step=20)))
    assert ask(lake, "select is_right from answers order by question") == [(True,), (False,)]


def test_check_and_rebuild_know_the_questions(lake: Lake) -> None:
    assert list(check(lake, Checked())) == []
    before = ask(lake, "select * from questions order by all")
    store.rebuild(lake)
    assert ask(lake, "select * from questions order by all") == before
    path = lake.run("demo-bliss-s0").round(1) / "evaluation" / "questions.parquet"
    write_parquet(path, rows_of("sciq", [WRONG, WRONG, WRONG], [0, 0, 0], step=20))
    (problem,) = [line for line in check(lake, Checked()) if "questions.parquet" in line]
    assert "is not the file its manifest recorded" in problem
    assert "bliss evaluate demo-bliss-s0 --round 1" in problem


def test_an_evaluation_without_steps_is_loaded_as_before(lake: Lake) -> None:
    path = lake.run("demo-bliss-s0").round(1) / "evaluation" / "results.parquet"
    former = pq.read_table(str(path), filters=[("step", "==", 20), ("task", "==", "validation")])
    write_parquet(path, former.drop_columns(["step", "num_tokens"]))
    commit(lake)
    store.sync(lake.run("demo-bliss-s0"))
    assert ask(lake, "select task, metric, step, num_tokens from evaluations order by metric") == [
        ("validation", "loss", None, None), ("validation", "perplexity", None, None),
    ]  # fmt: skip
    assert ask(lake, "select validation_loss from rounds") == [(4.0,)]
    assert list(check(lake, Checked())) == []
