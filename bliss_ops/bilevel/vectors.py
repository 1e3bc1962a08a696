"""Vectors in parameter space: lists with one tensor per parameter, and the few operations on them, each one fused call."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

Tensors = Sequence[torch.Tensor]


def inner_product(a: Tensors, b: Tensors) -> torch.Tensor:
    """<a, b> over all tensors together; differentiable."""
    return torch.stack([torch.dot(x.flatten(), y.flatten()) for x, y in zip(a, b, strict=True)]).sum()


def norm(vector: Tensors) -> float:
    """Euclidean norm over all tensors together."""
    return float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(vector)))))  # noqa: SLF001  # torch's own spelling


def cosine(a: Tensors, b: Tensors) -> float:
    """Cosine between two vectors; 0 when either is zero."""
    size = norm(a) * norm(b)
    return float(inner_product(a, b)) / size if size > 0 else 0.0


def combination(a: Tensors, factor: float, b: Tensors) -> list[torch.Tensor]:
    """a + factor * b."""
    return list(torch._foreach_add(list(a), list(b), alpha=factor))  # noqa: SLF001


def scaled(a: Tensors, factor: float) -> list[torch.Tensor]:
    """factor * a."""
    return list(torch._foreach_mul(list(a), factor))  # noqa: SLF001


def accumulated(total: list[torch.Tensor], part: Tensors) -> list[torch.Tensor]:
    """total + part in place of total; an empty total becomes `part` itself, which saves a pass over memory for a single part."""
    if not total:
        return [tensor.detach() for tensor in part]
    torch._foreach_add_(total, list(part))
    return total


def zeros_like(vector: Tensors) -> list[torch.Tensor]:
    return [torch.zeros_like(tensor) for tensor in vector]


@contextmanager
def shifting(parameters: Tensors, direction: Tensors) -> Iterator[Callable[[float], None]]:
    """A function that puts the parameters at theta + step * direction; afterwards they are back bit for bit.

    The parameters look at other memory meanwhile, so theta itself is neither copied nor written.
    """
    own = [parameter.data for parameter in parameters]
    shifted = [torch.empty_like(values) for values in own]

    def shift(step: float) -> None:
        for parameter, start, along, there in zip(parameters, own, direction, shifted, strict=True):
            parameter.data = torch.add(start, along, alpha=step, out=there)

    try:
        yield shift
    finally:
        for parameter, values in zip(parameters, own, strict=True):
            parameter.data = values
