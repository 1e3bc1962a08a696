"""A model as a scorer: token ids in, one float32 per sequence out, as fast as the device goes.

A CPU computes at once. A GPU only queues: `queue` returns before the device is done, so that the next batch's work is there when this
one's ends, and results are waited for later. The size of a forward pass is found when none is set (pass_size.py).

Legend of shapes: B sequences, T tokens.
"""

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from bliss_ops.config import ComputeConfig
from bliss_ops.models.pass_size import found_size, in_passes

if TYPE_CHECKING:
    import torch

Finish = Callable[[np.ndarray, np.ndarray], np.ndarray]  # (sequence_ids_B, what the model gave of shape B) -> score_B

log = logging.getLogger(__name__)

# A CPU is fastest while the activations of a pass stay in its cache: tokens/s of one thread at 2k, 4k, 8k and 32k tokens a pass are
# 194k, 192k, 141k and 131k for tiny-neox-64 (T = 128), and 5.5k, 5.5k, 4.9k and 4.3k for pythia-31m (T = 1024).
CPU_TOKENS = 4096
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
        self.batch_sequences = batch_sequences or found_size(
            self.device, sequence_length, self._score, cpu_tokens=CPU_TOKENS, num_probed=_PROBED_SEQUENCES
        )
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
        parts = in_passes(self, input_ids_BT, self._score)

        def wait() -> np.ndarray:
            score_B: np.ndarray = np.concatenate([part.float().cpu().numpy() for part in parts])
            return self.finish(sequence_ids_B, score_B) if self.finish else score_B

        return wait

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
