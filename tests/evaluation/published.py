"""Rows of the ten tasks, written for these tests: as their authors publish them, and, by hand, as the hub's datasets have them.

Nothing here is read by the other: what the hub's rows should be is written out, so that a reader can be held against it.
"""

import json
from pathlib import Path
from typing import Any

FILES: dict[str, str] = {
    "sciq/test.json": json.dumps(
        [
            {
                "question": "What do plants take in from the air?",
                "distractor3": "iron",
                "distractor1": "salt",
                "distractor2": "sand",
                "correct_answer": "carbon dioxide",
                "support": "  Leaves take in carbon dioxide through small openings, and give off oxygen by day.",
            },
            {
                "question": "Which planet is nearest to the sun?",
                "distractor3": "Mars",
                "distractor1": "Venus",
                "distractor2": "Earth",
                "correct_answer": "Mercury",
                "support": "",
            },
        ],
        indent=4,
    ),
    "arc/ARC-Easy-Test.jsonl": "\n".join(
        json.dumps(row)
        for row in (
            {
                "id": "E1",
                "question": {
                    "stem": "Which tool measures length?",
                    "choices": [{"text": "a ruler", "label": "A"}, {"text": "a clock", "label": "B"}, {"text": "a scale", "label": "C"}],
                },
                "answerKey": "A",
            },
            {
                "id": "E2",
                "question": {
                    "stem": "Ice melts because it gets",
                    "choices": [{"text": "colder", "label": "1"}, {"text": "warmer", "label": "2"}, {"text": "heavier", "label": "3"}],
                },
                "answerKey": "2",
            },
        )
    ),
    "arc/ARC-Challenge-Test.jsonl": json.dumps(
        {
            "id": "C1",
            "question": {
                "stem": "Two balls of equal size fall. Which lands first in a vacuum?",
                "choices": [
                    {"text": "the heavier one", "label": "A"},
                    {"text": "the lighter one", "label": "B"},
                    {"text": "neither, they land together", "label": "C"},
                    {"text": "the smoother one", "label": "D"},
                ],
            },
            "answerKey": "C",
        }
    )
    + "\n",
    "LogiQA/Test.txt": (
        "\nb\nEvery clerk of the office drinks tea.Some who drink tea sleep badly.\nWhich of these follows?\n"
        "A.Every clerk sleeps badly.\nB.Some who sleep badly drink tea.\nC.No clerk sleeps badly.\nD.All who drink tea are clerks.\n"
        "\nd\nIf it rains, the match is off.The match is on.\nWhat can be said?\n"
        "A.It rains.\nB.It may rain.\nC.Nothing.\nD.It does not rain.\n"
    ),
    "openbookqa/test.jsonl": "".join(
        json.dumps(
            {
                "id": name,
                "question": {
                    "stem": stem,
                    "choices": [{"text": text, "label": label} for text, label in zip(texts, "ABCD", strict=True)],
                },
                "answerKey": key,
            }
        )
        + "\n"
        for name, stem, texts, key in (
            ("7-1", "A magnet sticks to", ["glass", "wood", "an iron nail", "paper"], "C"),
            ("7-2", "Bees carry pollen from", ["flower to flower", "stone to stone", "sea to sea", "star to star"], "A"),
        )
    ),
    "boolq/dev.jsonl": "".join(
        json.dumps({"question": question, "title": title, "answer": answer, "passage": passage}) + "\n"
        for question, title, answer, passage in (
            ("is a tomato a fruit", "Tomato", True, "The tomato is the edible berry of a plant; botanists call it a fruit."),
            ("do whales have gills", "Whale", False, "Whales are mammals \u2013 they breathe air with lungs.\u2028They come up for it."),
        )
    ),
    "hellaswag/hellaswag_val.jsonl": "".join(
        json.dumps(row) + "\n"
        for row in (
            {
                "ind": 4,
                "activity_label": "Baking bread",
                "ctx_a": "A woman kneads dough on a table.",
                "ctx_b": "then she",
                "ctx": "A woman kneads dough on a table. then she",
                "split": "val",
                "split_type": "indomain",
                "label": 2,
                "endings": ["flies away.", "paints the wall.", "puts it into the oven.", "reads the [substeps] news."],
                "source_id": "activitynet~v_1",
            },
            {
                "ind": 9,
                "activity_label": "Home and Garden",
                "ctx_a": "[header] How to water roses [title] Use a can. [step] Fill the can.",
                "ctx_b": "",
                "ctx": "[header] How to water roses [title] Use a can. [step] Fill the can.",
                "split": "val",
                "split_type": "zeroshot",
                "label": 0,
                "endings": ["Pour slowly. [title] Wait.", "Drink it.", "Break  the can.", "Sell the roses."],
                "source_id": "wikihow~2",
            },
        )
    ),
    "piqa/valid.jsonl": "".join(
        json.dumps(row) + "\n"
        for row in (
            {"goal": "keep a door open", "sol1": "put a wedge under it", "sol2": "put a wedge on the roof"},
            {"goal": "cool a drink", "sol1": "add a warm stone", "sol2": "add ice"},
            {"goal": "dry a shirt", "sol1": "hang it on a line", "sol2": "put it into a pond"},
        )
    ),
    "piqa/valid-labels.lst": "0\n1\n0\n",
    "winogrande_1.1/dev.jsonl": "".join(
        json.dumps({"qID": f"Q-{number}", "sentence": sentence, "option1": first, "option2": second, "answer": answer}) + "\n"
        for number, (sentence, first, second, answer) in enumerate(
            (
                ("The book did not fit on the shelf because the _ was too tall.", "book", "shelf", "1"),
                ("Ann thanked Sue because _ had helped.", "Ann", "Sue", "2"),
            )
        )
    ),
    "lambada/lambada_test_en.jsonl": "".join(
        json.dumps({"text": text}) + "\n"
        for text in (
            'She looked for the key everywhere.\n\n"It is not here," she said, and he helped her look for the key',
            "The ship came in at night, and nobody on the quay had ever seen such a large ship",
        )
    ),
}

HUB: dict[str, list[dict[str, Any]]] = {
    "sciq": [
        {
            "question": "What do plants take in from the air?",
            "distractor3": "iron",
            "distractor1": "salt",
            "distractor2": "sand",
            "correct_answer": "carbon dioxide",
            "support": "  Leaves take in carbon dioxide through small openings, and give off oxygen by day.",
        },
        {
            "question": "Which planet is nearest to the sun?",
            "distractor3": "Mars",
            "distractor1": "Venus",
            "distractor2": "Earth",
            "correct_answer": "Mercury",
            "support": "",
        },
    ],
    "arc_easy": [
        {
            "id": "E1",
            "question": "Which tool measures length?",
            "choices": {"text": ["a ruler", "a clock", "a scale"], "label": ["A", "B", "C"]},
            "answerKey": "A",
        },
        {
            "id": "E2",
            "question": "Ice melts because it gets",
            "choices": {"text": ["colder", "warmer", "heavier"], "label": ["1", "2", "3"]},
            "answerKey": "2",
        },
    ],
    "arc_challenge": [
        {
            "id": "C1",
            "question": "Two balls of equal size fall. Which lands first in a vacuum?",
            "choices": {
                "text": ["the heavier one", "the lighter one", "neither, they land together", "the smoother one"],
                "label": ["A", "B", "C", "D"],
            },
            "answerKey": "C",
        },
    ],
    "logiqa": [
        {
            "label": "b",
            "context": "Every clerk of the office drinks tea. Some who drink tea sleep badly.",
            "question": "Which of these follows?",
            "options": [
                "Every clerk sleeps badly.",
                "Some who sleep badly drink tea.",
                "No clerk sleeps badly.",
                "All who drink tea are clerks.",
            ],
        },
        {
            "label": "d",
            "context": "If it rains, the match is off. The match is on.",
            "question": "What can be said?",
            "options": ["It rains.", "It may rain.", "Nothing.", "It does not rain."],
        },
    ],
    "openbookqa": [
        {
            "id": "7-1",
            "question_stem": "A magnet sticks to",
            "choices": {"text": ["glass", "wood", "an iron nail", "paper"], "label": ["A", "B", "C", "D"]},
            "answerKey": "C",
        },
        {
            "id": "7-2",
            "question_stem": "Bees carry pollen from",
            "choices": {"text": ["flower to flower", "stone to stone", "sea to sea", "star to star"], "label": ["A", "B", "C", "D"]},
            "answerKey": "A",
        },
    ],
    "boolq": [
        {
            "question": "is a tomato a fruit",
            "passage": "Tomato -- The tomato is the edible berry of a plant; botanists call it a fruit.",
            "idx": 0,
            "label": 1,
        },
        {
            "question": "do whales have gills",
            "passage": "Whale -- Whales are mammals \u2013 they breathe air with lungs.\u2028They come up for it.",
            "idx": 1,
            "label": 0,
        },
    ],
    "hellaswag": [
        {
            "ind": 4,
            "activity_label": "Baking bread",
            "ctx_a": "A woman kneads dough on a table.",
            "ctx_b": "then she",
            "ctx": "A woman kneads dough on a table. then she",
            "endings": ["flies away.", "paints the wall.", "puts it into the oven.", "reads the [substeps] news."],
            "source_id": "activitynet~v_1",
            "split": "val",
            "split_type": "indomain",
            "label": "2",
        },
        {
            "ind": 9,
            "activity_label": "Home and Garden",
            "ctx_a": "[header] How to water roses [title] Use a can. [step] Fill the can.",
            "ctx_b": "",
            "ctx": "[header] How to water roses [title] Use a can. [step] Fill the can.",
            "endings": ["Pour slowly. [title] Wait.", "Drink it.", "Break  the can.", "Sell the roses."],
            "source_id": "wikihow~2",
            "split": "val",
            "split_type": "zeroshot",
            "label": "0",
        },
    ],
    "piqa": [
        {"goal": "keep a door open", "sol1": "put a wedge under it", "sol2": "put a wedge on the roof", "label": 0},
        {"goal": "cool a drink", "sol1": "add a warm stone", "sol2": "add ice", "label": 1},
        {"goal": "dry a shirt", "sol1": "hang it on a line", "sol2": "put it into a pond", "label": 0},
    ],
    "winogrande": [
        {
            "sentence": "The book did not fit on the shelf because the _ was too tall.",
            "option1": "book",
            "option2": "shelf",
            "answer": "1",
        },
        {"sentence": "Ann thanked Sue because _ had helped.", "option1": "Ann", "option2": "Sue", "answer": "2"},
    ],
    "lambada_openai": [
        {"text": 'She looked for the key everywhere.\n\n"It is not here," she said, and he helped her look for the key'},
        {"text": "The ship came in at night, and nobody on the quay had ever seen such a large ship"},
    ],
}

TASKS = tuple(HUB)


def write_files(folder: Path) -> Path:
    """All files as their authors publish them, below `folder`."""
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder
