"""Settings of the baseline selectors, one section each."""

from typing import Literal

from pydantic import Field

from bliss_ops.config.settings import Settings


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


class MatesConfig(Settings):
    """The baseline `mates`: a regressor of measured one-step influences (arXiv 2406.06046)."""
