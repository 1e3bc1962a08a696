"""Bilevel training of the score model over one candidate window: batches, outer steps, checkpoints, metrics.

Candidates and validation rows come from separate streams, no candidate batch is used twice in an epoch, and both streams are functions
of the step, so an interrupted job ends with the same score model as an undisturbed one.
"""

import logging
import math

import numpy as np
import torch
from upath import UPath

from bliss_ops.bilevel.outer_step import BilevelState, outer_step
from bliss_ops.config import BilevelConfig
from bliss_ops.corpus.reading import SequenceReader
from bliss_ops.corpus.validation import trim_padding
from bliss_ops.models.language import read_tensors, write_tensors
from bliss_ops.training.metrics import StepMetrics

log = logging.getLogger(__name__)

CHECKPOINT = "state.safetensors"


def train_score_model(
    state: BilevelState,
    candidates: SequenceReader,
    validation: tuple[np.ndarray, np.ndarray],
    config: BilevelConfig,
    *,
    seed: int,
    device: torch.device,
    directory: UPath,
    metrics: StepMetrics,
) -> None:
    """Run the outer steps that are still missing, in place.

    Args:
        state: where training begins; replaced by the checkpoint in `directory` when there is one.
        candidates: the candidate window.
        validation: input_ids_NT and labels_NT of the guide part.
        config: the bilevel settings.
        seed: of the data streams.
        device: where the models are.
        directory: takes `state.safetensors` and `metrics.jsonl`.
        metrics: takes every step's numbers.

    Raises:
        ValueError: a loss or score is not finite; the last checkpoint is left as it was.
    """
    if (directory / CHECKPOINT).exists():
        state.restore(read_tensors(directory / CHECKPOINT))
        metrics.resume(state.step)
        log.info("%s: going on after step %d", metrics.title, state.step)
    for step in range(state.step, config.num_steps):
        positions = range(step * config.num_inner_steps, (step + 1) * config.num_inner_steps)
        batches = [torch.from_numpy(candidates.batch(position, config.batch_sequences, seed)[1]).to(device) for position in positions]
        rows = validation_rows(step, len(validation[0]), config.validation_batch_sequences, seed)
        guide_ids, guide_labels = trim_padding(validation[0][rows], validation[1][rows])
        guide_batch = (torch.from_numpy(guide_ids).to(device), torch.from_numpy(guide_labels).to(device))
        numbers = outer_step(state, batches[:-1], batches[-1], guide_batch, config)
        bad = [name for name, value in numbers.items() if not math.isfinite(value)]
        if bad:
            raise ValueError(
                f"{metrics.title}: {', '.join(bad)} not finite at step {step + 1}: lower bilevel.score_learning_rate "
                f"({config.score_learning_rate:g}) or bilevel.proxy_learning_rate ({config.proxy_learning_rate:g}); nothing after step "
                f"{step - step % config.checkpoint_every_steps} is kept"
            )
        metrics.add(step + 1, **numbers)
        metrics.line(
            step + 1, val=numbers["validation_loss"], ess=numbers["effective_sample_size"], rho=numbers["alignment_score_correlation"]
        )
        if (step + 1) % config.checkpoint_every_steps == 0 or step + 1 == config.num_steps:
            metrics.write()
            write_tensors(directory / CHECKPOINT, state.tensors())


def validation_rows(step: int, num_rows: int, batch_rows: int, seed: int) -> np.ndarray:
    """Row numbers of the step's validation batch: an endless stream of permutations, position = step."""
    size = min(batch_rows, num_rows)
    positions = np.arange(step * size, (step + 1) * size)
    epochs = np.unique(positions // num_rows)
    order = {epoch: np.random.default_rng([seed, 0x76, int(epoch)]).permutation(num_rows) for epoch in epochs}
    return np.array([order[position // num_rows][position % num_rows] for position in positions])
