"""Settings of the pretraining job, and of where training runs."""

from typing import Literal

from pydantic import Field

from bliss_ops.config.settings import Settings, neutral


class PretrainingConfig(Settings):
    """The pretraining job, the same for every method compared."""

    num_steps: int = Field(default=10_000, ge=1, description="Optimizer steps per round.")
    batch_sequences: int = Field(default=512, ge=1, le=65_536, description="Sequences per optimizer step.")
    micro_batch_sequences: int = neutral(
        default=32, ge=1, le=65_536, description="Sequences per forward pass; lower it when memory is short."
    )
    learning_rate: float = Field(default=1e-3, gt=0, le=1, description="Peak learning rate (AdamW 0.9/0.95).")
    weight_decay: float = Field(default=0.1, ge=0, le=1, description="AdamW weight decay.")
    max_gradient_norm: float = Field(default=1.0, gt=0, le=1000, description="Gradient clipping.")
    warmup_steps: int = Field(default=500, ge=0, description="Linear learning-rate warm-up at the very start.")
    decay_steps: int = Field(
        default=200, ge=0, description="Length of the decay branch that is evaluated; the next round resumes before it."
    )
    evaluate_every_steps: int = Field(default=500, ge=1, description="Steps between two points of the validation-loss curve.")
    checkpoint_every_steps: int = neutral(default=200, ge=1, description="A killed job loses at most this many steps.")


class ComputeConfig(Settings):
    """Where the work runs. `num_threads` is part of a run's identity: float sums depend on it on a CPU."""

    device: Literal["auto", "cpu", "cuda"] = neutral(default="auto", description="auto: a GPU when there is one.")
    num_threads: int = Field(default=2, ge=1, le=256, description="CPU threads of a training process.")
    num_workers: int = neutral(
        default=1, ge=1, le=4096, description="Processes that share the bilevel training of a round; one GPU each where there are GPUs."
    )
    compile: bool = neutral(default=False, description="torch.compile the models in training: slower to start, faster on a GPU.")
