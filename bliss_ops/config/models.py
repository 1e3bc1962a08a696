"""Settings of the language models: the proxy and the target."""

from pydantic import Field

from bliss_ops.config.settings import Settings


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


class TargetConfig(ModelConfig):
    """The LM being pretrained (the reference model of the next round)."""

    shape: str = Field(default="pythia-410m", description="Shape of the target model.")
    warmup_steps: int = Field(default=0, ge=0, description="Optimizer steps on random data before the first round.")
