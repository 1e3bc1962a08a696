"""Settings of scoring, of the fidelity of scores, and of selection."""

from pydantic import Field, model_validator

from bliss_ops.config.settings import Settings, neutral


class ScoringConfig(Settings):
    """Scoring of every candidate sequence."""

    batch_sequences: int | None = Field(
        default=None,
        ge=1,
        le=65_536,
        description="Sequences per forward pass; empty takes what is fastest on the device, found as it begins.",
    )
    num_groups: int = neutral(default=1, ge=1, le=64, description="Groups of shards the scheduler maps over.")


class FidelityConfig(Settings):
    """Measuring the true one-step influence of a few held-out candidates, to hold the scores against."""

    num_probes: int = Field(
        default=256, ge=16, le=65_536, description="Candidate sequences probed; the standard error of Spearman is about 1/sqrt(num_probes)."
    )
    validation_rows: int = Field(
        default=64, ge=1, le=65_536, description="Rows of the guide part the loss is measured on, a fixed seeded subset."
    )
    learning_rate: float = Field(default=1e-3, gt=0, le=1, description="AdamW learning rate of the one step on a probe.")


class SelectionConfig(Settings):
    """How much of the candidate window is kept."""

    fraction: float | None = Field(default=0.2, gt=0, le=1, description="Share of the candidate sequences to keep, best first.")
    token_budget: int | None = Field(default=None, gt=0, description="Tokens to keep instead of a fraction.")

    @model_validator(mode="after")
    def _one_of_two(self) -> "SelectionConfig":
        if (self.fraction is None) == (self.token_budget is None):
            raise ValueError("set exactly one of selection.fraction and selection.token_budget")
        return self
