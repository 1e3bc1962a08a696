"""The lower level on one batch: losses of the proxy, their weighted gradient, and a differentiable form for second derivatives.

    g = sum_i P_i L_i(theta_p) + gamma * mean_i KL_i + lambda * |theta_p|^2

A batch is divided twice: over workers (this object holds this worker's rows) and over micro-batches (what fits in memory). Sums are
taken over both, means by the global number of sequences, so the result does not depend on either division but for rounding.

Legend of shapes: B sequences of the global batch, b this worker's rows of it, m those of one micro-batch, T tokens, V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from bliss_ops.bilevel.objective import divergence_m
from bliss_ops.bilevel.vectors import accumulated, zeros_like
from bliss_ops.config import BilevelConfig
from bliss_ops.models.language import token_loss_sums
from bliss_ops.models.token_loss import Divergence, hidden_states, loss_sums, output_matrix, weighted_loss
from bliss_ops.training.device import autocast
from bliss_ops.training.workers import ALONE, Workers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class LowerLevel:
    """g of one batch as a function of the proxy's present parameters. The reference sees the batch once, however often g is asked for."""

    proxy: "PreTrainedModel"
    input_ids_bT: torch.Tensor
    num_sequences: int  # B
    config: BilevelConfig
    reference: "PreTrainedModel | None" = None
    workers: Workers = ALONE
    _reference_hidden: dict[int, torch.Tensor] = field(default_factory=dict)  # of the micro-batch that begins at this row

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        return list(self.proxy.parameters())

    def micro_batches(self) -> Iterator[tuple[slice, torch.Tensor]]:
        """(rows, input_ids_mT) of each micro-batch; none when this worker has no row."""
        size = self.config.micro_batch_sequences
        for begin in range(0, len(self.input_ids_bT), size):
            yield slice(begin, begin + size), self.input_ids_bT[begin : begin + size]

    def losses(self) -> torch.Tensor:
        """L_i of this worker's rows, shape b; one forward pass, no graph."""
        loss_b = self._empty_b()
        for rows, input_ids_mT in self.micro_batches():
            with autocast(input_ids_mT.device):
                sums_m, counts_m = loss_sums(self.proxy, input_ids_mT, input_ids_mT)
            loss_b[rows] = sums_m / counts_m
        return loss_b

    def gradient(self, weight_b: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """(G, L_b): the gradient of g summed over workers, and the losses; one forward and one backward pass, no logits of the batch."""
        parameters, loss_b = self.parameters, self._empty_b()
        gradient: list[torch.Tensor] = []
        weight = self.config.kl_weight / self.num_sequences
        for rows, input_ids_mT in self.micro_batches():
            divergence = None
            if self.reference is not None:
                hidden_mTE = self.reference_hidden(rows)
                divergence = Divergence(self.reference, self.config.kl_direction, weight, hidden_mTE)
            with autocast(input_ids_mT.device):
                total, sums_m, counts_m = weighted_loss(self.proxy, input_ids_mT, input_ids_mT, weight_b[rows], divergence=divergence)
            loss_b[rows] = sums_m / counts_m
            gradient = accumulated(gradient, torch.autograd.grad(total, parameters))
        gradient = gradient or zeros_like(parameters)
        self.workers.sum_(gradient)
        if self.config.l2_weight:
            torch._foreach_add_(gradient, [tensor.detach() for tensor in parameters], alpha=2 * self.config.l2_weight)
        return gradient, loss_b

    @torch.no_grad()
    def reference_hidden(self, rows: slice) -> torch.Tensor:
        """The reference's hidden states of a micro-batch, computed once; far smaller than its logits."""
        if rows.start not in self._reference_hidden:
            input_ids_mT = self.input_ids_bT[rows]
            with autocast(input_ids_mT.device):
                self._reference_hidden[rows.start] = hidden_states(self.reference, input_ids_mT)
        return self._reference_hidden[rows.start]

    def differentiable(self, rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """(L_m, this micro-batch's part of the KL term) with a graph that can be differentiated again; holds the logits."""
        input_ids_mT = self.input_ids_bT[rows]
        with autocast(input_ids_mT.device):
            logits_mTV = self.proxy(input_ids=input_ids_mT).logits
        sums_m, counts_m = token_loss_sums(logits_mTV, input_ids_mT)
        penalty = sums_m.new_zeros(())
        if self.reference is not None:
            with torch.no_grad(), autocast(input_ids_mT.device):
                reference_mTV = F.linear(self.reference_hidden(rows), output_matrix(self.reference))
            divergence = divergence_m(logits_mTV, reference_mTV, self.config.kl_direction)
            penalty = self.config.kl_weight / self.num_sequences * divergence.sum()
        return sums_m / counts_m, penalty

    def _empty_b(self) -> torch.Tensor:
        wide = next(self.proxy.parameters()).dtype
        return torch.zeros(len(self.input_ids_bT), dtype=wide, device=self.input_ids_bT.device)
