"""What bilevel training carries from step to step, and what one outer step is given.

Legend of shapes: B sequences of the global batch, b this worker's rows of it, T tokens.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from bliss_ops.bilevel.replay import Replay
from bliss_ops.training.state import TrainState

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class BilevelState:
    """Everything a resumed job needs: both models with their optimizers, and what is carried from step to step."""

    proxy: TrainState
    score: TrainState
    reference: "PreTrainedModel | None" = None
    smoothed_gradient: list[torch.Tensor] = field(default_factory=list)  # EMA of grad f, not yet bias-corrected
    z: list[torch.Tensor] = field(default_factory=list)  # of the last step, where `warm_start` and `lookahead` go on
    moments: torch.Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))  # EMA of a and a^2, not bias-corrected
    log_denominator: torch.Tensor = field(default_factory=lambda: torch.full((), torch.nan, dtype=torch.float64))  # of the last batch
    replay: Replay = field(default_factory=Replay)

    @property
    def step(self) -> int:
        """Outer steps done."""
        return self.score.step

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything needed to go on exactly, by name."""
        carried = {f"smoothed_gradient.{i}": value for i, value in enumerate(self.smoothed_gradient)}
        carried |= {f"z.{i}": value for i, value in enumerate(self.z)}
        carried |= {"moments": self.moments, "log_denominator": self.log_denominator}
        return self.proxy.tensors("proxy.") | self.score.tensors("score.") | carried | self.replay.tensors()

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take over what `tensors` wrote."""
        self.proxy.restore(tensors, "proxy.")
        self.score.restore(tensors, "score.")
        device = next(self.proxy.model.parameters()).device
        for name in ("smoothed_gradient", "z"):
            count = sum(key.startswith(f"{name}.") for key in tensors)
            setattr(self, name, [tensors[f"{name}.{i}"].to(device) for i in range(count)])
        self.moments, self.log_denominator = tensors["moments"], tensors["log_denominator"]
        self.replay.restore(tensors)


@dataclass(frozen=True)
class Batch:
    """This worker's rows of a candidate batch."""

    input_ids_bT: torch.Tensor
    num_sequences: int  # B, over all workers
    input_ids_BT: torch.Tensor | None = None  # the rows of all workers, on the CPU: what replays are made of


@dataclass(frozen=True)
class ValidationBatch:
    """This worker's rows of a validation batch; f = sum over all workers of weight_b * mean loss of row b."""

    input_ids_bT: torch.Tensor
    labels_bT: torch.Tensor
    weight_b: torch.Tensor
