"""Every setting of the product: its type, default, bounds, and one sentence that says what it does.

A *recipe* is a TOML file that overrides these defaults; a *variant* is one that overrides a recipe's settings of one method; a *run*
is a recipe with a method, a seed and a name. Stages read only the resolved `config.json` of their corpus or run, never the recipe.
Each file of this folder has the sections of one part of the path.
"""

from pydantic import Field

from bliss_ops.config.baselines import ClassifierConfig, DsirConfig, LessConfig, MatesConfig
from bliss_ops.config.bilevel import BilevelConfig
from bliss_ops.config.evaluation import EvaluationConfig
from bliss_ops.config.gates import CorpusGatesConfig, GatesConfig
from bliss_ops.config.ingest import EMBEDDED, NO_VALIDATION, IngestConfig, OtherValidationConfig, ValidationConfig
from bliss_ops.config.models import ModelConfig, ProxyConfig, TargetConfig
from bliss_ops.config.pretraining import ComputeConfig, PretrainingConfig
from bliss_ops.config.scoring import FidelityConfig, ScoringConfig, SelectionConfig
from bliss_ops.config.settings import Name, Settings, SettingsT, added, identity, neutral, parse
from bliss_ops.names import check_name

__all__ = [
    "EMBEDDED", "NO_VALIDATION", "BilevelConfig", "ClassifierConfig", "ComputeConfig", "CorpusGatesConfig", "DsirConfig",
    "EvaluationConfig", "FidelityConfig", "GatesConfig", "IngestConfig", "LessConfig", "MatesConfig", "ModelConfig", "Name",
    "OtherValidationConfig",
    "PretrainingConfig", "ProxyConfig", "Recipe", "RunConfig", "ScoringConfig", "SelectionConfig", "Settings", "SettingsT",
    "TargetConfig", "ValidationConfig", "added", "check_name", "identity", "neutral", "parse",
]  # fmt: skip


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
    less: LessConfig = Field(default_factory=LessConfig, description="Baseline: LESS.")
    mates: MatesConfig = Field(default_factory=MatesConfig, description="Baseline: MATES.")
    scoring: ScoringConfig = Field(default_factory=ScoringConfig, description="Scoring.")
    fidelity: FidelityConfig = Field(default_factory=FidelityConfig, description="Score fidelity.")
    selection: SelectionConfig = Field(default_factory=SelectionConfig, description="Selection.")
    target: TargetConfig = Field(default_factory=TargetConfig, description="Target model.")
    pretraining: PretrainingConfig = Field(default_factory=PretrainingConfig, description="Pretraining.")
    evaluation: EvaluationConfig = neutral(  # of a run: tasks can be set when it is trained; the stages that read it have it in theirs
        default_factory=EvaluationConfig, description="Evaluation."
    )
    gates: GatesConfig = neutral(default_factory=GatesConfig, description="Gates between stages.")
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
    warmup_of: Name | None = neutral(
        default=None, description="A run of the same seed and models whose warm-up this one starts from, instead of training it again."
    )
