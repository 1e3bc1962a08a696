"""Checkpoints of a training job: restore what is there, save now and then, so that a killed job ends as an undisturbed one.

A checkpoint and the metrics up to it are written together. Position in the data is a function of the step, so the step is all that
has to be remembered of it.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from upath import UPath

from bliss_ops.models.language import read_tensors, write_tensors
from bliss_ops.training.metrics import StepMetrics
from bliss_ops.training.workers import ALONE, Workers


class State(Protocol):
    """What can be checkpointed: `TrainState`, `BilevelState`."""

    @property
    def step(self) -> int: ...

    def tensors(self) -> dict[str, torch.Tensor]: ...

    def restore(self, tensors: dict[str, torch.Tensor]) -> None: ...


@dataclass(frozen=True)
class Checkpoint:
    """The file a job's state is kept in; only one of several workers writes it, all of them read it."""

    path: UPath
    state: State
    metrics: StepMetrics
    every_steps: int
    last_step: int
    workers: Workers = ALONE

    def resume(self) -> bool:
        """Restore the state when there is a checkpoint; says whether there was."""
        if not self.path.exists():
            return False
        self.state.restore(read_tensors(self.path))
        self.metrics.resume(self.state.step)
        return True

    def after_step(self, step: int) -> None:
        """Save when it is time to, and at the end."""
        if step % self.every_steps == 0 or step == self.last_step:
            self.save()

    def save(self) -> None:
        """Write metrics and state; the workers go on together."""
        if self.workers.writes:
            self.metrics.write()
            write_tensors(self.path, self.state.tensors())
        self.workers.barrier()
