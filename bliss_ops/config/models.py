"""Settings of the language models: the proxy and the target."""

from typing import Any

from pydantic import Field

from bliss_ops.config.settings import Settings, added


class ModelConfig(Settings):
    """A causal language model by the name of its shape, or by the configuration of a model of the transformers library."""

    shape: str = Field(
        description="Shape name (pythia-14m ... pythia-2.8b, llama-0.5b, a tiny one: docs/models.md), or the path of a config.json "
        "of the transformers library; of such a path a name and the file's content (`architecture`) are kept."
    )
    architecture: dict[str, Any] | None = added(
        default=None, description="Content of the config.json that `shape` was the path of; written when the run is configured."
    )

    @property
    def definition(self) -> str | dict[str, Any]:
        """What the model is built from: the name of a shape, or an architecture."""
        return self.shape if self.architecture is None else self.architecture


class ProxyConfig(ModelConfig):
    """The small LM that stands in for the target; the score model shares its backbone."""

    shape: str = Field(default="pythia-31m", description="Shape of the proxy model and of the score model's backbone; see target.shape.")
    warmup_steps: int = Field(
        default=10_000, ge=0, description="Optimizer steps on random data before the first round, with the batch size of pretraining."
    )
    warmup_learning_rate: float = Field(default=1e-3, gt=0, le=1, description="Peak learning rate of the warm-up.")


class TargetConfig(ModelConfig):
    """The LM being pretrained (the reference model of the next round)."""

    shape: str = Field(
        default="pythia-410m",
        description="Shape of the target model: a name, or the path of a config.json of the transformers library; see docs/models.md.",
    )
    warmup_steps: int = Field(default=0, ge=0, description="Optimizer steps on random data before the first round.")
