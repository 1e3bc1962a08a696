"""How many sequences go through a model at once: found on the device, and halved where that was too much.

On a CPU it is a fixed number of tokens, so that results repeat bit for bit; on a GPU it follows the free memory, which a few sequences
tell beforehand.

Legend of shapes: B sequences, T tokens.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

import numpy as np

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

GPU_TOKENS = 1 << 19  # more keep no GPU busier
_SHARE_OF_FREE_MEMORY = 0.8

PartT = TypeVar("PartT")


class Scorer(Protocol):
    batch_sequences: int  # of a pass; 0: all that are given


def in_passes(scorer: Scorer, rows_BT: np.ndarray, compute: Callable[[np.ndarray], PartT]) -> list[PartT]:
    """`compute` on all rows in their order, `scorer.batch_sequences` at a time, which is halved where they do not fit.

    Raises:
        torch.OutOfMemoryError: a single sequence is too much.
    """
    import torch

    parts: list[PartT] = []
    begin = 0
    while begin < len(rows_BT):
        rows = rows_BT[begin : begin + (scorer.batch_sequences or len(rows_BT))]
        try:
            parts.append(compute(rows))
            begin += len(rows)
            continue
        except torch.OutOfMemoryError:
            if len(rows) == 1:
                raise
        # outside of the handler, where the exception's frames no longer hold the memory
        scorer.batch_sequences = (len(rows) + 1) // 2
        log.warning("out of memory with %d sequences at a time: %d from now on", len(rows), scorer.batch_sequences)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return parts


def found_size(
    device: "torch.device", sequence_length: int, compute: Callable[[np.ndarray], object], *, cpu_tokens: int, num_probed: int
) -> int:
    """Sequences of a pass: `cpu_tokens` on a CPU; on a GPU as many as fit, by what `compute` takes for `num_probed`."""
    import torch

    if device.type != "cuda":
        return max(1, cpu_tokens // sequence_length)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    compute(np.zeros((num_probed, sequence_length), np.int64))
    needed = (torch.cuda.max_memory_allocated(device) - before) / num_probed
    torch.cuda.empty_cache()
    return largest_batch(torch.cuda.mem_get_info(device)[0], needed, sequence_length)


def largest_batch(free_bytes: int, bytes_per_sequence: float, sequence_length: int) -> int:
    """The largest power of two of sequences that a GPU with so much free memory takes at once."""
    most = min(_SHARE_OF_FREE_MEMORY * free_bytes / max(bytes_per_sequence, 1.0), GPU_TOKENS / sequence_length)
    return 1 << max(0, int(most).bit_length() - 1)
