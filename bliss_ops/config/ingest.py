"""Settings of a corpus: source, tokenizer, sequences, validation set."""

from pydantic import Field

from bliss_ops.config.gates import CorpusGatesConfig
from bliss_ops.config.settings import Name, Settings, SourceAddress, neutral

EMBEDDED = "embedded"  # the `source` that harvests the installed Python environment
NO_VALIDATION = "none"  # the validation `source` of a corpus that is scored only


class OtherValidationConfig(Settings):
    """One further validation set and its weight."""

    source: SourceAddress = Field(
        min_length=1, description="JSON lines with a `text` key (path, glob, s3://, https://, hf://), or `embedded`."
    )
    weight: float = Field(default=1.0, gt=0, le=1e6, description="Weight of this set beside the others.")


class ValidationConfig(Settings):
    """The text that defines "good": one part guides the score model, the held-out part only measures."""

    name: Name = Field(default=EMBEDDED, description="Name of the validation set in the lake.")
    source: SourceAddress | None = Field(
        default=EMBEDDED,
        description="JSON lines with a `text` key (path, glob, s3://, https://, hf://); or `embedded`: held-out documentation prose; "
        "or `none`: a corpus that is scored only.",
    )
    holdout_fraction: float = Field(
        default=0.5, ge=0.1, le=0.9, description="Share of the documents of each set, the last ones, kept for measuring only."
    )
    weight: float = Field(default=1.0, gt=0, le=1e6, description="Weight of this set beside the others; alone it is without effect.")
    others: tuple[OtherValidationConfig, ...] = Field(
        default=(), max_length=100, description="Further sets: what is good is the weighted mean of the sets' mean token losses."
    )


class IngestConfig(Settings):
    """Source shards to documents, a tokenizer, packed sequences and a validation set."""

    corpus: Name = Field(default=EMBEDDED, description="Name of the corpus in the lake.")
    source: SourceAddress = Field(
        default=EMBEDDED,
        min_length=1,
        description="C4-format shards: path or glob, s3://, https://, hf://, a .list file of such lines; `embedded`: this Python's text.",
    )
    tokenizer: SourceAddress | None = Field(
        default=None, description="A Hugging Face tokenizer.json (path or URI); empty trains a byte-level BPE on the corpus."
    )
    vocab_size: int = Field(default=4096, ge=512, le=131_072, description="Vocabulary of a tokenizer trained on the corpus.")
    sequence_length: int = Field(default=1024, ge=16, le=8192, description="Tokens per sequence (T), the unit of selection.")
    max_document_megabytes: float = Field(default=10.0, gt=0, le=1000, description="Larger documents are rejected and counted.")
    max_expansion: float = neutral(
        default=200.0, ge=10, le=1e6, description="A compressed source file may unpack to this many times its size; more is refused."
    )
    max_file_gigabytes: float = neutral(
        default=1000.0, gt=0, le=1e6, description="Plain bytes of one source file; a larger one, or one that never ends, is refused."
    )
    embedded_megabytes: float = Field(default=6.0, gt=0, le=100, description="Size of the embedded corpus, text of all kinds together.")
    num_groups: int = neutral(default=1, ge=1, le=64, description="Groups of shards the scheduler maps over (tens, never thousands).")
    validation: ValidationConfig = Field(default_factory=ValidationConfig, description="The validation set made beside the corpus.")
    gates: CorpusGatesConfig = neutral(default_factory=CorpusGatesConfig, description="What the corpus must have to be announced.")
