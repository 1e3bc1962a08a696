"""Every setting of the product: its type, default, bounds, and one sentence that says what it does.

A *recipe* is a TOML file that overrides these defaults; a *run* is a recipe with a method, a seed and a name. Stages read
only the resolved `config.json` of their corpus or run, never the recipe. Settings that cannot change a result (group counts,
micro-batches, paths) are marked `identity=False` and stay out of every fingerprint.
"""

import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

RECIPES = Path(__file__).parent / "recipes"
EMBEDDED = "embedded"  # the `source` that harvests the installed Python environment

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,79}")


def check_name(name: str) -> str:
    """Return `name` when it is safe as one directory name, else raise ValueError saying what is allowed."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise ValueError(f"{name!r} is not a valid name: use 1-80 of a-z 0-9 . _ - beginning with a letter or digit, without '..'")
    return name


SettingsT = TypeVar("SettingsT", bound=BaseModel)

Name = Annotated[str, AfterValidator(check_name)]


class Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def neutral(**kwargs: Any) -> Any:
    """A field that cannot change a result and therefore stays out of fingerprints."""
    return Field(json_schema_extra={"identity": False}, **kwargs)


class ValidationConfig(Settings):
    """The text that defines "good": one part guides the score model, the held-out part only measures."""

    name: Name = Field(default=EMBEDDED, description="Name of the validation set in the lake.")
    source: str | None = Field(
        default=EMBEDDED,
        description="JSON lines with a `text` key (path, glob, s3://, https://, hf://), or `embedded`: held-out documentation prose.",
    )
    holdout_fraction: float = Field(
        default=0.5, ge=0.1, le=0.9, description="Share of the documents, the last ones, kept for measuring only."
    )


class IngestConfig(Settings):
    """Source shards to documents, a tokenizer, packed sequences and a validation set."""

    corpus: Name = Field(default=EMBEDDED, description="Name of the corpus in the lake.")
    source: str = Field(
        default=EMBEDDED,
        min_length=1,
        description="C4-format shards: path or glob, s3://, https://, hf://; or `embedded`, the text of the installed Python environment.",
    )
    tokenizer: str | None = Field(
        default=None, description="A Hugging Face tokenizer.json (path or URI); empty trains a byte-level BPE on the corpus."
    )
    vocab_size: int = Field(default=4096, ge=512, le=131_072, description="Vocabulary of a tokenizer trained on the corpus.")
    sequence_length: int = Field(default=1024, ge=16, le=8192, description="Tokens per sequence (T), the unit of selection.")
    max_document_megabytes: float = Field(default=10.0, gt=0, le=1000, description="Larger documents are rejected and counted.")
    embedded_megabytes: float = Field(default=6.0, gt=0, le=100, description="Size of the embedded corpus, text of all kinds together.")
    num_groups: int = neutral(default=1, ge=1, le=64, description="Groups of shards the scheduler maps over (tens, never thousands).")
    validation: ValidationConfig = Field(default_factory=ValidationConfig, description="The validation set made beside the corpus.")


class ModelConfig(Settings):
    """A causal language model by the name of its shape."""

    shape: str = Field(description="Shape name: pythia-14m ... pythia-2.8b, llama-0.5b, or a tiny one; see bliss_ops/models/shapes.py.")


class ProxyConfig(ModelConfig):
    """The small LM that stands in for the target; the score model shares its backbone."""

    shape: str = Field(default="pythia-31m", description="Shape of the proxy model and of the score model's backbone.")
    warmup_steps: int = Field(
        default=10_000, ge=0, description="Optimizer steps on random data before the first round, with the batch size of pretraining."
    )
    warmup_learning_rate: float = Field(default=1e-3, gt=0, le=1, description="Peak learning rate of the warm-up.")


class BilevelConfig(Settings):
    """Bilevel training of the score model (symbols as in docs/method.md)."""

    num_steps: int = Field(default=3000, ge=1, description="Outer steps: score-model updates per round.")
    batch_sequences: int = Field(default=32, ge=2, le=65_536, description="Sequences whose weights are normalised together (B).")
    validation_batch_sequences: int = Field(default=64, ge=1, le=65_536, description="Validation rows per outer step.")
    num_inner_steps: int = Field(default=1, ge=1, le=100, description="Proxy AdamW steps per outer step.")
    proxy_learning_rate: float = Field(default=1e-3, gt=0, le=1, description="AdamW learning rate of the proxy.")
    score_learning_rate: float = Field(default=3e-4, gt=0, le=1, description="AdamW learning rate of the score model.")
    temperature: float = Field(default=1.0, gt=0, le=100, description="Softmax temperature of the sample weights.")
    min_effective_sample_size: float = Field(
        default=0.5,
        ge=0,
        le=0.95,
        description="Floor on the effective sample size, as a share of the batch, held by a per-batch temperature.",
    )
    score_head: Literal["linear", "sigmoid"] = Field(
        default="linear", description="Score head: the logit itself, or its sigmoid as released."
    )
    ihvp: Literal["adam_diagonal", "identity"] = Field(
        default="adam_diagonal", description="Inverse-Hessian approximation applied to the validation gradient."
    )
    damping: float = Field(default=1e-4, gt=0, le=10, description="Added to the curvature estimate (delta).")
    gradient_smoothing: float = Field(default=0.9, ge=0, lt=1, description="EMA factor of the validation gradient; 0 uses the batch's own.")
    alignment: Literal["exact", "central_difference"] = Field(
        default="exact", description="How the directional derivatives a_i are computed."
    )
    kl_weight: float = Field(default=0.0, ge=0, le=100, description="Weight of the KL term between proxy and reference model (gamma).")
    kl_direction: Literal["proxy_reference", "reference_proxy"] = Field(
        default="proxy_reference", description="KL(proxy||reference) or its reverse."
    )
    l2_weight: float = Field(default=0.0, ge=0, le=1, description="Weight of the squared norm of the proxy's parameters (lambda).")
    checkpoint_every_steps: int = neutral(default=100, ge=1, description="A killed job loses at most this many outer steps.")


class ScoringConfig(Settings):
    """Scoring of every candidate sequence."""

    batch_sequences: int = Field(default=256, ge=1, le=65_536, description="Sequences per forward pass.")
    num_groups: int = neutral(default=1, ge=1, le=64, description="Groups of shards the scheduler maps over.")


class SelectionConfig(Settings):
    """How much of the candidate window is kept."""

    fraction: float | None = Field(default=0.2, gt=0, le=1, description="Share of the candidate sequences to keep, best first.")
    token_budget: int | None = Field(default=None, gt=0, description="Tokens to keep instead of a fraction.")

    @model_validator(mode="after")
    def _one_of_two(self) -> "SelectionConfig":
        if (self.fraction is None) == (self.token_budget is None):
            raise ValueError("set exactly one of selection.fraction and selection.token_budget")
        return self


class TargetConfig(ModelConfig):
    """The LM being pretrained (the reference model of the next round)."""

    shape: str = Field(default="pythia-410m", description="Shape of the target model.")
    warmup_steps: int = Field(default=0, ge=0, description="Optimizer steps on random data before the first round.")


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


class Recipe(Settings):
    """All settings of an experiment; a TOML recipe overrides the defaults section by section."""

    description: str = neutral(default="", description="What the recipe is for.")
    num_rounds: int = Field(default=1, ge=1, le=100, description="Rounds; each has a candidate window of its own.")
    window_shards: int | None = Field(
        default=None, ge=1, description="Shards per candidate window; empty divides all shards over the rounds."
    )
    ingest: IngestConfig = Field(default_factory=IngestConfig, description="Corpus, tokenizer, sequences, validation set.")
    proxy: ProxyConfig = Field(default_factory=ProxyConfig, description="Proxy and score model.")
    bilevel: BilevelConfig = Field(default_factory=BilevelConfig, description="Bilevel training.")
    scoring: ScoringConfig = Field(default_factory=ScoringConfig, description="Scoring.")
    selection: SelectionConfig = Field(default_factory=SelectionConfig, description="Selection.")
    target: TargetConfig = Field(default_factory=TargetConfig, description="Target model.")
    pretraining: PretrainingConfig = Field(default_factory=PretrainingConfig, description="Pretraining.")
    compute: ComputeConfig = Field(default_factory=ComputeConfig, description="Compute.")


class RunConfig(Recipe):
    """A recipe with a method, a seed and a name: the content of `runs/<run>/config.json`."""

    name: Name = neutral(description="Run name: <recipe>-<method>-s<seed> unless given.")
    recipe: str = neutral(description="The recipe this run was made from.")
    method: Name = Field(description="Selector: a module of bliss_ops/selectors.")
    seed: int = Field(
        default=0, ge=0, lt=2**31, description="Seed of initial weights and data order; equal seeds make runs comparable in pairs."
    )
    compare_with: tuple[Name, ...] = neutral(default=(), description="Runs drawn beside this one in its report.")


def load_recipe(name_or_path: str, overrides: dict[str, Any] | None = None) -> Recipe:
    """Read a recipe by name (a file of `bliss_ops/recipes`) or by path, with dotted overrides such as {"bilevel.num_steps": 10}.

    Raises:
        ValueError: unknown recipe, unreadable TOML, or a setting that does not exist or is out of range.
    """
    path = Path(name_or_path) if name_or_path.endswith(".toml") else RECIPES / f"{check_name(name_or_path)}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise ValueError(f"no recipe {name_or_path!r}: known recipes are {known}; or give the path of a .toml file")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"recipe {path} is not valid TOML: {error}") from error
    for key, value in (overrides or {}).items():
        _set_dotted(values, key, value)
    return parse(Recipe, values, where=f"recipe {path.name}")


def parse(model: type[SettingsT], values: dict[str, Any] | str | bytes, *, where: str) -> SettingsT:
    """Validate `values`, turning pydantic's error into one line per field: name, value received, what is allowed."""
    try:
        return model.model_validate_json(values) if isinstance(values, str | bytes) else model.model_validate(values)
    except ValidationError as error:
        lines = []
        for item in error.errors(include_url=False):
            field = ".".join(str(part) for part in item["loc"]) or "(settings)"
            received = "" if item["type"] in ("extra_forbidden", "missing", "value_error") else f", got {item['input']!r}"
            message = "there is no such setting" if item["type"] == "extra_forbidden" else item["msg"].removeprefix("Value error, ")
            lines.append(f"  {field}: {message}{received}")
        raise ValueError(f"{where}:\n" + "\n".join(lines)) from None


def identity(settings: BaseModel) -> dict[str, Any]:
    """The settings that can change a result, as plain JSON values (nested sections included)."""
    values: dict[str, Any] = {}
    for name, field in type(settings).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("identity") is False:
            continue
        value = getattr(settings, name)
        values[name] = identity(value) if isinstance(value, BaseModel) else value
    return values


def _set_dotted(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inner = values.setdefault(section, {})
        values = inner if isinstance(inner, dict) else {}  # a value where a section should be is reported by the validation
    values[last] = value
