"""A model as a scorer: token ids in, one float32 per sequence out, as fast as the device goes.

A CPU computes at once. A GPU only queues: `queue` returns before the device is done, so that the next batch's work is there when this
one's ends, and results are waited for later. The size of a forward pass is found here when none is set. On a CPU it is a fixed number
of tokens, so that scores repeat bit for bit; on a GPU it follows the free memory, and is halved where that was too much.

Legend of shapes: B sequences, T tokens.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from bliss_ops.config import ComputeConfig

if TYPE_CHECKING:
    import torch

Finish = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (sequence_ids_B, what the model gave of shape B) -> score_B

log = logging.getLogger(__name__)

# A CPU is fastest while the activations of a pass stay in its cache: tokens/s of one thread at 2k, 4k, 8k and 32k tokens a pass are
# 194k, 192k, 141k and 131k for tiny-neox-64 (T = 128), and 5.5k, 5.5k, 4.9k and 4.3k for pythia-31m (T = 1024).
CPU_TOKENS = 4096
GPU_TOKENS = 1 << 19  # more keep no GPU busier
_SHARE_OF_FREE_MEMORY = 0.8
_PROBED_SEQUENCES = 8


class ModelScorer:
    """The function (sequence_ids_B, input_ids_BT) -> float32 score_B of a model, and its parts for a pipeline.

    Args:
        model: evaluated as it is; moved to the device.
        device: where.
        forward: input_ids_BT -> score_B on the device; the model itself unless given.
        finish: what becomes of a score on the CPU that depends on whose it is, such as a random draw for each sequence id.
    """

    def __init__(
        self,
        model: "torch.nn.Module",
        device: "torch.device",
        forward: "Callable[[torch.Tensor], torch.Tensor] | None" = None,
        *,
        finish: Finish | None = None,
    ) -> None:
        self.model, self.device = model.to(device).eval(), device
        self.forward = forward or model
        self.finish = finish
        self.batch_sequences = 0  # the most in one forward pass; 0: all that are given
        self._is_padded = False

    def __call__(self, sequence_ids_B: np.ndarray, input_ids_BT: np.ndarray) -> np.ndarray:
        return self.queue(sequence_ids_B, input_ids_BT)()

    def prepare(self, batch_sequences: int | None, sequence_length: int, compute: ComputeConfig) -> int:
        """Settle the size of a forward pass and compile the model where that is asked for; returns the size.

        Compiled code is made for one shape: a short last batch is padded then.
        """
        from bliss_ops.training.device import compiled, keep_freed_memory

        if self.device.type == "cpu":
            keep_freed_memory()
        self.batch_sequences = batch_sequences or self._automatic(sequence_length)
        log.info("scoring %d sequences of %d tokens at a time on %s", self.batch_sequences, sequence_length, self.device)
        compiled(self.model, compute)
        self._is_padded = compute.compile
        return self.batch_sequences

    def queue(self, sequence_ids_B: np.ndarray, input_ids_BT: np.ndarray) -> Callable[[], np.ndarray]:
        """Begin to score; the returned function waits for the scores.

        A batch that does not fit into memory is scored in halves, and so are all later ones.
        """
        import torch

        torch.set_num_threads(1)  # OpenMP keeps this for every thread of the process, and we may be in a new one
        parts: list[torch.Tensor] = []
        begin = 0
        while begin < len(input_ids_BT):
            rows = input_ids_BT[begin : begin + (self.batch_sequences or len(input_ids_BT))]
            part = self._score_if_it_fits(rows)
            if part is not None:
                parts.append(part)
                begin += len(rows)
            else:
                self.batch_sequences = (len(rows) + 1) // 2
                log.warning("out of memory with %d sequences at a time: %d from now on", len(rows), self.batch_sequences)
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()

        def wait() -> np.ndarray:
            score_B: np.ndarray = np.concatenate([part.float().cpu().numpy() for part in parts])
            return self.finish(sequence_ids_B, score_B) if self.finish else score_B

        return wait

    def _score_if_it_fits(self, rows_BT: np.ndarray) -> "torch.Tensor | None":
        import torch

        try:
            return self._score(rows_BT)
        except torch.OutOfMemoryError:
            if len(rows_BT) == 1:
                raise
            return None  # outside of the handler, where the exception's frames no longer hold the memory

    def _score(self, rows_BT: np.ndarray) -> "torch.Tensor":
        import torch

        from bliss_ops.training.device import autocast

        num_rows = len(rows_BT)
        if self._is_padded:
            rows_BT = np.pad(rows_BT, ((0, self.batch_sequences - num_rows), (0, 0)))
        input_ids_BT = torch.from_numpy(rows_BT)
        if self.device.type == "cuda":
            input_ids_BT = input_ids_BT.pin_memory().to(self.device, non_blocking=True)
        with torch.inference_mode(), autocast(self.device):
            return self.forward(input_ids_BT)[:num_rows]

    def _automatic(self, sequence_length: int) -> int:
        import torch

        if self.device.type != "cuda":
            return max(1, CPU_TOKENS // sequence_length)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        self._score(np.zeros((_PROBED_SEQUENCES, sequence_length), np.int64))
        needed = (torch.cuda.max_memory_allocated(self.device) - before) / _PROBED_SEQUENCES
        torch.cuda.empty_cache()
        return largest_batch(torch.cuda.mem_get_info(self.device)[0], needed, sequence_length)


def largest_batch(free_bytes: int, bytes_per_sequence: float, sequence_length: int) -> int:
    """The largest power of two of sequences that a GPU with so much free memory scores at once."""
    most = min(_SHARE_OF_FREE_MEMORY * free_bytes / max(bytes_per_sequence, 1.0), GPU_TOKENS / sequence_length)
    return 1 << max(0, int(most).bit_length() - 1)
