"""Rows in every published form give the hub's rows; what cannot be read says which file, which row and what to do."""

import gzip
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upath import UPath

from bliss_ops.config import EvaluationConfig, parse
from bliss_ops.evaluation.files import digest, find, read
from bliss_ops.evaluation.rows import TASKS
from tests.evaluation.published import HUB, write_files
from tests.evaluation.published import TASKS as NAMES


def rows(task: str, folder: Path) -> list[dict[str, object]]:
    return read(find(task, UPath(folder)))


@pytest.mark.parametrize("task", NAMES)
def test_the_authors_files_and_exports_of_the_hub_give_the_same_rows(task: str, tmp_path: Path) -> None:
    authors = rows(task, write_files(tmp_path / "authors"))
    assert len(authors) == len(HUB[task])
    for mine, theirs in zip(authors, HUB[task], strict=True):
        assert {name: value for name, value in mine.items() if name != "idx"} == {name: theirs[name] for name in mine if name != "idx"}
    split = TASKS[task].split
    parquet, jsonl, array = (tmp_path / kind / task for kind in ("parquet", "jsonl", "array"))
    for folder in (parquet, jsonl, array):
        folder.mkdir(parents=True)
    for part, some in enumerate((HUB[task][:1], HUB[task][1:])):  # as the hub cuts large sets
        if some:
            pq.write_table(pa.Table.from_pylist(some), parquet / f"{split}-{part:05d}-of-00002.parquet")
    with gzip.open(jsonl / f"{split}.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(json.dumps(row, ensure_ascii=False) for row in HUB[task]))
    (array / f"{split}.json").write_text(json.dumps(HUB[task]))
    found = [rows(task, folder.parent) for folder in (parquet, jsonl, array)]
    assert found[0] == found[1] == found[2]
    assert digest(found[0]) == digest(found[1])
    assert [{k: v for k, v in row.items() if k != "idx"} for row in found[0]] == [
        {k: v for k, v in row.items() if k not in ("idx",)} for row in authors
    ]


def test_the_text_form_of_hellaswag_gets_its_seam_back(tmp_path: Path) -> None:
    folder = tmp_path / "hellaswag"
    folder.mkdir()
    blocks = [
        ("Baking bread: A woman kneads dough. She waits (an hour). then she", 2),
        ("Home: How to water roses. Fill the can. Walk to the bed.", 0),
        ("Chess: two men", 1),
    ]
    text = "".join(f"{context}\n{label}\none ending.\ntwo.\nthree.\nfour.\n" for context, label in blocks)
    (folder / "hellaswag_val_full.txt").write_text(text)
    found = rows("hellaswag", tmp_path)
    assert [(row["ctx_a"], row["ctx_b"]) for row in found] == [
        ("A woman kneads dough. She waits (an hour).", "then she"),
        ("How to water roses. Fill the can. Walk to the bed.", ""),
        ("two men", ""),
    ]
    assert [row["label"] for row in found] == ["2", "0", "1"]
    assert found[0]["endings"] == ["one ending.", "two.", "three.", "four."]


def test_the_split_of_the_harness_comes_first_and_another_is_announced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "sciq"
    folder.mkdir()
    (folder / "valid.json").write_text(json.dumps(HUB["sciq"][:1]))
    assert find("sciq", UPath(tmp_path)).split == "validation"
    assert "the harness asks its test split" in caplog.text
    (folder / "test.json").write_text(json.dumps(HUB["sciq"]))
    assert find("sciq", UPath(tmp_path)).split == "test"


@pytest.mark.parametrize(
    ("task", "file", "text", "words"),
    [
        ("sciq", "sciq/test.json", json.dumps([HUB["sciq"][0], {"question": "?"}]), r"test\.json, row 1: it has no 'distractor3'"),
        ("sciq", "sciq/test.json", '[{"question": ', r"test\.json cannot be read as \.json of sciq"),
        ("sciq", "sciq/test.jsonl", "", r"test\.jsonl: no rows of sciq"),
        ("logiqa", "logiqa/Test.txt", "a\nonly a passage\n", r"Test\.txt cannot be read as \.txt of logiqa: question 0 has 2 lines, not 7"),
        ("hellaswag", "hellaswag/hellaswag_val.txt", "A: b\n1\nx\ny\n", r"4 lines, not a multiple of six"),
        ("piqa", "piqa/valid.jsonl", '{"goal": "g", "sol1": "a", "sol2": "b"}', r"valid-labels\.lst is not beside it"),
        ("boolq", "boolq/dev.jsonl", '{"question": "q", "passage": "p", "answer": "maybe"}', "'maybe' is neither true nor false"),
        ("arc_easy", "arc_easy/test.jsonl", json.dumps(HUB["arc_easy"][0] | {"answerKey": "E"}), "the answer 'E' is none of its choices"),
        ("winogrande", "winogrande/dev.jsonl", '{"sentence": "no gap", "option1": "a", "option2": "b", "answer": "1"}', "needs a gap _"),
    ],
)
def test_files_in_no_known_form_say_what_is_wrong(task: str, file: str, text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir()
    (tmp_path / file).write_text(text)
    with pytest.raises(ValueError, match=words):
        rows(task, tmp_path)


def test_labels_have_to_be_as_many_as_questions(tmp_path: Path) -> None:
    write_files(tmp_path)
    (tmp_path / "piqa" / "valid-labels.lst").write_text("0\n1\n")
    with pytest.raises(ValueError, match=r"valid-labels\.lst has 2 labels for the 3 questions"):
        rows("piqa", tmp_path)


def test_two_sets_of_one_split_are_not_mixed(tmp_path: Path) -> None:
    write_files(tmp_path)
    (tmp_path / "piqa" / "dev.jsonl").write_text(json.dumps(HUB["piqa"][0]))
    with pytest.raises(ValueError, match=r"more than one validation set \(piqa/dev\.jsonl, piqa/valid\.jsonl\): keep one"):
        rows("piqa", tmp_path)


def test_no_data_says_what_was_looked_for_where_and_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no task data for openbookqa") as error:
        find("openbookqa", UPath(tmp_path))
    assert re.search(
        rf"{tmp_path} .*test.*none of its files is there.*allenai/openbookqa.*configuration main.*evaluation\.data=hub", str(error.value)
    )


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"tasks": ["mmlu"]}, "tasks.0: Input should be 'sciq', 'arc_easy'.*got 'mmlu'"),
        ({"tasks": ["piqa", "piqa"]}, "name every task once; piqa is there twice"),
        ({"exclude_contaminated": True}, "set some"),
        ({"contamination_ngram": 3}, "greater than or equal to 8"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse(EvaluationConfig, settings, where="evaluation")


def test_the_definitions_are_of_the_datasets_we_name() -> None:
    """What `hub` downloads is what the installed harness would download, and the split that it would ask."""
    pytest.importorskip("lm_eval")
    import lm_eval
    from lm_eval.tasks._yaml_loader import load_yaml

    for name, task in TASKS.items():
        definition = load_yaml(Path(lm_eval.__file__).parent / "tasks" / task.definition)
        assert (definition["task"], definition["dataset_path"], definition["dataset_name"]) == (name, task.dataset, task.config)
        assert (definition.get("test_split") or definition["validation_split"]) == task.split


def test_the_hub_gives_the_same_rows_and_says_what_to_do_where_it_cannot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the hub: a dataset that is there, one that is a script, and no network."""
    datasets = pytest.importorskip("datasets")
    from bliss_ops.evaluation.harness import read_data

    def load_dataset(path: str, name: str | None, split: str) -> object:
        if path == "EleutherAI/logiqa":
            raise RuntimeError("Dataset scripts are no longer supported, but found logiqa.py")
        if path == "allenai/sciq":
            raise ConnectionError("no network")
        assert (path, name, split) == ("aps/super_glue", "boolq", "validation")
        return datasets.Dataset.from_list(HUB["boolq"])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    (data,) = read_data(EvaluationConfig(tasks=("boolq",)))
    assert (data.rows, data.split) == (HUB["boolq"], "validation")
    with pytest.raises(
        ValueError, match=r"no task data for logiqa.*scripts are no longer supported.*LogiQA-dataset(.|\n)*sciq.*no network"
    ):
        read_data(EvaluationConfig(tasks=("logiqa", "boolq", "sciq")))
