"""Several checkpoints' gradient similarities as one scorer: token ids in, one float32 per sequence out.

The memory of a pass mostly goes into one gradient per sequence and block (its size: pass_size.py).

Legend of shapes: B sequences, T tokens, C checkpoints.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from bliss_ops.models.pass_size import found_size, in_passes

if TYPE_CHECKING:
    import torch

    from bliss_ops.models.gradient_similarity import CheckpointSimilarity

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
        self.batch_sequences = self.batch_sequences or found_size(
            self.device, input_ids_BT.shape[1], self._score, cpu_tokens=CPU_TOKENS, num_probed=_PROBED_SEQUENCES
        )
        parts = in_passes(self, input_ids_BT, self._score)
        return np.concatenate([np.empty(0, np.float32), *parts])

    def _score(self, rows_BT: np.ndarray) -> np.ndarray:
        import torch

        input_ids_BT = torch.from_numpy(rows_BT).to(self.device)
        cosine_CB = torch.stack([checkpoint(input_ids_BT) for checkpoint in self.checkpoints])
        score_B: np.ndarray = (cosine_CB.new_tensor(self.weights) @ cosine_CB).float().cpu().numpy()
        return score_B
