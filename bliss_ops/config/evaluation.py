"""Settings of the evaluation: which tasks, from where, and how they are asked."""

from typing import Literal

from pydantic import Field, field_validator, model_validator

from bliss_ops.config.settings import Settings, StoredAddress

TaskName = Literal[
    "sciq", "arc_easy", "arc_challenge", "logiqa", "openbookqa", "boolq", "hellaswag", "piqa", "winogrande", "lambada_openai",
]  # fmt: skip
HUB = "hub"


class EvaluationConfig(Settings):
    """Zero-shot tasks a round's target is measured on, beside the held-out validation loss."""

    tasks: tuple[TaskName, ...] = Field(
        default=(),
        max_length=10,
        description="Zero-shot tasks, by their names in lm-evaluation-harness; empty: only the validation loss.",
    )
    data: StoredAddress = Field(
        default=HUB,
        min_length=1,
        description="Where their rows are: `hub` (Hugging Face datasets), or a folder of downloaded files, which needs no network.",
    )
    batch_sequences: int = Field(
        default=16,
        ge=1,
        le=65_536,
        description="Requests per forward pass; lower it when memory is short. Log-likelihoods move by rounding.",
    )
    max_examples_per_task: int | None = Field(
        default=None, ge=1, description="Only the first so many questions of each task; empty asks all."
    )
    contamination_ngram: int = Field(
        default=13,
        ge=8,
        le=50,
        description="Words in a row that a sequence has to share with a task to count as contaminated (GPT-3 took 13).",
    )
    exclude_contaminated: bool = Field(
        default=False, description="Leave candidate sequences out of the selection that share n-grams with a task."
    )

    @field_validator("tasks")
    @classmethod
    def _each_once(cls, tasks: tuple[TaskName, ...]) -> tuple[TaskName, ...]:
        if len(set(tasks)) < len(tasks):
            raise ValueError(f"name every task once; {', '.join(sorted({task for task in tasks if tasks.count(task) > 1}))} is there twice")
        return tasks

    @model_validator(mode="after")
    def _something_to_exclude(self) -> "EvaluationConfig":
        if self.exclude_contaminated and not self.tasks:
            raise ValueError("evaluation.exclude_contaminated leaves out what shares text with evaluation.tasks: set some")
        return self
