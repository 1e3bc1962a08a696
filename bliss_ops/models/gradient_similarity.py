"""How alike the step a sequence would make AdamW take and the gradient of a target loss are: the cosine that LESS scores by.

For a checkpoint with moments m, v after t steps and the gradient g of one sequence (Xia et al. 2024, arXiv 2402.04333, section 3),

    Gamma = m' / (sqrt(v') + eps),   m' = (b1 m + (1 - b1) g) / (1 - b1^(t+1)),   v' = (b2 v + (1 - b2) g^2) / (1 - b2^(t+1)),

which is the direction of AdamW's next step if that step saw this sequence alone. Gamma is elementwise and not linear in g, so every
sequence's gradient has to be made, number by number; it goes block by block through preconditioning into what is summed up of it, and
is dropped. Rows of an embedding table that a sequence does not use have the Gamma of a zero gradient, the same for all sequences: they
are counted once.

Legend of shapes: B sequences, T tokens, P parameters, K numbers of a projection, N of a block, R rows of a parameter, S their size.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import nn

from bliss_ops.models.projection import Projection
from bliss_ops.models.sequence_gradients import SequenceGradients, TokenGradient, as_matrix

# Numbers of a block, of all sequences together. On a CPU a block has to stay in the cache between one operation and the next: 1.1 ns
# for every number of Gamma up to 2^19 of them, 2.2 ns above (1 MB of second-level cache per core).
_BLOCK = {"cpu": 1 << 19, "cuda": 1 << 24}


@dataclass(frozen=True)
class AdamMoments:
    """AdamW's state of one parameter as R x S, ready for the next step."""

    mean_RS: torch.Tensor  # b1 m / (1 - b1^(t+1))
    square_RS: torch.Tensor  # b2 v / (1 - b2^(t+1))
    mean_factor: float  # (1 - b1) / (1 - b1^(t+1))
    square_factor: float
    epsilon: float

    @classmethod
    def of(
        cls, exp_avg: torch.Tensor, exp_avg_sq: torch.Tensor, num_steps: int, *, betas: Sequence[float], epsilon: float
    ) -> "AdamMoments":
        """From the moments after `num_steps` steps."""
        (beta1, beta2), (seen1, seen2) = betas, (1 - beta ** (num_steps + 1) for beta in betas)
        mean_RS, square_RS = as_matrix(exp_avg) * (beta1 / seen1), as_matrix(exp_avg_sq) * (beta2 / seen2)
        return cls(mean_RS, square_RS, (1 - beta1) / seen1, (1 - beta2) / seen2, epsilon)

    def precondition(self, gradient: torch.Tensor, rows: slice | torch.Tensor) -> torch.Tensor:
        """Gamma of gradients in those rows."""
        root = torch.addcmul(self.square_RS[rows], gradient, gradient, value=self.square_factor).sqrt_().add_(self.epsilon)
        return torch.mul(gradient, self.mean_factor).add_(self.mean_RS[rows]).div_(root)


class Similarity(Protocol):
    """The cosine between vectors given in pieces and a fixed target."""

    width: int  # numbers kept of each vector
    adds_rows: bool

    def add(self, kept_BW: torch.Tensor, begin: int, values_BN: torch.Tensor) -> None:
        """Take in the coordinates from `begin` on."""

    def replace_rows(
        self, kept_BW: torch.Tensor, begin: int, row_BT: torch.Tensor, before_BTD: torch.Tensor, after_BTD: torch.Tensor
    ) -> None:
        """Exchange rows, by number, of a table that begins there and was taken in before."""

    def cosine(self, kept_BW: torch.Tensor) -> torch.Tensor: ...


class ProjectedSimilarity:
    """Between projections: what LESS computes."""

    def __init__(self, projection: Projection, target_K: torch.Tensor) -> None:
        self.projection, self.width, self.adds_rows = projection, projection.size, projection.adds_rows
        self.target_K = target_K / target_K.norm()

    def add(self, kept_BW: torch.Tensor, begin: int, values_BN: torch.Tensor) -> None:
        self.projection.add(kept_BW, begin, values_BN)

    def replace_rows(
        self, kept_BW: torch.Tensor, begin: int, row_BT: torch.Tensor, before_BTD: torch.Tensor, after_BTD: torch.Tensor
    ) -> None:
        self.projection.add_rows(kept_BW, begin, row_BT, after_BTD - before_BTD)

    def cosine(self, kept_BW: torch.Tensor) -> torch.Tensor:
        cosine_B: torch.Tensor = kept_BW @ self.target_K / kept_BW.norm(dim=1).clamp(min=torch.finfo(kept_BW.dtype).tiny)
        return cosine_B


class ExactSimilarity:
    """Without any projection: the inner product with the target and the squared norm are sums over blocks too."""

    width, adds_rows = 2, True

    def __init__(self, target_P: torch.Tensor) -> None:
        self.target_P = target_P / target_P.norm()

    def add(self, kept_BW: torch.Tensor, begin: int, values_BN: torch.Tensor) -> None:
        kept_BW[:, 0] += values_BN @ self.target_P[begin : begin + values_BN.shape[1]]
        kept_BW[:, 1] += torch.linalg.vector_norm(values_BN, dim=1).square_()

    def replace_rows(
        self, kept_BW: torch.Tensor, begin: int, row_BT: torch.Tensor, before_BTD: torch.Tensor, after_BTD: torch.Tensor
    ) -> None:
        size = before_BTD.shape[-1]
        num_rows = (len(self.target_P) - begin) // size
        target_BTD = self.target_P[begin : begin + num_rows * size].view(num_rows, size)[row_BT]
        kept_BW[:, 0] += ((after_BTD - before_BTD) * target_BTD).sum((1, 2))
        kept_BW[:, 1] += (after_BTD.square() - before_BTD.square()).sum((1, 2))

    def cosine(self, kept_BW: torch.Tensor) -> torch.Tensor:
        return kept_BW[:, 0] / kept_BW[:, 1].clamp(min=torch.finfo(kept_BW.dtype).tiny).sqrt()


def first_coordinates(model: nn.Module) -> dict[str, int]:
    """Where every parameter begins in the concatenation of all."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    return dict(zip(sizes, accumulate(sizes.values(), initial=0), strict=False))


def projected(projection: Projection | None, gradients: Mapping[str, torch.Tensor], model: nn.Module) -> torch.Tensor:
    """The projection of one gradient, given by parameter; without one, the gradient itself."""
    begins = first_coordinates(model)
    if projection is None:
        return torch.cat([gradients[name].flatten() for name in begins])
    sums_BK = next(iter(gradients.values())).new_zeros(1, projection.size)
    for name, begin in begins.items():
        projection.add(sums_BK, begin, gradients[name].reshape(1, -1))
    return sums_BK[0]


def similarity_to(target: torch.Tensor, projection: Projection | None) -> Similarity:
    """Cosines with what `projected` gave."""
    return ExactSimilarity(target) if projection is None else ProjectedSimilarity(projection, target)


class CheckpointSimilarity:
    """Cosines of Gamma of single sequences with the target, at one checkpoint.

    Args:
        model: with the checkpoint's weights; it is frozen and hooked.
        moments: by parameter.
        similarity: to what, and through which projection.
    """

    def __init__(self, model: nn.Module, moments: Mapping[str, AdamMoments], similarity: Similarity) -> None:
        self.gradients, self.moments, self.similarity = SequenceGradients(model), moments, similarity
        self.begins = first_coordinates(model)
        tokens = model.get_input_embeddings().weight  # type: ignore[operator]
        self.table = next(name for name, parameter in model.named_parameters() if parameter is tokens)
        table = moments[self.table]
        self.untouched_RD = table.precondition(torch.zeros_like(table.mean_RS), slice(None))
        self.start_1W = table.mean_RS.new_zeros(1, similarity.width)
        self.replaces_rows = similarity.adds_rows and self.gradients.is_batched and tokens is not self.gradients.head.weight
        if self.replaces_rows:
            similarity.add(self.start_1W, self.begins[self.table], self.untouched_RD.reshape(1, -1))

    @torch.no_grad()
    def __call__(self, input_ids_BT: torch.Tensor) -> torch.Tensor:
        """cosine_B."""
        from bliss_ops.training.device import autocast

        with autocast(input_ids_BT.device):
            gradients = self.gradients(input_ids_BT)
        kept_BW = self.start_1W.repeat(len(input_ids_BT), 1)
        for name, gradient in gradients.items():
            moments, begin = self.moments[name], self.begins[name]
            if self.replaces_rows and name == self.table:
                assert isinstance(gradient, TokenGradient)
                self._replace_rows(kept_BW, gradient, moments, begin)
                continue
            num_rows, row_size = moments.mean_RS.shape
            step = max(1, _BLOCK[kept_BW.device.type] // (len(input_ids_BT) * row_size))
            for row in range(0, num_rows, step):
                rows = slice(row, min(row + step, num_rows))
                block_BRS = gradient.rows(rows.start, rows.stop).to(kept_BW.dtype)
                self.similarity.add(kept_BW, begin + row * row_size, moments.precondition(block_BRS, rows).flatten(1))
        return self.similarity.cosine(kept_BW)

    def _replace_rows(self, kept_BW: torch.Tensor, gradient: TokenGradient, moments: AdamMoments, begin: int) -> None:
        """Put the rows of the sequences' tokens in the place of untouched ones; every row once, at the first position of its token."""
        row_BT = gradient.input_ids_BT
        before_BTD = self.untouched_RD[row_BT]
        after_BTD = moments.precondition(gradient.sum_BTD.to(kept_BW.dtype), row_BT)
        after_BTD = torch.where(gradient.is_first_BT[:, :, None], after_BTD, before_BTD)
        self.similarity.replace_rows(kept_BW, begin, row_BT, before_BTD, after_BTD)
