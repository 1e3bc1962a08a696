"""Bilevel training of the score model over one candidate window: batches, outer steps, looks, guards, checkpoints.

Candidates and validation rows come from separate streams, no candidate batch is used twice in an epoch, and both streams are functions
of the step, so an interrupted job ends with the same score model as an undisturbed one. Every worker reads the same streams and
keeps its own rows.
"""

import logging

import numpy as np
import torch
from upath import UPath

from bliss_ops.bilevel.guards import Guards, check_validation_rows
from bliss_ops.bilevel.outer_step import outer_step
from bliss_ops.bilevel.probes import Probes, look
from bliss_ops.bilevel.state import Batch, BilevelState, ValidationBatch
from bliss_ops.config import BilevelConfig
from bliss_ops.corpus.reading import SequenceReader
from bliss_ops.corpus.validation import IGNORED, ValidationRows, trim_padding
from bliss_ops.training.checkpoints import Checkpoint
from bliss_ops.training.device import explained_out_of_memory
from bliss_ops.training.metrics import StepMetrics
from bliss_ops.training.workers import ALONE, Workers

log = logging.getLogger(__name__)

CHECKPOINT = "state.safetensors"
PROBES_SEED = 0x70726F62  # the probes' stream; a candidate may be in both


def train_score_model(
    state: BilevelState,
    candidates: SequenceReader,
    guide: ValidationRows,
    config: BilevelConfig,
    *,
    seed: int,
    device: torch.device,
    directory: UPath,
    metrics: StepMetrics,
    workers: Workers = ALONE,
) -> None:
    """Run the outer steps that are still missing, in place.

    Args:
        state: where training begins; replaced by the checkpoint in `directory` when there is one.
        candidates: the candidate window.
        guide: rows of the guide part.
        config: the bilevel settings.
        seed: of the data streams.
        device: where the models are.
        directory: takes `state.safetensors` and `metrics.jsonl`.
        metrics: takes every step's numbers.
        workers: the processes that share each step; the first one writes.

    Raises:
        ValueError: the validation set is too small, or training diverges; the last checkpoint is left as it was.
    """
    check_validation_rows(len(guide.input_ids_NT))
    checkpoint = Checkpoint(directory / CHECKPOINT, state, metrics, config.checkpoint_every_steps, config.num_steps, workers)
    guards = Guards(config, metrics.title)
    probes = _probes(candidates, guide, config, seed, device)
    if checkpoint.resume():
        log.info("%s: going on after step %d", metrics.title, state.step)
        guards.first_loss = next((row["proxy_loss"] for row in metrics.rows if "proxy_loss" in row), None)
    else:
        metrics.add(0, **look(state, probes, config))
    for step in range(state.step, config.num_steps):
        positions = range(step * config.num_inner_steps, (step + 1) * config.num_inner_steps)
        batches = [_candidate_batch(candidates, position, config.batch_sequences, seed, workers, device) for position in positions]
        validation = _validation_batch(guide, step, config.validation_batch_sequences, seed, workers, device)
        inner = batches if config.outer_batch == "trained" else batches[:-1]
        with explained_out_of_memory(metrics.title, "bilevel.micro_batch_sequences", config.micro_batch_sequences):
            numbers = outer_step(state, inner, batches[-1], validation, config, workers=workers)
        guards.check_step(step + 1, numbers)
        if (step + 1) % config.probe_every_steps == 0 or step + 1 == config.num_steps:
            seen = look(state, probes, config)
            guards.check_look(step + 1, seen)
            numbers |= seen
        metrics.add(step + 1, **numbers)
        metrics.line(
            step + 1, val=numbers["validation_loss"], ess=numbers["effective_sample_size"], rho=numbers["alignment_score_correlation"]
        )
        checkpoint.after_step(step + 1)


def validation_rows(step: int, num_rows: int, batch_rows: int, seed: int) -> np.ndarray:
    """Row numbers of the step's validation batch: an endless stream of permutations, position = step."""
    size = min(batch_rows, num_rows)
    positions = np.arange(step * size, (step + 1) * size)
    epochs = np.unique(positions // num_rows)
    order = {epoch: np.random.default_rng([seed, 0x76, int(epoch)]).permutation(num_rows) for epoch in epochs}
    return np.array([order[position // num_rows][position % num_rows] for position in positions])


def _candidate_batch(
    candidates: SequenceReader, position: int, batch_sequences: int, seed: int, workers: Workers, device: torch.device
) -> Batch:
    _, input_ids_BT = candidates.batch(position, batch_sequences, seed)
    rows_BT = torch.from_numpy(input_ids_BT)
    return Batch(rows_BT[workers.share(batch_sequences)].to(device), batch_sequences, rows_BT)


def _validation_batch(
    guide: ValidationRows, step: int, batch_rows: int, seed: int, workers: Workers, device: torch.device
) -> ValidationBatch:
    """This worker's rows; f is the mean over the counted tokens of all workers' rows, weighted by validation set."""
    chosen = guide.take(validation_rows(step, len(guide.input_ids_NT), batch_rows, seed))
    counts_N = (chosen.labels_NT[:, 1:] != IGNORED).sum(1)
    weight_N = chosen.weight_N * counts_N / (chosen.weight_N * counts_N).sum()
    mine = workers.share(len(counts_N))
    input_ids_NT, labels_NT = trim_padding(chosen.input_ids_NT[mine], chosen.labels_NT[mine])
    return ValidationBatch(
        torch.from_numpy(input_ids_NT).to(device), torch.from_numpy(labels_NT).to(device), torch.from_numpy(weight_N[mine]).to(device)
    )


def _probes(candidates: SequenceReader, guide: ValidationRows, config: BilevelConfig, seed: int, device: torch.device) -> Probes:
    _, input_ids_PT = candidates.batch(0, min(config.num_probes, candidates.num_sequences), seed ^ PROBES_SEED)
    rows = validation_rows(0, len(guide.input_ids_NT), 64, seed ^ PROBES_SEED)
    return Probes(torch.from_numpy(input_ids_PT).to(device), torch.from_numpy(guide.input_ids_NT[rows]).to(device))
