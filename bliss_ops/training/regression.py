"""A score model fitted to labels: mean squared error on standardised labels, the best step by Spearman on labels held out.

Optimizer, batch size, linear decay to zero and the choice of the best step are those MATES fine-tunes its influence model with. The
held-out correlation of the chosen step is the largest of several looks, so it flatters; scores are judged elsewhere (fidelity).

Legend of shapes: M labelled sequences, B of one step, T tokens.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from bliss_ops.config import MatesConfig
from bliss_ops.rank_correlation import spearman, spearman_standard_error
from bliss_ops.training.device import autocast
from bliss_ops.training.state import TrainState

if TYPE_CHECKING:
    from bliss_ops.training.metrics import StepMetrics

log = logging.getLogger(__name__)

MAX_GRADIENT_NORM = 1.0
_ROWS_AT_ONCE = 64  # of a look at the held-out sequences
_ORDER, _HELDOUT = 0x6F, 0x68  # keep the two draws apart


@dataclass
class Regression:
    """The model in training, and the weights of its best step so far."""

    train: TrainState
    best: dict[str, torch.Tensor] = field(default_factory=dict)
    best_spearman: float = -2.0  # below any
    best_step: int = 0

    @property
    def step(self) -> int:
        return self.train.step

    def tensors(self) -> dict[str, torch.Tensor]:
        """Everything needed to go on exactly, by name."""
        best = {f"best.{name}": value for name, value in self.best.items()}
        numbers = {"best_spearman": torch.tensor(self.best_spearman, dtype=torch.float64), "best_step": torch.tensor(self.best_step)}
        return self.train.tensors() | best | numbers

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take over what `tensors` wrote."""
        self.train.restore(tensors)
        self.best = {name.removeprefix("best."): value for name, value in tensors.items() if name.startswith("best.")}
        self.best_spearman, self.best_step = float(tensors["best_spearman"]), int(tensors["best_step"])


@dataclass(frozen=True)
class Labelled:
    """Sequences with what was measured of them, in two parts that never mix."""

    input_ids_MT: np.ndarray
    label_M: np.ndarray  # float64, standardised by mean and spread of the training part
    is_heldout_M: np.ndarray

    @classmethod
    def split(cls, input_ids_MT: np.ndarray, value_M: np.ndarray, num_heldout: int, seed: int) -> "Labelled":
        """A seeded split, and labels of mean 0 and spread 1.

        Raises:
            ValueError: all values are equal.
        """
        is_heldout_M = np.zeros(len(value_M), bool)
        is_heldout_M[np.random.default_rng([seed, _HELDOUT]).permutation(len(value_M))[:num_heldout]] = True
        known = value_M[~is_heldout_M]
        if np.ptp(known) == 0:
            raise ValueError(f"all {len(known)} values to learn from are {known[0]:g}")
        return cls(input_ids_MT, (value_M - known.mean()) / known.std(), is_heldout_M)

    @property
    def heldout(self) -> tuple[np.ndarray, np.ndarray]:
        """(input_ids, labels) of the part that is not learned from."""
        return self.input_ids_MT[self.is_heldout_M], self.label_M[self.is_heldout_M]


def fit_regressor(
    state: Regression,
    labelled: Labelled,
    settings: MatesConfig,
    *,
    seed: int,
    metrics: "StepMetrics",
    after_step: Callable[[int], None] = lambda _step: None,
) -> dict[str, float]:
    """Take the steps that are still missing, in place; `state.best` then holds the weights of the best step.

    Args:
        state: where training begins, a score model with its optimizer.
        labelled: what it learns.
        settings: `num_epochs`, `regressor_*`, `evaluate_every_steps`.
        seed: of the order.
        metrics: takes the loss of every step, and Spearman and mean squared error of every look.
        after_step: called with the number of steps done, for checkpoints.

    Returns:
        spearman of the best step on the held-out sequences, its standard_error, best_step, and num_heldout.

    Raises:
        ValueError: the loss is not finite; the last checkpoint is left as it was.
    """
    model, optimizer = state.train.model, state.train.optimizer
    device = next(model.parameters()).device
    learned = np.flatnonzero(~labelled.is_heldout_M)
    last_step = settings.num_steps(len(labelled.label_M))
    heldout_ids, heldout_labels = labelled.heldout
    while state.step < last_step:
        rows = _rows(learned, state.step, settings, seed)
        input_ids_BT = torch.from_numpy(labelled.input_ids_MT[rows].astype(np.int64)).to(device)
        label_B = torch.from_numpy(labelled.label_M[rows]).to(device, torch.float32)
        with autocast(device):
            loss = (model(input_ids_BT) - label_B).square().mean()
        if not torch.isfinite(loss):
            raise ValueError(f"{metrics.title}: the loss is {loss.item():g} at step {state.step + 1}: lower mates.regressor_learning_rate")
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), MAX_GRADIENT_NORM)
        rate = settings.regressor_learning_rate * (1 - state.step / last_step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state.train.step += 1
        numbers = {"loss": loss.item(), "learning_rate": rate}
        if state.step % settings.evaluate_every_steps == 0 or state.step == last_step:
            predicted = predictions(model, heldout_ids)
            correlation = spearman(predicted, heldout_labels)
            numbers |= {"heldout_spearman": correlation, "heldout_loss": float(np.square(predicted - heldout_labels).mean())}
            if correlation > state.best_spearman:
                state.best_spearman, state.best_step = correlation, state.step
                state.best = {name: value.detach().cpu().clone() for name, value in model.state_dict().items()}
        metrics.add(state.step, **numbers)
        metrics.line(state.step, loss=numbers["loss"], best_spearman=state.best_spearman)
        after_step(state.step)
    model.load_state_dict(state.best)
    predicted = predictions(model, heldout_ids)
    found = spearman(predicted, heldout_labels)
    error = spearman_standard_error(predicted, heldout_labels, seed=seed)
    return {"spearman": found, "spearman_standard_error": error, "best_step": state.best_step, "num_heldout": len(heldout_labels)}


@torch.no_grad()
def predictions(model: nn.Module, input_ids_MT: np.ndarray) -> np.ndarray:
    """What the model gives each sequence, as float64."""
    device = next(model.parameters()).device
    parts = []
    for begin in range(0, len(input_ids_MT), _ROWS_AT_ONCE):
        with autocast(device):
            rows_BT = torch.from_numpy(input_ids_MT[begin : begin + _ROWS_AT_ONCE].astype(np.int64)).to(device)
            parts.append(model(rows_BT).double().cpu().numpy())
    return np.concatenate(parts)


def _rows(learned: np.ndarray, step: int, settings: MatesConfig, seed: int) -> np.ndarray:
    """Row numbers of the step's batch: position = step, every row once per epoch, the last batch of an epoch may be short."""
    size = settings.regressor_batch_sequences
    epoch, batch = divmod(step, -(-len(learned) // size))
    order = np.random.default_rng([seed, _ORDER, epoch]).permutation(len(learned))
    rows: np.ndarray = learned[order[batch * size : (batch + 1) * size]]
    return rows
