"""Gradients of single sequences, for a whole batch in one backward pass.

The gradient of a weight matrix is a sum over positions of (gradient at the output) x (input), so both are kept while the batch is
differentiated once, with every parameter frozen, and multiplied sequence by sequence afterwards: the products that would have made the
batch's own gradient, kept apart. Nothing is ever held for all parameters: a caller takes the rows of a matrix that fit its memory.

A model with parameters in other modules than linear layers, embeddings, layer and RMS norms is differentiated one sequence at a time:
as exact, several times slower.

Legend of shapes: B sequences, T tokens, R rows of a parameter seen as a matrix, S their size (R = 1 for a vector), D hidden size.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import nn

from bliss_ops.models.token_loss import hidden_states, output_matrix


class ParameterGradient(Protocol):
    """The gradients of B sequences in one parameter."""

    def rows(self, begin: int, end: int) -> torch.Tensor:
        """Of shape B x (end - begin) x S."""


class MatrixGradient:
    """Of a linear layer's weight: sum over t of slope_t (x) input_t."""

    def __init__(self, input_BTI: torch.Tensor, slope_BTO: torch.Tensor) -> None:
        self.input_BTI, self.slope_BTO = input_BTI.to(slope_BTO.dtype), slope_BTO

    def rows(self, begin: int, end: int) -> torch.Tensor:
        return self.slope_BTO[:, :, begin:end].mT @ self.input_BTI


class TokenGradient:
    """Of an embedding table: zero but in the rows of the sequence's own tokens.

    `sum_BTD` holds, at the first position of every distinct token, the sum over its positions, and zeros at the others. Made by a matrix
    product, since a scatter-add would not repeat bit for bit on a GPU.
    """

    def __init__(self, input_ids_BT: torch.Tensor, slope_BTD: torch.Tensor) -> None:
        same_BTT = input_ids_BT[:, :, None] == input_ids_BT[:, None, :]
        earlier_TT = torch.ones_like(same_BTT[0]).tril(-1)
        self.input_ids_BT = input_ids_BT
        self.is_first_BT = ~(same_BTT & earlier_TT).any(-1)
        self.sum_BTD = (same_BTT & self.is_first_BT[:, :, None]).to(slope_BTD.dtype) @ slope_BTD

    def rows(self, begin: int, end: int) -> torch.Tensor:
        dense_BRD = self.sum_BTD.new_zeros(len(self.sum_BTD), end - begin, self.sum_BTD.shape[-1])
        sequence_N, position_N = (self.is_first_BT & (self.input_ids_BT >= begin) & (self.input_ids_BT < end)).nonzero(as_tuple=True)
        row_N = self.input_ids_BT[sequence_N, position_N] - begin
        dense_BRD[sequence_N, row_N] = self.sum_BTD[sequence_N, position_N]
        return dense_BRD


class DenseGradient:
    """Held as it is, of shape B x R x S."""

    def __init__(self, value_BRS: torch.Tensor) -> None:
        self.value_BRS = value_BRS

    def rows(self, begin: int, end: int) -> torch.Tensor:
        return self.value_BRS[:, begin:end]


class SumGradient:
    """Of a parameter that is used more than once, as one matrix for both embeddings."""

    def __init__(self, parts: list[ParameterGradient]) -> None:
        self.parts = parts

    def rows(self, begin: int, end: int) -> torch.Tensor:
        total_BRS = self.parts[0].rows(begin, end)
        for part in self.parts[1:]:
            total_BRS = total_BRS + part.rows(begin, end)
        return total_BRS


def as_matrix(parameter: torch.Tensor) -> torch.Tensor:
    """The parameter as R rows of S numbers; a vector is one row."""
    return parameter.reshape(1, -1) if parameter.ndim < 2 else parameter.reshape(len(parameter), -1)


class SequenceGradients:
    """Takes the gradient of every sequence's mean next-token loss; the model is frozen and hooked for as long as this lives.

    Args:
        model: a causal language model of transformers.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval()
        self.names = {parameter: name for name, parameter in model.named_parameters()}
        self.head: Any = model.get_output_embeddings()  # type: ignore[operator]
        self._seen: list[tuple[nn.Module, torch.Tensor, torch.Tensor]] = []  # module, what went in, gradient at what came out
        tokens = model.get_input_embeddings()  # type: ignore[operator]
        owners = [module for module in model.modules() if module is not self.head and list(module.parameters(recurse=False))]
        self.is_batched = self.head.bias is None and all(_is_known(module, tokens) for module in owners)
        if self.is_batched:
            model.requires_grad_(False)
            for module in owners:
                module.register_forward_hook(self._watch)

    def __call__(self, input_ids_BT: torch.Tensor) -> Mapping[str, ParameterGradient]:
        """The gradients of each sequence's loss, by parameter; they hold the activations of this batch until they are dropped."""
        if not self.is_batched:
            return self._one_by_one(input_ids_BT)
        self._seen.clear()  # of a pass that ran out of memory
        with torch.enable_grad():
            hidden_BTD = hidden_states(self.model, input_ids_BT)[:, :-1]
        with torch.no_grad():
            states_BTD, matrix_VD = hidden_BTD.contiguous(), output_matrix(self.model)
            slope_BTV = _loss_slope(F.linear(states_BTD, matrix_VD), input_ids_BT[:, 1:])
            hidden_slope_BTD = (slope_BTV @ matrix_VD.to(slope_BTV.dtype)).to(hidden_BTD.dtype) / states_BTD.shape[1]
            states_BTD = states_BTD / states_BTD.shape[1]  # a mean over T; the slope would be V/D times as much to divide
        torch.autograd.backward(hidden_BTD, hidden_slope_BTD)
        found: dict[str, list[ParameterGradient]] = {self.names[self.head.weight]: [MatrixGradient(states_BTD, slope_BTV)]}
        with torch.no_grad():
            while self._seen:
                module, given, slope = self._seen.pop()
                assert slope.shape[:1] == input_ids_BT.shape[:1], f"{type(module).__name__} mixes sequences: {tuple(slope.shape)}"
                self._add_gradients(found, module, given, slope)
        assert len(found) == len(self.names), f"no gradient for {sorted(set(self.names.values()) - set(found))}"
        return {name: parts[0] if len(parts) == 1 else SumGradient(parts) for name, parts in found.items()}

    def _watch(self, module: nn.Module, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if not torch.is_grad_enabled():
            return
        if not output.requires_grad:
            output.requires_grad_()  # the embedding's: nothing before it has a gradient
        output.register_hook(lambda slope: self._seen.append((module, given[0].detach(), slope)))  # type: ignore[no-untyped-call]

    def _add_gradients(
        self, found: dict[str, list[ParameterGradient]], module: nn.Module, given: torch.Tensor, slope_BTO: torch.Tensor
    ) -> None:
        def add(parameter: Any, gradient: ParameterGradient) -> None:
            found.setdefault(self.names[parameter], []).append(gradient)

        bias = getattr(module, "bias", None)
        if isinstance(module, nn.Embedding):
            add(module.weight, TokenGradient(given, slope_BTO))
        elif isinstance(module, nn.Linear):
            add(module.weight, MatrixGradient(given, slope_BTO))
        else:
            add(module.weight, DenseGradient((slope_BTO * _normalised(module, given)).sum(1, keepdim=True)))
        if bias is not None:
            add(bias, DenseGradient(slope_BTO.sum(1, keepdim=True)))

    @torch.enable_grad()
    def _one_by_one(self, input_ids_BT: torch.Tensor) -> Mapping[str, ParameterGradient]:
        found: dict[str, list[torch.Tensor]] = {name: [] for name in self.names.values()}
        for row_T in input_ids_BT:
            logits_TV = self.model(input_ids=row_T[None]).logits[0, :-1]
            wide = logits_TV.dtype if logits_TV.dtype == torch.float64 else torch.float32
            loss = F.cross_entropy(logits_TV.to(wide), row_T[1:])
            for name, gradient in zip(found, torch.autograd.grad(loss, list(self.names), materialize_grads=True), strict=True):
                found[name].append(as_matrix(gradient))
        return {name: DenseGradient(torch.stack(gradients)) for name, gradients in found.items()}


def _loss_slope(logits_BTV: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    """Gradient, in its logits, of each sequence's summed loss: softmax - one-hot."""
    wide = logits_BTV.dtype if logits_BTV.dtype == torch.float64 else torch.float32
    slope_BTV = torch.softmax(logits_BTV.to(wide), -1)
    slope_BTV.scatter_add_(2, targets_BT[:, :, None], slope_BTV.new_full((1, 1, 1), -1.0).expand(*targets_BT.shape, 1))
    return slope_BTV.to(logits_BTV.dtype)


def _is_known(module: nn.Module, tokens: nn.Module) -> bool:
    if isinstance(module, nn.Embedding):  # others, of positions, are looked up once for all sequences
        return module is tokens and module.padding_idx is None
    return isinstance(module, nn.Linear | nn.LayerNorm | nn.RMSNorm) or type(module).__name__ == "LlamaRMSNorm"


def _normalised(module: nn.Module, given_BTD: torch.Tensor) -> torch.Tensor:
    """What the norm multiplies by its weight: its output under a weight of ones."""
    neutral = {name: torch.ones_like(value) if name == "weight" else torch.zeros_like(value) for name, value in module.named_parameters()}
    hidden_BTD: torch.Tensor = torch.func.functional_call(module, neutral, (given_BTD,))
    return hidden_BTD
