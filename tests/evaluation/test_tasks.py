"""Our tasks against the harness itself, and what `bliss evaluate` keeps.

The referee is independent of our readers: the harness's registered task, its dataset replaced by hub rows written by hand (or parsed here
from the real files), run by the harness's own evaluator over its own model class.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from upath import UPath

pytest.importorskip("lm_eval")

from bliss_ops import pipeline
from bliss_ops.evaluation.rows import TASKS as OURS
from bliss_ops.lake import Lake, Run, write_json
from bliss_ops.models import language
from tests.corpus.corpora import REAL
from tests.evaluation.lakes import T, make_lake, make_run
from tests.evaluation.published import HUB, TASKS, write_files

TOLERANCE = 1e-4  # nats of a whole continuation, float32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return make_lake(tmp_path_factory.mktemp("lake"))


@pytest.fixture(scope="module")
def evaluated(lake: Lake, folder: Path) -> Run:
    run = make_run(lake, "all-tasks", tasks=TASKS, data=str(folder), batch_sequences=4)
    pipeline.evaluate(run, 1)
    return run


def referee(run: Run, rows: dict[str, list[dict[str, Any]]], batch_size: int = 1) -> dict[str, Any]:
    """What the harness itself says about the run's model: its registered tasks over `rows`, by its own evaluator."""
    import datasets
    import lm_eval
    from lm_eval import evaluator
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedTokenizerFast

    root = Path(lm_eval.__file__).parent / "tasks"
    folders = [
        root / name for name in ("sciq", "arc", "logiqa", "openbookqa", "super_glue/boolq", "hellaswag", "piqa", "winogrande", "lambada")
    ]
    asked: list[str] = []

    def load_dataset(path: str, name: str | None = None, **_: Any) -> Any:
        (task,) = (task for task in rows if (OURS[task].dataset, OURS[task].config) == (path, name))
        asked.append(task)
        return datasets.DatasetDict(dict.fromkeys(("train", "validation", "test"), datasets.Dataset.from_list(rows[task])))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load_dataset", load_dataset)
        tasks = TaskManager(include_defaults=False, include_path=folders).load(list(rows))
    assert sorted(asked) == sorted(rows)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(run.corpus.tokenizer / "tokenizer.json"),
        **dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<|endoftext|>"),
    )
    model = language.load(run.round(1) / "pretrain", "model").eval()
    lm = HFLM(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size)
    found: dict[str, Any] = evaluator.evaluate(lm=lm, task_dict=tasks, bootstrap_iters=100, log_samples=True)
    return found


def kept(run: Run) -> list[dict[str, Any]]:
    return pq.read_table(str(run.round(1) / "evaluation" / "questions.parquet")).to_pylist()


def results(run: Run) -> dict[tuple[str, str], dict[str, Any]]:
    rows = pq.read_table(str(run.round(1) / "evaluation" / "results.parquet")).to_pylist()
    return {(row["task"], row["metric"]): row for row in rows}


def check_against(run: Run, theirs: dict[str, Any]) -> None:
    """Requests, log-likelihoods and greedy flags question by question; accuracies and their errors."""
    ours, values = kept(run), results(run)
    for task, samples in theirs["samples"].items():
        mine = {(row["question"], row["choice"]): row for row in ours if row["task"] == task}
        assert len(mine) == sum(len(sample["arguments"]) for sample in samples) > 0
        for sample in samples:
            for choice, (arguments, (response,)) in enumerate(zip(sample["arguments"], sample["resps"], strict=True)):
                row = mine[sample["doc_id"], choice]
                assert (row["context"], row["continuation"]) == tuple(arguments), task
                assert row["log_likelihood"] == pytest.approx(response[0], abs=TOLERANCE), task
                assert row["is_greedy"] == response[1], task
        of_task = theirs["results"][task]
        for metric, name in (("accuracy", "acc"), ("accuracy_norm", "acc_norm")):
            assert ((task, metric) in values) == (f"{name},none" in of_task), (task, metric)
            if (task, metric) in values:
                assert values[task, metric]["value"] == pytest.approx(of_task[f"{name},none"])
                if len(samples) > 1:
                    assert values[task, metric]["standard_error"] == pytest.approx(of_task[f"{name}_stderr,none"])
        if task.startswith("lambada"):
            assert values[task, "perplexity"]["value"] == pytest.approx(of_task["perplexity,none"], rel=1e-4)


def test_every_task_is_asked_as_the_harness_asks_it(evaluated: Run) -> None:
    check_against(evaluated, referee(evaluated, HUB))


@pytest.mark.skipif(not (REAL / "bench").is_dir(), reason="the real tasks' files are not beside this checkout")
def test_real_rows_are_asked_as_the_harness_asks_them(lake: Lake) -> None:
    run = make_run(lake, "real-rows", tasks=TASKS, data=str(REAL / "bench"), max_examples_per_task=4, batch_sequences=8)
    pipeline.evaluate(run, 1)
    check_against(run, referee(run, {task: rows[:4] for task, rows in real_rows(REAL / "bench").items()}))


def test_the_result_does_not_move_with_the_batch_size(lake: Lake, folder: Path, evaluated: Run) -> None:
    one = make_run(lake, "one-by-one", tasks=TASKS, data=str(folder), batch_sequences=1)
    pipeline.evaluate(one, 1)
    for mine, theirs in zip(kept(one), kept(evaluated), strict=True):
        assert mine.pop("log_likelihood") == pytest.approx(theirs.pop("log_likelihood"), abs=TOLERANCE)
        assert mine == theirs
    for key, row in results(evaluated).items():
        exact = key[1].startswith("accuracy")
        assert results(one)[key]["value"] == pytest.approx(row["value"], abs=0 if exact else 1e-3 * abs(row["value"]))


def test_bits_per_byte_are_of_the_right_answer(evaluated: Run) -> None:
    right = [row for row in kept(evaluated) if row["task"] == "piqa" and row["is_right"]]
    answers = ["put a wedge under it", "add ice", "hang it on a line"]
    assert [row["continuation"] for row in right] == [f" {answer}" for answer in answers]
    assert [row["num_bytes"] for row in right] == [len(answer) for answer in answers]
    likelihoods = [row["log_likelihood"] for row in right]
    value = results(evaluated)["piqa", "bits_per_byte"]
    assert value["value"] == pytest.approx(-sum(likelihoods) / np.log(2) / sum(map(len, answers)))
    jackknife = [
        -(sum(likelihoods) - ll) / np.log(2) / (sum(map(len, answers)) - len(text)) for ll, text in zip(likelihoods, answers, strict=True)
    ]
    assert value["standard_error"] == pytest.approx(np.std(jackknife) * np.sqrt(len(jackknife) - 1), rel=0.3)  # equal to first order
    assert results(evaluated)["average", "accuracy"]["num_examples"] == sum(map(len, HUB.values()))


def test_every_model_of_the_round_is_evaluated(lake: Lake, folder: Path, evaluated: Run) -> None:
    run = make_run(lake, "two-models", seeds=(7, 1), tasks=("piqa",), data=str(folder), batch_sequences=4)
    manifest = pipeline.evaluate(run, 1)
    assert [row["step"] for row in kept(run)] == [20] * 6 + [30] * 6
    rows = pq.read_table(str(run.round(1) / "evaluation" / "results.parquet")).to_pylist()
    assert {(row["step"], row["num_tokens"]) for row in rows} == {(20, 20_000), (30, 30_000)}
    assert [row["step"] for row in rows if row["metric"] == "loss"] == [20, 30]
    last = [row for row in kept(run) if row["step"] == 30]
    same = [row for row in kept(evaluated) if row["task"] == "piqa"]
    assert [row["log_likelihood"] for row in last] == pytest.approx([row["log_likelihood"] for row in same], abs=TOLERANCE)
    assert manifest.metrics["validation_loss"] == next(row["value"] for row in rows if row["step"] == 30)
    assert set(manifest.metrics["tasks"]) == {"piqa", "average"}


def test_an_old_manifest_has_one_model(lake: Lake, folder: Path) -> None:
    run = make_run(lake, "old", with_models=False, tasks=("sciq",), data=str(folder))
    pipeline.evaluate(run, 1)
    settings = run.config.pretraining
    step = settings.num_steps + settings.decay_steps
    assert {row["step"] for row in kept(run)} == {step}
    assert results(run)["validation", "loss"]["num_tokens"] == step * settings.batch_sequences * T


def test_without_tasks_it_is_the_validation_loss_alone(lake: Lake) -> None:
    run = make_run(lake, "no-tasks")
    manifest = pipeline.evaluate(run, 1)
    assert [output.path for output in manifest.outputs] == ["results.parquet"]
    assert set(results(run)) == {("validation", "loss"), ("validation", "perplexity")}
    assert manifest.identity == {"num_threads": 1}, "as before there were tasks: finished evaluations stay finished"


def test_a_killed_evaluation_asks_only_what_it_had_not_asked(lake: Lake, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bliss_ops.evaluation import asking

    asked: list[str] = []
    ask = asking.ask

    def ask_until_piqa(model: Any, data: Any, step: int) -> Any:
        if data.task == "piqa" and "killed" not in asked:
            asked.append("killed")
            raise KeyboardInterrupt
        asked.append(data.task)
        return ask(model, data, step)

    monkeypatch.setattr(asking, "ask", ask_until_piqa)
    run = make_run(lake, "killed", tasks=("sciq", "boolq", "piqa", "lambada_openai"), data=str(folder))
    with pytest.raises(KeyboardInterrupt):
        pipeline.evaluate(run, 1)
    pipeline.evaluate(run, 1)
    assert asked == ["sciq", "boolq", "killed", "piqa", "lambada_openai"]
    assert list(dict.fromkeys(row["task"] for row in kept(run))) == ["sciq", "boolq", "piqa", "lambada_openai"]


def test_missing_data_is_an_error_before_a_model_is_loaded(
    lake: Lake, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(language, "load", never)
    write_files(tmp_path)
    (tmp_path / "piqa" / "valid-labels.lst").unlink()
    (tmp_path / "sciq" / "test.json").unlink()
    run = make_run(lake, "missing", tasks=("sciq", "boolq", "piqa"), data=str(tmp_path))
    with pytest.raises(
        ValueError, match=r"no task data for sciq.*allenai/sciq(.|\n)*no task data for piqa.*valid-labels.lst is not beside it"
    ):
        pipeline.evaluate(run, 1)
    with pytest.raises(ValueError, match="no task data for sciq"):  # and before anything is trained for it
        pipeline.warm_up(run)
    gone = make_run(lake, "gone", tasks=("sciq",), data=str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"no task data: evaluation.data is .*nowhere, and there is no such folder"):
        pipeline.evaluate(gone, 1)


def test_an_answer_longer_than_the_model_reads_is_left_out(lake: Lake, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """2,048 tokens are what the model's configuration says; the harness itself would stop there."""
    (tmp_path / "piqa").mkdir()
    rows = [{"goal": "keep a door open", "sol1": "a wedge", "sol2": "q7 " * 3000, "label": 0}, HUB["piqa"][1]]
    (tmp_path / "piqa" / "valid.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run = make_run(lake, "too-long", tasks=("piqa",), data=str(tmp_path))
    pipeline.evaluate(run, 1)
    assert [row["question"] for row in kept(run)] == [1, 1]
    assert results(run)["piqa", "accuracy"]["num_examples"] == 1
    assert "1 questions are left out" in caplog.text


def real_rows(bench: Path) -> dict[str, list[dict[str, Any]]]:
    """Hub rows of the real files, parsed without our readers."""

    def lines(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (bench / name).read_text().split("\n")[:4]]

    def logiqa() -> Iterator[dict[str, Any]]:
        for block in (bench / "logiqa/Eval.txt").read_text().strip().split("\n\n")[:4]:
            label, context, question, *options = block.split("\n")
            spaced = [text.replace(".", ". ").strip() for text in (context, question, *(option[2:] for option in options))]
            yield {"label": label, "context": spaced[0], "question": spaced[1], "options": spaced[2:]}

    def hellaswag() -> Iterator[dict[str, Any]]:
        text = (bench / "hellaswag/hellaswag_val.part1.txt").read_text().split("\n")
        for begin in range(0, 24, 6):
            activity, context = text[begin].split(": ", 1)
            first, last = context.rsplit(". ", 1) if ". " in context else ("", context)
            row = {"ctx_a": f"{first}." if first else "", "ctx_b": last} if last[0].islower() and first else {"ctx_a": context, "ctx_b": ""}
            yield row | {"activity_label": activity, "endings": text[begin + 2 : begin + 6], "label": text[begin + 1]}

    labels = (bench / "piqa/valid-labels.part1.lst").read_text().split()
    return {
        "sciq": json.loads((bench / "sciq/valid.json").read_text()),
        "arc_easy": lines("arc/ARC-Easy-validation.jsonl"),
        "arc_challenge": lines("arc/ARC-Challenge-validation.jsonl"),
        "logiqa": list(logiqa()),
        "openbookqa": lines("openbookqa/validation.jsonl"),
        "boolq": [row | {"label": int(row["label"])} for row in lines("boolq/validation.part1.jsonl")],
        "hellaswag": list(hellaswag()),
        "piqa": [row | {"label": int(label)} for row, label in zip(lines("piqa/valid.part1.jsonl"), labels[:4], strict=True)],
        "winogrande": lines("winogrande/winogrande_xl_validation.part1.jsonl"),
        "lambada_openai": lines("lambada/lambada_test.part1.jsonl"),
    }


def test_the_data_of_a_finished_evaluation_is_on_record(evaluated: Run) -> None:
    from bliss_ops.manifest import read_manifest

    data = read_manifest(evaluated.round(1) / "evaluation", made_by="").metrics["task_data"]
    assert {task: of_task["split"] for task, of_task in data.items()} == {task: OURS[task].split for task in TASKS}
    assert all(len(of_task["sha256"]) == 64 for of_task in data.values())
    assert UPath(evaluated.path).exists()


def test_a_trained_run_can_be_given_tasks_afterwards(tmp_path: Path, folder: Path) -> None:
    """Its config takes them; what was made without them is not mixed with what is made with them."""
    from bliss_ops.configure import configure_run
    from bliss_ops.manifest import ArtifactMismatchError

    lake = make_lake(tmp_path)
    run = configure_run(lake, "smoke", "random", 0, overrides={"ingest.corpus": "tiny"})
    again = configure_run(
        lake, "smoke", "random", 0, overrides={"ingest.corpus": "tiny", "evaluation.tasks": ["piqa"], "evaluation.data": str(folder)}
    )
    assert (again.name, lake.run(run.name).config.evaluation.tasks) == (run.name, ("piqa",))
    without, settings = make_run(lake, "trained"), {"tasks": ["piqa"], "data": str(folder)}
    pipeline.evaluate(without, 1)
    config = without.config.model_dump(mode="json") | {"evaluation": settings}
    write_json(without.path / "config.json", config)
    with pytest.raises(
        ArtifactMismatchError, match=r"settings\.tasks: was None, now \['piqa'\](.|\n)*to make it again, delete .*evaluation"
    ):
        pipeline.evaluate(lake.run("trained"), 1)
