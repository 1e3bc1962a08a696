"""What a round's target is worth: held-out validation loss, and zero-shot tasks where some are set.

    rows, files     the ten tasks: where their rows come from, in which forms
    harness         lm-evaluation-harness's own tasks and model class over these rows
    asking          every question to a model, every answer kept
    measures        from answers to accuracies, bits per byte and their standard errors
    paired          the difference between two runs, by questions drawn again
    word_runs       runs of words that two texts share, which contamination.py looks for

Every model of the pretrain artifact is evaluated, the decay branches in the middle, too. A finished task of a model is kept in
`answers/` until the artifact is finished: a killed evaluation asks only what it had not asked.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from bliss_ops import schemas
from bliss_ops.config import EvaluationConfig, RunConfig
from bliss_ops.config.evaluation import HUB
from bliss_ops.evaluation import measures
from bliss_ops.evaluation.measures import QUESTIONS
from bliss_ops.lake import Run, atomic_file, write_parquet
from bliss_ops.manifest import find_manifest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from bliss_ops.corpus.validation import ValidationRows
    from bliss_ops.evaluation.harness import TaskData

log = logging.getLogger(__name__)

RESULTS = "results.parquet"


class Trained(NamedTuple):
    """One model of a pretrain artifact."""

    path: str
    step: int  # optimizer steps of the target over its whole life
    num_tokens: int  # that it was trained on


class Result(NamedTuple):
    """A row of `results.parquet` without its model."""

    task: str
    metric: str
    value: float
    standard_error: float | None
    num_examples: int


def evaluate(run: Run, round_number: int, directory: UPath) -> tuple[list[str], dict[str, Any]]:
    """Write `results.parquet` and, with tasks, `questions.parquet`; see docs/evaluation.md.

    Raises:
        ValueError: rows of a task are missing (before any model is loaded), or a model's files are cut.
    """
    from bliss_ops.corpus import validation
    from bliss_ops.evaluation.harness import read_data
    from bliss_ops.models import language
    from bliss_ops.training.device import choose_device

    settings = run.config.evaluation
    data = read_data(settings)
    device = choose_device(run.config.compute)
    held_out = validation.read(run.corpus.validation, "holdout")
    pretrained = run.round(round_number) / "pretrain"
    trained = models(run, round_number)
    results: list[tuple[Trained, Result]] = []
    metrics: dict[str, Any] = {}
    for one in trained:
        model = language.load(pretrained, one.path).to(device).eval()
        of_model, metrics = _validation(run, held_out, model)
        if data:
            answers = _ask(run, model, data, one, directory)
            found = measures.measures(list(measures.outcomes(answers)))
            of_model += [Result(each.task, each.metric, each.value, each.standard_error, each.num_questions) for each in found]
            metrics["tasks"] = {task: _values(found, task) for task in dict.fromkeys(each.task for each in found)}
        results += [(one, result) for result in of_model]
        for result in (each for each in of_model if each.metric in ("loss", "perplexity", "accuracy")):
            error = "" if result.standard_error is None else f" +- {result.standard_error:.4f}"
            log.info("evaluate %s round %d step %d: %s %s %.4f%s", run.name, round_number, one.step, *result[:3], error)
    _write_results(directory / RESULTS, results)
    if not data:
        return [RESULTS], metrics
    _join(directory, trained, data)
    return [RESULTS, QUESTIONS], metrics | {"task_data": {each.task: {"split": each.split, "sha256": each.digest} for each in data}}


def check_data(settings: EvaluationConfig) -> None:
    """Return when every task has files in the folder of tasks; what only the hub has is asked when it is needed.

    Raises:
        ValueError: of some there are none; the message names them all, where was looked, and how to get them.
    """
    from bliss_ops.evaluation import files

    problems = []
    for task in settings.tasks if settings.data != HUB else ():
        try:
            files.find(task, UPath(settings.data))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("\n".join(problems))


def models(run: Run, round_number: int) -> list[Trained]:
    """The models of a round's pretrain artifact, by their steps; the last one is what the round ends with."""
    manifest = find_manifest(run.round(round_number) / "pretrain")
    assert manifest is not None
    if "models" in manifest.metrics:
        return [Trained(one["path"], one["step"], one["num_tokens"]) for one in manifest.metrics["models"]]
    return [_only_model(run.config, round_number)]


def _only_model(config: RunConfig, round_number: int) -> Trained:
    """Of a manifest of a former version, which says nothing about its model."""
    settings = config.pretraining
    step = config.target.warmup_steps + round_number * settings.num_steps + settings.decay_steps
    return Trained("model", step, step * settings.batch_sequences * config.ingest.sequence_length)


def _validation(run: Run, held_out: "ValidationRows", model: "PreTrainedModel") -> tuple[list[Result], dict[str, Any]]:
    """Loss (nats per token, standard error over rows) and perplexity on the held-out part; with several sets the loss is their weighted
    mean, and each one's own loss is a task of its own."""
    from bliss_ops.corpus import validation
    from bliss_ops.training.loop import mean_token_loss

    loss, sum_N, count_N = mean_token_loss(model, held_out)
    perplexity = float(np.exp(loss))
    names = validation.set_names(run.corpus.config.validation)
    of_set = {name: held_out.set_N == number for number, name in enumerate(names)}
    loss_of = {name: float(sum_N[rows].sum() / count_N[rows].sum()) for name, rows in of_set.items()}
    residual_N = sum_N - np.array(list(loss_of.values()))[held_out.set_N] * count_N  # ratio estimator: rows have unequal numbers of tokens
    error = float(np.sqrt(((held_out.weight_N * residual_N) ** 2).sum()) / (held_out.weight_N * count_N).sum())
    results = [
        Result("validation", "loss", loss, error, len(sum_N)),
        Result("validation", "perplexity", perplexity, perplexity * error, len(sum_N)),
    ]
    metrics: dict[str, Any] = {"validation_loss": loss, "perplexity": perplexity}
    if len(names) > 1:  # each set for itself, beside the weighted mean
        metrics["validation_losses"] = loss_of
        for name, rows in of_set.items():
            error_of_set = float(np.sqrt((residual_N[rows] ** 2).sum()) / count_N[rows].sum())
            results.append(Result(f"validation:{name}", "loss", loss_of[name], error_of_set, int(rows.sum())))
    return results, metrics


def _ask(run: Run, model: "PreTrainedModel", data: "Sequence[TaskData]", one: Trained, directory: UPath) -> pa.Table:
    """The answers of one model to all tasks; what is in `answers/` already is not asked again."""
    from bliss_ops.evaluation import asking, harness

    asked: Any = None
    tables = []
    for each in data:
        path = _answers(directory, one, each.task)
        if (table := _answered(path, each)) is None:
            asked = asked or harness.model_of(model, run.corpus.tokenizer, run.config.evaluation.batch_sequences)
            table = asking.ask(asked, each, one.step).replace_schema_metadata({"sha256": each.digest})
            write_parquet(path, table)
        tables.append(table.select(list(measures.COLUMNS)).replace_schema_metadata())
    return pa.concat_tables(tables)


def _answers(directory: UPath, one: Trained, task: str) -> UPath:
    return directory / "answers" / f"step-{one.step:06d}-{task}.parquet"


def _answered(path: UPath, data: "TaskData") -> pa.Table | None:
    """What a killed evaluation had asked of the same rows."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        table = pq.read_table(file)
    if (table.schema.metadata or {}).get(b"sha256", b"").decode() != data.digest:
        log.warning("%s: the rows of the task have changed since it was asked: it is asked again", data.task)
        return None
    log.info("task %s is answered already (%s)", data.task, path.name)
    return table


def _join(directory: UPath, trained: "Sequence[Trained]", data: "Sequence[TaskData]") -> None:
    """All answers as one `questions.parquet`, a row group for each task of each model."""
    with atomic_file(directory / QUESTIONS) as file, pq.ParquetWriter(file, schemas.QUESTIONS, compression="zstd") as writer:
        for one in trained:
            for each in data:
                with _answers(directory, one, each.task).open("rb") as source:
                    writer.write_table(pq.read_table(source).replace_schema_metadata())


def _write_results(path: UPath, results: list[tuple[Trained, Result]]) -> None:
    rows = [(*result, one.step, one.num_tokens) for one, result in results]
    columns = dict(zip(schemas.EVALUATION.names, map(list, zip(*rows, strict=True)), strict=True))
    write_parquet(path, pa.Table.from_pydict(columns, schema=schemas.EVALUATION))


def _values(found: list[measures.Measure], task: str) -> dict[str, float]:
    return {one.metric: one.value for one in found if one.task == task}
