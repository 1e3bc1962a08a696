"""Asking a model the questions of a task, and keeping every answer.

One row for each choice of each question: the request as the harness wrote it, its log-likelihood, whether it is the right one. What
cannot be asked is left out and counted: a continuation longer than the model reads. It depends on tokenizer and model
size alone, so models that are compared leave out the same questions.
"""

import logging
from typing import Any

import pyarrow as pa

from bliss_ops import schemas
from bliss_ops.evaluation.harness import TaskData, build

log = logging.getLogger(__name__)


def ask(model: Any, data: TaskData, step: int) -> pa.Table:
    """The answers to all questions of a task (schema `QUESTIONS`), by the harness's `model`, trained for `step` steps."""
    task = build(data)
    has_norm = "acc_norm" in task.aggregation()
    requests, rows = [], []
    num_left_out = 0
    for number, doc in task.doc_iterator():
        context = task.fewshot_context(doc, num_fewshot=0)
        instances = task.construct_requests(doc=doc, ctx=context, metadata=(data.task, number, 1))
        instances = instances if isinstance(instances, list) else [instances]
        if not all(_fits(model, instance) for instance in instances):
            num_left_out += 1
            continue
        right = _right(task, doc, len(instances))
        choices = task.doc_to_choice(doc) if has_norm else []
        for choice, instance in enumerate(instances):
            given, continuation = instance.args
            num_bytes = len(continuation.removeprefix(" ").encode())
            num_characters = len(choices[choice]) if has_norm else None
            rows.append((data.task, number, choice, step, num_bytes, num_characters, choice == right, given, continuation))
            requests.append(instance)
    if not requests:
        raise ValueError(
            f"task {data.task}: none of its {len(data.rows)} questions can be asked, their answers are longer than the model reads"
        )
    if num_left_out:
        log.warning(
            "task %s: %d questions are left out, an answer is longer than the model reads (%d tokens)",
            data.task,
            num_left_out,
            model.max_length,
        )
    answers = model.loglikelihood(requests, disable_tqdm=True)
    names = ("task", "question", "choice", "step", "num_bytes", "num_characters", "is_right", "context", "continuation")
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    columns |= dict(zip(("log_likelihood", "is_greedy"), zip(*answers, strict=True), strict=True))
    return pa.Table.from_pydict({name: list(columns[name]) for name in schemas.QUESTIONS.names}, schema=schemas.QUESTIONS)


def _right(task: Any, doc: Any, num_choices: int) -> int:
    """The number of the right choice; a task without choices has only the right one."""
    if num_choices == 1:
        return 0
    right = task.doc_to_text(doc) if task.multiple_input else task.doc_to_target(doc)
    assert isinstance(right, int)
    assert 0 <= right < num_choices
    return right


def _fits(model: Any, instance: Any) -> bool:
    """Whether the continuation alone is no longer than what the model reads; a token has a byte at least."""
    continuation: str = instance.args[1]
    return len(continuation.encode()) < int(model.max_length) or len(model.tok_encode(continuation)) < int(model.max_length)
