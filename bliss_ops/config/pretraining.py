"""Settings of the pretraining job, and of where training runs."""

from typing import Literal, Self

from pydantic import Field, model_validator

from bliss_ops.config.settings import Settings, added, neutral


class PretrainingConfig(Settings):
    """The pretraining job, the same for every method compared."""

    num_steps: int = Field(default=10_000, ge=1, description="Optimizer steps per round.")
    batch_sequences: int = Field(default=512, ge=1, le=65_536, description="Sequences per optimizer step.")
    micro_batch_sequences: int = neutral(
        default=32, ge=1, le=65_536, description="Sequences per forward pass and worker; lower it when memory is short."
    )
    activation_checkpointing: bool = neutral(
        default=False, description="Compute every block's activations again in the backward pass: a third more time, far less memory."
    )
    sharding: Literal["auto", "replicated", "full"] = neutral(
        default="auto",
        description="Several workers each hold the whole model and optimizer (replicated) or a part (full); auto goes by the GPU's memory.",
    )
    num_batches_ahead: int = neutral(default=2, ge=0, le=64, description="Batches that a thread keeps ready; 0 reads in between.")
    learning_rate: float = Field(default=1e-3, gt=0, le=1, description="Peak learning rate (AdamW 0.9/0.95).")
    weight_decay: float = Field(default=0.1, ge=0, le=1, description="AdamW weight decay.")
    max_gradient_norm: float = Field(default=1.0, gt=0, le=1000, description="Gradient clipping.")
    max_epochs: float | None = neutral(
        default=None, gt=0, le=1e6, description="Refuse a run whose pretraining would go over its subset more often; empty never does."
    )
    warmup_steps: int = Field(default=500, ge=0, description="Linear learning-rate warm-up at the very start.")
    decay_steps: int = Field(
        default=200, ge=0, description="Length of the decay branch that is evaluated; the next round resumes before it."
    )
    decay_at_steps: tuple[int, ...] = added(
        default=(), description="Steps of the round, ascending, from which further decay branches of that length start; each gives a model."
    )
    evaluate_every_steps: int = Field(default=500, ge=1, description="Steps between two points of the validation-loss curve.")
    checkpoint_every_steps: int = neutral(default=200, ge=1, description="A killed job loses at most this many steps.")
    keep_checkpoints: int = neutral(
        default=2, ge=1, le=1000, description="Checkpoints kept while the job runs, the last ones; 12 bytes per parameter each."
    )
    keep_every_steps: int | None = neutral(
        default=None, ge=1, description="Checkpoints of multiples of this many steps are kept for good, beside the last ones."
    )
    tensorboard: bool = neutral(default=True, description="Write the curves, and the rates that metrics.jsonl leaves out, for TensorBoard.")

    @model_validator(mode="after")
    def _branches_leave_the_main_one(self) -> Self:
        steps = self.decay_at_steps
        if list(steps) != sorted(set(steps)) or any(not 1 <= step < self.num_steps for step in steps):
            raise ValueError(
                f"decay_at_steps is {list(steps)}: give ascending steps of the round from 1 to num_steps - 1 ({self.num_steps - 1}); "
                "the branch after the last step is made anyway"
            )
        return self


class ComputeConfig(Settings):
    """Where the work runs. `num_threads` is part of a run's identity: float sums depend on it on a CPU."""

    device: Literal["auto", "cpu", "cuda"] = neutral(default="auto", description="auto: a GPU when there is one.")
    num_threads: int = Field(default=2, ge=1, le=256, description="CPU threads of a training process.")
    num_workers: int = neutral(
        default=1,
        ge=1,
        le=4096,
        description="Processes that share a training job (warm-up, bilevel training, pretraining); one GPU each where there are GPUs.",
    )
    compile: bool = neutral(default=False, description="torch.compile the models in training: slower to start, faster on a GPU.")
    peak_teraflops: float | None = neutral(
        default=None, gt=0, description="Peak of one device for model FLOPs utilisation; empty: known GPUs' dense bf16 rate, else no MFU."
    )
