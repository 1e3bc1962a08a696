"""Random projections: the same signs everywhere, linear in pieces, and as wrong as Johnson and Lindenstrauss say."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from bliss_ops.models.projection import CountSketch, Projection, Rademacher, hashed
from bliss_ops.selectors.random import splitmix64

CPU = torch.device("cpu")
NUMBERS = 3000


def projections(seed: int = 0, size: int = 240) -> dict[str, Projection]:
    return {
        "sparse": CountSketch(NUMBERS, size, seed=seed, device=CPU),
        "sparse, 3 entries": CountSketch(NUMBERS, size, seed=seed, device=CPU, entries=3),
        "rademacher": Rademacher(size, seed=seed),
    }


def projected(projection: Projection, vectors_BP: torch.Tensor, cuts: tuple[int, ...] = ()) -> torch.Tensor:
    sums_BK = vectors_BP.new_zeros(len(vectors_BP), projection.size)
    edges = [0, *cuts, vectors_BP.shape[1]]
    for begin, end in pairwise(edges):
        projection.add(sums_BK, begin, vectors_BP[:, begin:end])
    return sums_BK


def heavy_tailed(count: int, seed: int = 0) -> torch.Tensor:
    """As gradients are: a few numbers hold much of the norm."""
    return torch.randn(count, NUMBERS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 3


def test_the_hash_is_splitmix64() -> None:
    numbers = np.array([0, 1, 2, 12345, 2**62 + 7], dtype=np.int64)
    salt = splitmix64(np.array([(5 << 8) + 3], dtype=np.uint64))
    expected = splitmix64(numbers.astype(np.uint64) ^ salt)
    assert (hashed(torch.from_numpy(numbers), 5, 3).numpy().view(np.uint64) == expected).all()


@pytest.mark.parametrize("name", projections())
def test_a_projection_does_not_know_how_a_vector_is_cut(name: str) -> None:
    vectors = heavy_tailed(4)
    at_once = projected(projections()[name], vectors)
    in_pieces = projected(projections()[name], vectors, cuts=(1, 64, 65, 1000, 2999))
    torch.testing.assert_close(in_pieces, at_once, rtol=1e-12, atol=1e-12)
    other_seed = projected(projections(seed=1)[name], vectors)
    assert not torch.allclose(other_seed, at_once, rtol=0.5)


@pytest.mark.parametrize("name", projections())
def test_a_projection_is_a_matrix_of_equal_signs(name: str) -> None:
    """Every number counts with its full square: columns of the matrix have length 1, and entries of one size."""
    matrix = projected(projections()[name], torch.eye(NUMBERS, dtype=torch.float64))
    torch.testing.assert_close(matrix.square().sum(1), torch.ones(NUMBERS, dtype=torch.float64))
    sizes = matrix.abs()[matrix != 0]
    torch.testing.assert_close(sizes, sizes[0].expand_as(sizes))
    num_entries = {"sparse": 1, "sparse, 3 entries": 3, "rademacher": 240}[name]
    assert ((matrix != 0).sum(1) == num_entries).all()
    num_signs = NUMBERS * num_entries
    assert abs(float(matrix.sign().sum())) < 4 * num_signs**0.5


@pytest.mark.parametrize("name", ["sparse", "sparse, 3 entries"])
def test_rows_land_where_the_whole_vector_would_put_them(name: str) -> None:
    """A table from coordinate 100 on, of rows of 50 numbers, which cross the runs of 240 and 80."""
    row_BT = torch.tensor([[0, 57, 30], [7, 4, 12]])
    values_BTD = torch.randn(2, 3, 50, dtype=torch.float64)
    dense = torch.zeros(2, NUMBERS // 50, 50, dtype=torch.float64)
    for vector in range(2):
        dense[vector, 2 + row_BT[vector]] = values_BTD[vector]
    projection = projections()[name]
    sums_BK = torch.zeros(2, 240, dtype=torch.float64)
    projection.add_rows(sums_BK, 100, row_BT, values_BTD)
    torch.testing.assert_close(sums_BK, projected(projection, dense.flatten(1)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", projections())
def test_inner_products_survive_within_the_johnson_lindenstrauss_error(name: str) -> None:
    """Unbiased over 200 seeds, with a standard deviation of about sqrt((|x|^2 |y|^2 + <x, y>^2) / K)."""
    x, y = heavy_tailed(2)
    y = 0.6 * x / x.norm() + 0.8 * y / y.norm()
    x = x / x.norm()
    pairs = (projected(projections(seed=seed)[name], torch.stack([x, y])) for seed in range(200))
    estimates = torch.stack([pair[0] @ pair[1] for pair in pairs])
    exact = float(x @ y)
    bound = float(((y @ y + exact**2) / 240) ** 0.5)
    assert abs(float(estimates.mean()) - exact) < 4 * bound / 200**0.5
    assert 0.8 * bound < float(estimates.std()) < 1.1 * bound
