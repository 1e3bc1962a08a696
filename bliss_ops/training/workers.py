"""The processes of one training job: which rows are whose, the two collective operations the method needs, and who decides.

Every worker holds the same models and takes the same steps; only the rows of a batch are divided. What crosses workers is explicit:
a sum of gradients (means are taken by whoever knows the global count), and one number per sequence. Results are therefore those of
one process up to the rounding of sums, whatever the number of workers and however uneven their shares.

Legend of shapes: B sequences of the global batch, b this worker's share of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed

ValueT = TypeVar("ValueT")


@dataclass(frozen=True)
class Workers:
    """This process among those of the job; the default is a job of one process."""

    rank: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> "Workers":
        """The process group torch.distributed was initialised with, else one process alone."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return cls()
        return cls(torch.distributed.get_rank(), torch.distributed.get_world_size())

    @property
    def writes(self) -> bool:
        """Whether this process writes the job's files."""
        return self.rank == 0

    def share(self, total: int) -> slice:
        """This worker's contiguous rows of `total`: shares differ by at most one row and may be empty."""
        return slice(total * self.rank // self.count, total * (self.rank + 1) // self.count)

    def sum_(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace each tensor by its sum over all workers, in one message."""
        if self.count == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        torch.distributed.all_reduce(flat)
        for tensor, total in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(total.view_as(tensor))

    def gather(self, values_b: torch.Tensor, total: int) -> torch.Tensor:
        """The values of all `total` rows, in order; shape B."""
        if self.count == 1:
            return values_b
        values_B = values_b.new_zeros(total)
        values_B[self.share(total)] = values_b
        torch.distributed.all_reduce(values_B)
        return values_B

    def agreed(self, value: ValueT) -> ValueT:
        """The first worker's `value`, on every worker: what each finds in a store for itself may differ, and would lead them apart."""
        if self.count == 1:
            return value
        values = [value]
        torch.distributed.broadcast_object_list(values)
        return values[0]

    def barrier(self) -> None:
        """Wait until every worker is here."""
        if self.count > 1:
            torch.distributed.barrier()


ALONE = Workers()
