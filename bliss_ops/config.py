"""Every setting of the product: its type, default, bounds, and one sentence that says what it does.

A *recipe* is a TOML file that overrides these defaults; a *variant* is one that overrides a recipe's settings of one method; a *run*
is a recipe with a method, a seed and a name. Stages read only the resolved `config.json` of their corpus or run, never the recipe.
Settings that cannot change a result (group counts, micro-batches, paths) are marked `identity=False` and stay out of every fingerprint.
"""

import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

EMBEDDED = "embedded"  # the `source` that harvests the installed Python environment
NO_VALIDATION = "none"  # the validation `source` of a corpus that is scored only

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


class OtherValidationConfig(Settings):
    """One further validation set and its weight."""

    source: str = Field(min_length=1, description="JSON lines with a `text` key (path, glob, s3://, https://, hf://), or `embedded`.")
    weight: float = Field(default=1.0, gt=0, le=1e6, description="Weight of this set beside the others.")


class ValidationConfig(Settings):
    """The text that defines "good": one part guides the score model, the held-out part only measures."""

    name: Name = Field(default=EMBEDDED, description="Name of the validation set in the lake.")
    source: str | None = Field(
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
    source: str = Field(
        default=EMBEDDED,
        min_length=1,
        description="C4-format shards: path or glob, s3://, https://, hf://, a .list file of such lines; `embedded`: this Python's text.",
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
    micro_batch_sequences: int = neutral(
        default=64, ge=1, le=65_536, description="Sequences per forward pass and worker; lower it when memory is short."
    )
    validation_batch_sequences: int = Field(default=8, ge=1, le=65_536, description="Validation rows per outer step.")
    num_inner_steps: int = Field(default=1, ge=1, le=100, description="Proxy AdamW steps per outer step.")
    outer_batch: Literal["fresh", "trained"] = Field(
        default="fresh", description="Take the hypergradient on a batch before the proxy trains on it, or on the batch just trained on."
    )
    proxy_learning_rate: float = Field(default=1e-3, gt=0, le=1, description="AdamW learning rate of the proxy.")
    score_learning_rate: float = Field(default=3e-4, gt=0, le=1, description="AdamW learning rate of the score model.")
    score_decay: float = Field(
        default=0.5, ge=0, le=1, description="Share of the outer steps, the last ones, over which that learning rate falls to zero."
    )
    score_head: Literal["linear", "sigmoid"] = Field(
        default="linear", description="Score head: the logit itself, or its sigmoid as released."
    )
    score_pooling: Literal["next_token", "mean", "attention"] = Field(
        default="next_token", description="How hidden states become one vector (models/score.py); only next_token sees the order of words."
    )
    num_pooling_heads: int = Field(default=4, ge=1, le=64, description="Attention heads of the pooling.")
    score_start: Literal["inherited", "reset"] = Field(
        default="inherited", description="From round 2 on: the previous round's score model, or the warmed-up proxy's backbone again."
    )
    weights: Literal["softmax", "naive"] = Field(
        default="softmax", description="Sample weights: softmax over the global batch, or independent sigmoids."
    )
    stale_denominator: bool = Field(
        default=False, description="Train the proxy with the previous batch's softmax denominator, as released."
    )
    temperature: float = Field(default=1.0, gt=0, le=100, description="Softmax temperature of the sample weights.")
    min_effective_sample_size: float = Field(
        default=0.5,
        ge=0,
        le=0.95,
        description="Floor on the effective sample size, as a share of the batch, held by a per-batch temperature.",
    )
    ihvp: Literal["lookahead", "adam_diagonal", "identity", "warm_start", "conjugate_gradient", "neumann", "released"] = Field(
        default="lookahead", description="Inverse-Hessian approximation applied to the validation gradient (bilevel/ihvp.py)."
    )
    num_lookahead_steps: int = Field(default=40, ge=1, le=10_000, description="Steps that lookahead follows the validation set for.")
    lookahead_learning_rate: float = Field(default=1e-3, gt=0, le=1, description="Size of one of them, per coordinate.")
    damping: float | None = Field(default=None, gt=0, le=100, description="Added to the curvature (delta); empty takes the solver's own.")
    num_solver_steps: int = Field(default=5, ge=1, le=100, description="Steps of conjugate_gradient and neumann.")
    solver_learning_rate: float = Field(
        default=0.03, gt=0, le=1, description="Step size of warm_start and neumann; above 2 / (largest curvature + delta) they diverge."
    )
    gradient_smoothing: float = Field(default=0.9, ge=0, lt=1, description="EMA factor of the validation gradient; 0 uses the batch's own.")
    alignment: Literal["auto", "central_difference", "double_backward", "forward_mode"] = Field(
        default="auto", description="Route to the directional derivatives a_i and to Hessian-vector products (bilevel/hypergradient.py)."
    )
    shift_norm: float | None = Field(
        default=None, gt=0, le=10, description="Size of the shift of central differences; empty suits the precision."
    )
    normalise_alignments: bool = Field(
        default=True, description="Divide the alignments by their running spread: the hypergradient does not depend on the scale of z."
    )
    max_hypergradient_norm: float = Field(default=1.0, gt=0, le=1e6, description="Clipping of the score model's gradient.")
    hypergradient_weight: float = Field(default=1.0, ge=0, le=100, description="Weight of the hypergradient in the score model's loss.")
    distillation_weight: float = Field(
        default=3.0, ge=0, le=100, description="Weight of regressing the scores on the standardised alignments; 0 leaves it out."
    )
    num_replays: int = Field(
        default=0, ge=0, le=100, description="Further steps of that regression per outer step, on batches whose alignments are known."
    )
    replay_batches: int = Field(default=128, ge=1, le=100_000, description="Batches kept for it, the latest ones.")
    kl_weight: float = Field(default=0.0, ge=0, le=100, description="Weight of the KL term between proxy and reference model (gamma).")
    kl_direction: Literal["proxy_reference", "reference_proxy"] = Field(
        default="proxy_reference", description="KL(proxy||reference) or its reverse."
    )
    l2_weight: float = Field(default=0.0, ge=0, le=1, description="Weight of the squared norm of the proxy's parameters (lambda).")
    probe_every_steps: int = Field(
        default=25, ge=1, description="Steps between two looks at a fixed set of candidates (curves and guards of the score model)."
    )
    num_probes: int = Field(default=128, ge=16, le=65_536, description="Candidates in that set.")
    checkpoint_every_steps: int = neutral(default=100, ge=1, description="A killed job loses at most this many outer steps.")


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
    num_workers: int = neutral(
        default=1, ge=1, le=4096, description="Processes that share the bilevel training of a round; one GPU each where there are GPUs."
    )
    compile: bool = neutral(default=False, description="torch.compile the models in training: slower to start, faster on a GPU.")


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
    classifier: ClassifierConfig = Field(default_factory=ClassifierConfig, description="Baseline: classifier.")
    dsir: DsirConfig = Field(default_factory=DsirConfig, description="Baseline: DSIR.")
    scoring: ScoringConfig = Field(default_factory=ScoringConfig, description="Scoring.")
    fidelity: FidelityConfig = Field(default_factory=FidelityConfig, description="Score fidelity.")
    selection: SelectionConfig = Field(default_factory=SelectionConfig, description="Selection.")
    target: TargetConfig = Field(default_factory=TargetConfig, description="Target model.")
    pretraining: PretrainingConfig = Field(default_factory=PretrainingConfig, description="Pretraining.")
    compute: ComputeConfig = Field(default_factory=ComputeConfig, description="Compute.")


class RunConfig(Recipe):
    """A recipe with a method, a seed and a name: the content of `runs/<run>/config.json`."""

    name: Name = neutral(description="Run name: <recipe>-<method>-s<seed> unless given.")
    recipe: str = neutral(description="The recipe this run was made from.")
    method: Name = Field(description="Selector (a module of bliss_ops/selectors), or a variant of one.")
    seed: int = Field(
        default=0, ge=0, lt=2**31, description="Seed of initial weights and data order; equal seeds make runs comparable in pairs."
    )
    compare_with: tuple[Name, ...] = neutral(default=(), description="Runs drawn beside this one in its report.")


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
        values[name] = _plain(getattr(settings, name))
    return values


def _plain(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return identity(value)
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
