"""Settings of the data-quality gates: how bad a corpus or a round may look before it is stopped. None of them can change a result."""

from pydantic import Field

from bliss_ops.config.settings import Settings


class CorpusGatesConfig(Settings):
    """What a corpus must have before it is announced."""

    min_documents: int = Field(default=1, ge=0, description="Documents that were accepted, at least.")
    min_sequences: int = Field(default=1, ge=0, description="Sequences that were packed, at least.")
    max_rejected_share: float = Field(default=0.5, ge=0, le=1, description="Share of the lines of its source that could not be used.")
    max_empty_shards_share: float = Field(default=0.5, ge=0, le=1, description="Share of its shards that fill no sequence.")
    max_duplicate_files_share: float = Field(
        default=0.0, ge=0, le=1, description="Share of its source files with the content of another one, by their checksums."
    )


class GatesConfig(Settings):
    """What a round must look like before anything is selected from its scores, and its target before the next round begins."""

    min_score_spread: float = Field(
        default=1e-6, ge=0, description="Standard deviation of the scores, as a share of their mean's size where that is above 1."
    )
    max_identical_share: float = Field(default=0.5, ge=0, le=1, description="Share of the candidates that have one and the same score.")
    max_saturated_share: float = Field(
        default=0.5, ge=0, le=1, description="Of scores from 0 to 1: share within a millionth of either end, where they cannot rank."
    )
    max_spread_change: float | None = Field(
        default=100.0, ge=1, description="Factor by which the standard deviation may differ from the former round's, either way."
    )
    max_mean_shift: float | None = Field(
        default=None,
        ge=0,
        description="How far the mean may be from the former round's, in its standard deviations; empty: told, not held against anything.",
    )
    max_contaminated_share: float = Field(
        default=0.1, ge=0, le=1, description="Share of the candidates that share text with the evaluation's tasks."
    )
    min_selected_sequences: int | None = Field(
        default=None, ge=0, description="Sequences that are going to be selected, at least; empty: one batch of pretraining."
    )
    max_loss_increase: float = Field(
        default=1.0, ge=0, description="Nats by which a validation loss may be above what it was before: of the fit, and of the target."
    )
