"""The ten zero-shot tasks: how a row of each published form becomes a row of its dataset on the Hugging Face hub.

lm-evaluation-harness writes its prompts from hub rows. Machines without a network have other forms of the same rows: the authors' own
files, exports of the hub datasets, text files made from them. Whatever a file has, `normal` gives the hub's columns, and the harness's
own prompt does the rest. `texts` are what contamination is looked for in: the questions with their right answers, and passages.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class TaskRows:
    """Where the rows of one task come from and what they look like."""

    dataset: str  # on the hub
    config: str | None  # of that dataset
    definition: str  # of the harness, below its folder of tasks
    split: str  # that the harness asks
    files: str  # pattern of the lower-case path of its files, below the folder of all tasks
    published: str  # where the authors' files are, for people without the hub
    normal: Callable[[Row], Row]
    texts: Callable[[Row], list[str]]
    not_files: str = "(?!)"  # pattern of paths that look alike and are something else


def _sciq(row: Row) -> Row:
    return {name: str(row[name]) for name in ("question", "distractor3", "distractor1", "distractor2", "correct_answer", "support")}


def _choices(row: Row, stem: str) -> Row:
    """Hub rows of ARC and OpenBookQA; the authors' have a dictionary `question` of stem and list of choices instead."""
    question, choices = row.get("question"), row.get("choices")
    if isinstance(question, dict):
        choices = {name: [choice[name] for choice in question["choices"]] for name in ("text", "label")}
        text = question["stem"]
    else:
        text = row[stem]
    assert choices is None or isinstance(choices, dict)
    if not choices or row["answerKey"].strip() not in choices["label"]:
        raise ValueError(f"the answer {row['answerKey']!r} is none of its choices")
    plain = {"text": [str(one) for one in choices["text"]], "label": [str(one) for one in choices["label"]]}
    return {"id": str(row.get("id", "")), stem: str(text), "choices": plain, "answerKey": row["answerKey"]}


def _arc(row: Row) -> Row:
    return _choices(row, "question")


def _openbookqa(row: Row) -> Row:
    return _choices(row, "question_stem")


def _logiqa(row: Row) -> Row:
    """`normalize` of the hub's dataset: a blank after every full stop."""
    label = row["label"] if isinstance(row["label"], str) else "abcd"[row["label"]]
    if label.strip().lower() not in ("a", "b", "c", "d") or len(row["options"]) != 4:
        raise ValueError(f"a question of LogiQA has four options and one of a, b, c, d is right; here {label!r} of {len(row['options'])}")
    return {"label": label.strip().lower(), "context": row["context"], "question": row["question"], "options": list(row["options"])}


def logiqa_rows(text: str) -> list[Row]:
    """Rows of the authors' text: blocks of the right letter, passage, question and four options `A.…`, with an empty line between."""
    rows = []
    for number, block in enumerate(re.split(r"\n\s*\n", text.replace("\r\n", "\n").strip())):
        lines = block.strip().split("\n")
        if len(lines) != 7:
            raise ValueError(f"question {number} has {len(lines)} lines, not 7 (letter, passage, question, four options)")
        spaced = [line.replace(".", ". ").strip() for line in (lines[1], lines[2], *(option[2:] for option in lines[3:]))]
        rows.append({"label": lines[0].strip(), "context": spaced[0], "question": spaced[1], "options": spaced[2:]})
    return rows


def _boolq(row: Row) -> Row:
    """SuperGLUE's rows are the hub's; the authors' own call the label `answer` and keep the title out of the passage."""
    label = row["label"] if "label" in row else row["answer"]
    if not isinstance(label, bool) and label not in (0, 1):
        raise ValueError(f"the answer {label!r} is neither true nor false")
    passage = f"{row['title']} -- {row['passage']}" if "title" in row and "label" not in row else row["passage"]
    return {"question": row["question"], "passage": passage, "idx": int(row.get("idx", 0)), "label": int(label)}


def _hellaswag(row: Row) -> Row:
    if len(row["endings"]) != 4 or str(row["label"]) not in ("0", "1", "2", "3"):
        raise ValueError(
            f"a question of HellaSwag has four endings and a label from 0 to 3; here {len(row['endings'])} and {row['label']!r}"
        )
    names = ("activity_label", "ctx_a", "ctx_b")
    return {name: row[name] for name in names} | {"endings": list(row["endings"]), "label": str(row["label"])}


def hellaswag_rows(text: str) -> list[Row]:
    """Rows of the text form: blocks of six lines, `activity: context`, the right number, four endings.

    The context has lost its seam: `ctx_b`, which the harness writes with a capital, begins where the last sentence begins with a small
    letter. Where it was WikiHow (no such sentence) `ctx_b` is empty, as in the dataset.
    """
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    if len(lines) % 6:
        raise ValueError(f"it has {len(lines)} lines, not a multiple of six (context, number, four endings)")
    rows = []
    for begin in range(0, len(lines), 6):
        activity, _, context = lines[begin].partition(": ")
        seam = re.fullmatch(r"(.*[.!?\"')])\s+([a-z][^.!?]*)", context, re.DOTALL)
        first, second = (seam[1], seam[2]) if seam else (context, "")
        endings = lines[begin + 2 : begin + 6]
        rows.append({"activity_label": activity, "ctx_a": first, "ctx_b": second, "endings": endings, "label": lines[begin + 1].strip()})
    return rows


def _piqa(row: Row) -> Row:
    if row["label"] not in (0, 1):
        raise ValueError(f"the label {row['label']!r} is neither 0 nor 1")
    return {"goal": row["goal"], "sol1": row["sol1"], "sol2": row["sol2"], "label": int(row["label"])}


def _winogrande(row: Row) -> Row:
    if str(row["answer"]) not in ("1", "2") or "_" not in row["sentence"]:
        raise ValueError(f"the sentence needs a gap _ and the answer 1 or 2; here {row['answer']!r}")
    return {name: str(row[name]) for name in ("sentence", "option1", "option2", "answer")}


def _lambada(row: Row) -> Row:
    return {"text": str(row["text"])}


def _text_of_choices(row: Row, stem: str) -> list[str]:
    return [f"{row[stem]} {row['choices']['text'][row['choices']['label'].index(row['answerKey'].strip())]}"]


_AI2 = "https://allenai.org/data/"
TASKS: dict[str, TaskRows] = {
    "sciq": TaskRows(
        dataset="allenai/sciq", config=None, definition="sciq/sciq.yaml", split="test", files="sciq", published=f"{_AI2}sciq",
        normal=_sciq, texts=lambda row: [row["support"], f"{row['question']} {row['correct_answer']}"],
    ),
    "arc_easy": TaskRows(
        dataset="allenai/ai2_arc", config="ARC-Easy", definition="arc/arc_easy.yaml", split="test", files=r"arc[-_]easy",
        published=f"{_AI2}arc", normal=_arc, texts=lambda row: _text_of_choices(row, "question"),
    ),
    "arc_challenge": TaskRows(
        dataset="allenai/ai2_arc", config="ARC-Challenge", definition="arc/arc_challenge.yaml", split="test", files=r"arc[-_]challenge",
        published=f"{_AI2}arc", normal=_arc, texts=lambda row: _text_of_choices(row, "question"),
    ),
    "logiqa": TaskRows(
        dataset="EleutherAI/logiqa", config="logiqa", definition="logiqa/logiqa.yaml", split="test", files="logiqa",
        published="https://github.com/lgw863/LogiQA-dataset (Eval.txt, Test.txt)", normal=_logiqa,
        texts=lambda row: [row["context"], f"{row['question']} {row['options']['abcd'.index(row['label'])]}"],
        not_files="logiqa[-_]?2|_zh|zh_",
    ),
    "openbookqa": TaskRows(
        dataset="allenai/openbookqa", config="main", definition="openbookqa/openbookqa.yaml", split="test", files="openbookqa|obqa",
        published=f"{_AI2}open-book-qa", normal=_openbookqa, texts=lambda row: _text_of_choices(row, "question_stem"),
        not_files="additional",
    ),
    "boolq": TaskRows(
        dataset="aps/super_glue", config="boolq", definition="super_glue/boolq/default.yaml", split="validation", files="boolq",
        published="https://github.com/google-research-datasets/boolean-questions (dev.jsonl)", normal=_boolq,
        texts=lambda row: [row["passage"], f"{row['question']} {'yes' if row['label'] else 'no'}"],
    ),
    "hellaswag": TaskRows(
        dataset="Rowan/hellaswag", config=None, definition="hellaswag/hellaswag.yaml", split="validation", files="hellaswag",
        published="https://github.com/rowanz/hellaswag (hellaswag_val.jsonl)", normal=_hellaswag,
        texts=lambda row: [f"{row['ctx_a']} {row['ctx_b']} {row['endings'][int(row['label'])]}"],
    ),
    "piqa": TaskRows(
        dataset="baber/piqa", config=None, definition="piqa/piqa.yaml", split="validation", files="piqa",
        published="https://yonatanbisk.com/piqa (valid.jsonl with valid-labels.lst)", normal=_piqa,
        texts=lambda row: [f"{row['goal']} {row['sol2'] if row['label'] else row['sol1']}"],
    ),
    "winogrande": TaskRows(
        dataset="allenai/winogrande", config="winogrande_xl", definition="winogrande/default.yaml", split="validation", files="winogrande",
        published="https://winogrande.allenai.org (dev.jsonl)", normal=_winogrande,
        texts=lambda row: [row["sentence"].replace("_", row[f"option{row['answer']}"], 1)],
        not_files=r"winogrande_(xs|s|m|l|debiased)\b|winogrande_(xs|s|m|l|debiased)_",
    ),
    "lambada_openai": TaskRows(
        dataset="EleutherAI/lambada_openai", config="default", definition="lambada/lambada_openai.yaml", split="test", files="lambada",
        published="https://huggingface.co/datasets/EleutherAI/lambada_openai (lambada_test.jsonl)", normal=_lambada,
        texts=lambda row: [row["text"]], not_files=r"_(de|es|fr|it)\b|standard",
    ),
}  # fmt: skip
