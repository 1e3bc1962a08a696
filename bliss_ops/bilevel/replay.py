"""Alignments that are known already, for the score model to learn from again.

Measuring an alignment costs about six times what the score model's own step costs at Pythia sizes, and alignments hardly change while
the proxy trains (docs/experiments.md), so a batch is worth more than one step. Every worker keeps all rows of the latest batches on
its CPU; they are part of the checkpoint.

Legend of shapes: K batches kept, B sequences of one, T tokens.
"""

from dataclasses import dataclass, field

import numpy as np
import torch


@dataclass
class Replay:
    """The latest batches with their standardised alignments, oldest first."""

    input_ids: list[torch.Tensor] = field(default_factory=list)  # each BT, int32
    targets: list[torch.Tensor] = field(default_factory=list)  # each B

    def add(self, input_ids_BT: torch.Tensor, target_B: torch.Tensor, limit: int) -> None:
        """Keep a batch, and no more than `limit` of them."""
        self.input_ids = [*self.input_ids, input_ids_BT.to("cpu", torch.int32)][-limit:]
        self.targets = [*self.targets, target_B.cpu()][-limit:]

    def draw(self, step: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """One of the batches kept; which one is a function of the step and of the number of the draw in it."""
        chosen = int(np.random.default_rng([step, number, 0x72]).integers(len(self.targets)))
        return self.input_ids[chosen], self.targets[chosen]

    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps of it, by name."""
        if not self.targets:
            return {}
        return {"replay.input_ids": torch.stack(self.input_ids), "replay.targets": torch.stack(self.targets)}

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take over what `tensors` wrote."""
        self.input_ids = list(tensors.get("replay.input_ids", torch.zeros(0)))
        self.targets = list(tensors.get("replay.targets", torch.zeros(0)))
