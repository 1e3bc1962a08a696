"""Measured influences of many sequences: divided over the workers of a job, and kept block by block so that a killed job goes on.

Blocks do not know workers: block k holds the influences of probes [32 k, 32 (k + 1)), and a job that goes on with another number of
workers measures what is missing. Probes are independent of each other (training/influence.py), so nothing depends on the division.
When all are there they become one file, which stays.
"""

import logging

import numpy as np
from upath import UPath

from bliss_ops.corpus.validation import ValidationRows
from bliss_ops.lake import at_once, remove, write_bytes
from bliss_ops.sharding import Progress
from bliss_ops.training.influence import Influences, one_step_influences
from bliss_ops.training.state import TrainState
from bliss_ops.training.workers import ALONE, Workers

log = logging.getLogger(__name__)

PROBES_PER_BLOCK = 32
MEASURED = "influences.f64"  # loss, momentum and all influences


def measured_influences(
    state: TrainState,
    probes_MT: np.ndarray,
    validation: ValidationRows,
    *,
    directory: UPath,
    title: str,
    section: str,
    max_gradient_norm: float | None = None,
    workers: Workers = ALONE,
) -> Influences:
    """The one-step influence of every probe, on every worker.

    Args:
        state: the checkpoint to probe, the same on every worker; it is left as it was.
        probes_MT: input_ids of all probes.
        validation: the rows whose loss is measured.
        directory: takes the blocks and, at the end, `influences.f64`.
        title: of progress lines.
        section: of the settings, for messages.
        max_gradient_norm: of the step on a probe.
        workers: the processes that share the work.

    Raises:
        ValueError: a loss is not finite.
    """
    num_blocks = -(-len(probes_MT) // PROBES_PER_BLOCK)
    missing = workers.agreed(_missing(directory, num_blocks) if workers.writes else None)  # one looks, so that no block is left to nobody
    if missing is None:
        return _read(directory)
    if len(missing) < num_blocks:
        log.info("%s: %d of %d blocks of probes are measured already", title, num_blocks - len(missing), num_blocks)
    left = missing[workers.share(len(missing))]
    rows = [row for block in left for row in _rows(block, len(probes_MT))]
    progress = Progress(title, len(rows), unit="probes", seconds_between_lines=3.0)
    num_written = 0

    def after_probe(influences: list[float]) -> None:
        nonlocal num_written
        progress.advance()
        if len(influences) - num_written == len(_rows(left[0], len(probes_MT))):
            write_bytes(_path(directory, left.pop(0)), np.array(influences[num_written:]).tobytes())
            num_written = len(influences)

    found = one_step_influences(
        state, probes_MT[rows], validation, max_gradient_norm=max_gradient_norm, section=section, after_probe=after_probe
    )
    workers.barrier()
    if workers.writes:
        blocks = [np.frombuffer(_path(directory, block).read_bytes()) for block in range(num_blocks)]
        write_bytes(directory / MEASURED, np.concatenate([[found.loss, found.momentum], *blocks]).tobytes())
        for block in range(num_blocks):
            remove(_path(directory, block))
    workers.barrier()
    return _read(directory)


def _missing(directory: UPath, num_blocks: int) -> list[int] | None:
    """The blocks that are still to be measured; None when all of them have become one file."""
    if (directory / MEASURED).is_file():
        return None
    are_there = at_once(lambda block: _path(directory, block).is_file(), range(num_blocks), directory)
    return [block for block, is_there in enumerate(are_there) if not is_there]


def _read(directory: UPath) -> Influences:
    loss, momentum, *influences = np.frombuffer((directory / MEASURED).read_bytes()).tolist()
    return Influences(np.array(influences), momentum, loss)


def _path(directory: UPath, block: int) -> UPath:
    return directory / f"probed-{block:05d}.f64"


def _rows(block: int, num_probes: int) -> range:
    return range(block * PROBES_PER_BLOCK, min((block + 1) * PROBES_PER_BLOCK, num_probes))
