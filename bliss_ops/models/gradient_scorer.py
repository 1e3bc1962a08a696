"""Several checkpoints' gradient similarities as one scorer: token ids in, one float32 per sequence out.

On a CPU the size of a pass is a fixed number of tokens, so that scores repeat bit for bit; on a GPU it follows the free memory, which
mostly goes into one gradient per sequence and block, and is halved where that was too much.

Legend of shapes: B sequences, T tokens, C checkpoints.
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

    from bliss_ops.models.gradient_similarity import CheckpointSimilarity

log = logging.getLogger(__name__)

CPU_TOKENS = 2048  # tiny-neox-64 with T = 128: 5.0 ms per sequence with 16 or 32 at a time, 5.4 with 8, 6.1 with 4
_PROBED_SEQUENCES = 2


class GradientScorer:
    """The function (sequence_ids_B, input_ids_BT) -> float32 score_B: sum over checkpoints of weight * cosine.

    Args:
        checkpoints: on the device.
        weights: one for each.
        device: where.
    """

    def __init__(self, checkpoints: "Sequence[CheckpointSimilarity]", weights: Sequence[float], device: "torch.device") -> None:
        from bliss_ops.training.device import keep_freed_memory

        self.checkpoints, self.weights, self.device = checkpoints, weights, device
        self.batch_sequences = 0  # of a pass; 0: not known yet
        if device.type == "cpu":
            keep_freed_memory()

    def __call__(self, _sequence_ids_B: np.ndarray, input_ids_BT: np.ndarray) -> np.ndarray:
        import torch

        torch.set_num_threads(1)  # OpenMP keeps this for every thread of the process, and we may be in a new one
        self.batch_sequences = self.batch_sequences or self._automatic(input_ids_BT.shape[1])
        parts: list[np.ndarray] = []
        begin = 0
        while begin < len(input_ids_BT):
            rows = input_ids_BT[begin : begin + self.batch_sequences]
            part = self._score_if_it_fits(rows)
            if part is not None:
                parts.append(part)
                begin += len(rows)
            else:
                self.batch_sequences = (len(rows) + 1) // 2
                log.warning("out of memory with %d sequences at a time: %d from now on", len(rows), self.batch_sequences)
                torch.cuda.empty_cache()
        return np.concatenate([np.empty(0, np.float32), *parts])

    def _score_if_it_fits(self, rows_BT: np.ndarray) -> np.ndarray | None:
        import torch

        try:
            return self._score(rows_BT)
        except torch.OutOfMemoryError:
            if len(rows_BT) == 1:
                raise
            return None  # outside of the handler, where the exception's frames no longer hold the memory

    def _score(self, rows_BT: np.ndarray) -> np.ndarray:
        import torch

        input_ids_BT = torch.from_numpy(rows_BT).to(self.device)
        cosine_CB = torch.stack([checkpoint(input_ids_BT) for checkpoint in self.checkpoints])
        score_B: np.ndarray = (cosine_CB.new_tensor(self.weights) @ cosine_CB).float().cpu().numpy()
        return score_B

    def _automatic(self, length: int) -> int:
        import torch

        from bliss_ops.models.scorer import largest_batch

        if self.device.type != "cuda":
            return max(1, CPU_TOKENS // length)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        self._score(np.zeros((_PROBED_SEQUENCES, length), np.int64))
        needed = (torch.cuda.max_memory_allocated(self.device) - before) / _PROBED_SEQUENCES
        torch.cuda.empty_cache()
        return largest_batch(torch.cuda.mem_get_info(self.device)[0], needed, length)
