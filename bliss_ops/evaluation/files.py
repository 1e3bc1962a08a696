"""Rows of a task from a folder of downloaded files, in whatever published form they are.

A file belongs to a task by its path below the folder (`piqa/valid.jsonl`, `arc/ARC-Easy-Test.jsonl`) and to a split by its name (test;
validation, valid, val, dev or eval). The split that the harness asks is taken where it is there, else the other one, with a warning.
Formats: JSON lines, a JSON array, Parquet, the text forms of LogiQA and HellaSwag; a plain `.gz` behind any of them.
"""

import gzip
import hashlib
import io
import json
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq
from upath import UPath

from bliss_ops.evaluation.rows import TASKS, Row, TaskRows, hellaswag_rows, logiqa_rows

log = logging.getLogger(__name__)

_SPLITS = {"test": ("test",), "validation": ("validation", "valid", "val", "dev", "eval")}
_ENDINGS = (".jsonl", ".json", ".parquet", ".txt")
_TEXT_FORMS: dict[str, Callable[[str], list[Row]]] = {"logiqa": logiqa_rows, "hellaswag": hellaswag_rows}


@dataclass(frozen=True)
class Found:
    """The files of one task."""

    task: str
    split: str
    files: tuple[UPath, ...]


def find(task: str, folder: UPath) -> Found:
    """The files that have the rows of `task`.

    Raises:
        ValueError: there are none, or several sets of them; the message says what was looked for, where, and how to get it.
    """
    of_task = TASKS[task]
    if not folder.is_dir():
        raise ValueError(f"no task data: evaluation.data is {folder}, and there is no such folder. {_how(task, of_task)}")
    paths = sorted(path for path in folder.rglob("*") if _ending(path) and path.is_file())
    mine = [path for path in paths if _belongs(of_task, _below(folder, path))]
    others = [split for split in _SPLITS if split != of_task.split]
    for split in (of_task.split, *others):
        if files := [path for path in mine if _split_of(path) == split]:
            kinds = {re.sub(r"\d+", "", _below(folder, path)) for path in files}  # parts and shards of one set differ by numbers
            if len(kinds) > 1:
                listing = ", ".join(_below(folder, path) for path in files)
                raise ValueError(f"task {task}: {folder} has more than one {split} set ({listing}): keep one of them there")
            if split != of_task.split:
                log.warning("task %s: the harness asks its %s split, %s has only %s: that is asked", task, of_task.split, folder, split)
            return Found(task, split, tuple(files))
    seen = f"of its files there are only {', '.join(_below(folder, path) for path in mine)}" if mine else "none of its files is there"
    raise ValueError(
        f"no task data for {task}: looked below {folder} for a {of_task.split} (or {' or '.join(others)}) file in .jsonl, .json, .parquet"
        f"{' or .txt' if task in _TEXT_FORMS else ''} whose path has {of_task.files!r}; {seen}. {_how(task, of_task)}"
    )


def read(found: Found) -> list[Row]:
    """All rows, in the columns of the hub's dataset.

    Raises:
        ValueError: a file is not in a form of this task; the message names file, row and what is wrong.
    """
    rows: list[Row] = []
    for path in found.files:
        raw = _raw_rows(found.task, path)
        for number, row in enumerate(raw):
            try:
                rows.append(TASKS[found.task].normal(row))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
                keys = ", ".join(sorted(row)) if isinstance(row, dict) else type(row).__name__
                raise ValueError(f"{path}, row {number}: {what}. Its fields are {keys}; that is no known form of {found.task}") from error
    if not rows:
        raise ValueError(f"{', '.join(map(str, found.files))}: no rows of {found.task} in there")
    return rows


def digest(rows: list[Row]) -> str:
    """Hash of the content of rows, the same whatever form they came in."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _raw_rows(task: str, path: UPath) -> list[Any]:
    data = path.read_bytes()
    if path.name.endswith(".gz"):
        data = gzip.decompress(data)
    try:
        if _ending(path) == ".parquet":
            raw: list[Any] = pq.read_table(io.BytesIO(data)).to_pylist()
        elif _ending(path) == ".txt":
            raw = _TEXT_FORMS[task](data.decode()) if task in _TEXT_FORMS else []
        elif data.lstrip()[:1] == b"[":
            raw = json.loads(data)
        else:
            raw = [json.loads(line) for line in data.decode().split("\n") if line.strip()]  # not splitlines: U+2028 is no end of a line
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as {_ending(path)} of {task}: {error}") from error
    labels = path.with_name(re.sub(r"^([^.]+)[.](.*)jsonl$", r"\1-labels.\2lst", path.name))
    if task == "piqa" and raw and "label" not in raw[0]:
        raw = _labelled(raw, path, labels)
    return raw


def _labelled(raw: list[Row], path: UPath, labels: UPath) -> list[Row]:
    """PIQA's authors keep the answers in a file of their own, a line each."""
    if not labels.exists():
        raise ValueError(f"no task data for piqa: {path} has no labels, and {labels.name} is not beside it")
    values = labels.read_text().split()
    if len(values) != len(raw):
        raise ValueError(f"{labels} has {len(values)} labels for the {len(raw)} questions of {path.name}")
    return [row | {"label": int(value)} for row, value in zip(raw, values, strict=True)]


def _below(folder: UPath, path: UPath) -> str:
    return path.path[len(folder.path) :].strip("/")


def _ending(path: UPath) -> str:
    name = path.name.lower().removesuffix(".gz")
    return next((ending for ending in _ENDINGS if name.endswith(ending)), "")


def _belongs(of_task: TaskRows, below: str) -> bool:
    return bool(re.search(of_task.files, below.lower())) and not re.search(of_task.not_files, below.lower())


def _split_of(path: UPath) -> str | None:
    words = re.split(r"[^a-z]+", path.name.lower())
    return next((split for split, names in _SPLITS.items() if any(name in words for name in names)), None)


def _how(task: str, of_task: TaskRows) -> str:
    config = f", configuration {of_task.config}" if of_task.config else ""
    return (
        f"Get it from the dataset {of_task.dataset} of the Hugging Face hub{config} (its .parquet or .jsonl files) or from "
        f"{of_task.published}, put it into the folder {task}/ there, or set evaluation.data=hub on a machine with a network"
    )
