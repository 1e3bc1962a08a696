"""Settings of the baseline selectors, one section each."""

from typing import Literal

from pydantic import Field, model_validator

from bliss_ops.config.settings import Settings, neutral


class ClassifierConfig(Settings):
    """The baseline `classifier`: logistic regression on hashed n-grams, validation text against candidates."""

    num_buckets: int = Field(default=1 << 18, ge=1 << 8, le=1 << 24, description="Buckets the words and word pairs are hashed into.")
    num_candidate_sequences: int = Field(
        default=20_000, ge=2, le=200_000, description="Candidate sequences sampled as negatives; the two classes weigh the same."
    )
    l2_weight: float = Field(default=1e-4, gt=0, le=100, description="Weight of half the squared norm of the coefficients.")
    holdout_fraction: float = Field(
        default=0.1, gt=0, le=0.5, description="Share of both classes kept from training, to measure accuracy and AUC."
    )
    max_iterations: int = Field(default=200, ge=1, le=10_000, description="Most L-BFGS iterations.")


class DsirConfig(Settings):
    """The baseline `dsir`: importance weights of hashed n-gram distributions (arXiv 2302.03169)."""

    num_buckets: int = Field(default=10_000, ge=1 << 4, le=1 << 24, description="Buckets the words and word pairs are hashed into.")
    num_candidate_sequences: int = Field(
        default=100_000, ge=1, le=1_000_000_000, description="Candidate sequences the raw distribution is counted on, a seeded sample."
    )
    smoothing: float = Field(default=1e-8, gt=0, le=1, description="Added to every bucket's probability before the logarithm.")
    sampling: Literal["gumbel", "top_k"] = Field(
        default="gumbel", description="gumbel: sample in proportion to the importance weights, as published; top_k: the largest weights."
    )


class LessConfig(Settings):
    """The baseline `less`: similarity of projected gradients (arXiv 2402.04333), in its form for pretraining."""

    num_checkpoints: int = Field(
        default=4, ge=1, le=100, description="Checkpoints of its warm-up; each costs a forward and a backward pass per candidate."
    )
    num_warmup_steps: int = Field(
        default=400,
        ge=1,
        le=1_000_000,
        description="Optimizer steps of its warm-up, from the model the round starts from, with the batches of pretraining.",
    )
    projection: Literal["sparse", "rademacher", "none"] = Field(
        default="sparse",
        description="Of the gradients: sparse: a count sketch; rademacher: a dense matrix of signs, as published (for GPUs); none: exact.",
    )
    projection_size: int = Field(default=8192, ge=16, le=1 << 24, description="Numbers a gradient is projected to.")
    sketch_entries: int = Field(default=1, ge=1, le=64, description="Of a sparse projection: buckets that every number is added to.")

    @model_validator(mode="after")
    def _fits(self) -> "LessConfig":
        if self.num_warmup_steps < self.num_checkpoints:
            raise ValueError(f"less.num_warmup_steps is {self.num_warmup_steps}: set it to less.num_checkpoints or more")
        if self.projection_size % self.sketch_entries:
            raise ValueError(f"less.projection_size is {self.projection_size}: set it to a multiple of less.sketch_entries")
        return self


class MatesConfig(Settings):
    """The baseline `mates`: a regressor of measured one-step influences (arXiv 2406.06046)."""

    num_probes: int = Field(default=80_000, ge=16, le=100_000_000, description="Candidate sequences whose influence is measured.")
    validation_rows: int = Field(
        default=1024, ge=1, le=1_000_000, description="Rows of the guide part the loss is measured on, a fixed seeded subset."
    )
    learning_rate: float = Field(default=1e-3, gt=0, le=1, description="AdamW learning rate of the one step on a probe.")
    weight_decay: float = Field(default=0.1, ge=0, le=1, description="AdamW weight decay of that step.")
    max_gradient_norm: float = Field(default=1.0, gt=0, le=1000, description="Gradient clipping of that step.")
    holdout_fraction: float = Field(
        default=0.1, gt=0, le=0.5, description="Share of the probes kept from the regressor, to choose its best step by Spearman."
    )
    num_epochs: int = Field(default=5, ge=1, le=1000, description="Passes of the regressor over the probes it learns from.")
    regressor_batch_sequences: int = Field(default=64, ge=1, le=65_536, description="Probes per step of the regressor.")
    regressor_learning_rate: float = Field(
        default=5e-5, gt=0, le=1, description="AdamW learning rate of the regressor at its first step; it falls linearly to zero."
    )
    regressor_weight_decay: float = Field(default=0.01, ge=0, le=1, description="AdamW weight decay of the regressor.")
    regressor_start: Literal["inherited", "reset"] = Field(
        default="inherited", description="From round 2 on: the previous round's regressor, or the warmed-up proxy's backbone again."
    )
    pooling: Literal["next_token", "mean", "attention"] = Field(
        default="next_token", description="How the regressor's hidden states become one vector, as bilevel.score_pooling."
    )
    evaluate_every_steps: int = Field(default=20, ge=1, description="Steps between two looks at the held-out probes.")
    sampling: Literal["gumbel", "top_k"] = Field(
        default="gumbel", description="gumbel: sample in proportion to exp(prediction / temperature), as published; top_k: the largest."
    )
    temperature: float = Field(default=0.5, gt=0, le=1000, description="Of that sampling; predictions have a spread of at most about 1.")
    checkpoint_every_steps: int = neutral(default=100, ge=1, description="A killed regression loses at most this many steps.")

    def num_heldout(self, num_probes: int) -> int:
        """How many of so many probes the regressor does not learn from."""
        return max(2, round(self.holdout_fraction * num_probes))

    def num_steps(self, num_probes: int) -> int:
        """Optimizer steps of the regressor."""
        return self.num_epochs * -(-(num_probes - self.num_heldout(num_probes)) // self.regressor_batch_sequences)
