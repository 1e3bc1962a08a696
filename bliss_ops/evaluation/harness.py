"""The harness's own tasks over rows of ours, and the harness's own model class over a saved target.

A task is lm-evaluation-harness's `ConfigurableTask` with the definition that is installed: its prompt, its choices, its metrics. Only
the dataset is replaced where rows come from a folder, so a request is the harness's request, character by character. The model is its
`HFLM`: right padding, contexts cut from the left at the model's `max_position_embeddings`, log-likelihoods in float32. The harness is an
extra (`pip install 'bliss-ops[evaluate]'`); nothing here is needed where no tasks are set.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from upath import UPath

from bliss_ops.config import EvaluationConfig
from bliss_ops.config.evaluation import HUB
from bliss_ops.evaluation import files
from bliss_ops.evaluation.rows import TASKS, Row

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TaskData:
    """The rows of one task that are asked, in hub columns."""

    task: str
    split: str
    rows: list[Row]
    digest: str


def read_data(settings: EvaluationConfig) -> list[TaskData]:
    """The rows of every task of the settings.

    Raises:
        ValueError: rows of a task are not there or not readable, for all such tasks at once.
    """
    found, problems = [], []
    for task in settings.tasks:
        try:
            split, rows = _from_hub(task) if settings.data == HUB else _from_folder(task, UPath(settings.data))
        except ValueError as error:
            problems.append(str(error))
            continue
        rows = rows[: settings.max_examples_per_task]
        found.append(TaskData(task, split, rows, files.digest(rows)))
        log.info("task %s: %s questions of the %s split", task, f"{len(rows):,}", split)
    if problems:
        raise ValueError("\n".join(problems))
    return found


def build(data: TaskData) -> Any:
    """The harness's task over these rows; nothing is downloaded.

    Raises:
        ValueError: lm-evaluation-harness is not installed.
    """
    try:
        import datasets
        from lm_eval.api.task import ConfigurableTask
        from lm_eval.tasks._yaml_loader import load_yaml
    except ImportError as error:
        raise ValueError(f"evaluation.tasks need lm-evaluation-harness ({error}): pip install 'bliss-ops[evaluate]'") from error
    datasets.disable_progress_bars()

    def rows_of_ours(**_: Any) -> dict[str, Any]:
        return {TASKS[data.task].split: datasets.Dataset.from_list(data.rows)}

    config: dict[str, Any] = load_yaml(_definitions() / TASKS[data.task].definition)
    splits = {"training_split": None, "validation_split": None, "test_split": TASKS[data.task].split}
    return ConfigurableTask(config=config | splits | {"custom_dataset": rows_of_ours, "num_fewshot": 0})


def model_of(model: "PreTrainedModel", tokenizer: UPath, batch_sequences: int) -> Any:
    """The harness's model class around a model in memory and the corpus's tokenizer, end-of-text as bos, eos and padding."""
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedTokenizerFast

    from bliss_ops.corpus.tokenizer import load

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of every context that is cut
    reference, end = load(tokenizer).for_transformers()
    fast = PreTrainedTokenizerFast(tokenizer_object=reference, bos_token=end, eos_token=end, pad_token=end)
    return HFLM(pretrained=model, backend="causal", tokenizer=fast, batch_size=batch_sequences)


def _from_folder(task: str, folder: UPath) -> tuple[str, list[Row]]:
    found = files.find(task, folder)
    return found.split, files.read(found)


def _from_hub(task: str) -> tuple[str, list[Row]]:
    """Rows of the hub's dataset, of the split that the harness asks.

    Raises:
        ValueError: there is no network, or `datasets` can no longer read that dataset.
    """
    import datasets

    of_task = TASKS[task]
    config: Mapping[str, Any] = {"path": of_task.dataset, "name": of_task.config, "split": of_task.split}
    try:
        rows = list(datasets.load_dataset(**config))
    except (OSError, RuntimeError, ValueError) as error:  # no network; a dataset that is a script; no such configuration or split
        raise ValueError(
            f"no task data for {task}: the dataset {of_task.dataset} of the Hugging Face hub cannot be read "
            f"({type(error).__name__}: {error}). Download its files elsewhere, or take those of {of_task.published}; then set "
            "evaluation.data to the folder they are in"
        ) from error
    return of_task.split, [of_task.normal(row) for row in rows]


def _definitions() -> Path:
    import lm_eval

    return Path(lm_eval.__file__).parent / "tasks"
