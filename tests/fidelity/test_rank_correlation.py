"""Spearman and the area under the curve with ties against numbers worked out by hand, and its standard error against theory."""

import numpy as np
import pytest

from bliss_ops.rank_correlation import area_under_curve, midranks, spearman, spearman_standard_error


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    assert midranks(np.array([10.0, 20.0, 20.0, 5.0, 20.0])).tolist() == [2.0, 4.0, 4.0, 1.0, 4.0]


def test_spearman_with_ties_by_hand() -> None:
    # ranks 1, 2.5, 2.5, 4 and 1, 3, 2, 4: sum of products of deviations 4.5, of squares 4.5 and 5
    assert spearman(np.array([1, 2, 2, 3]), np.array([1, 3, 2, 4])) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    # ranks 2, 2, 2, 4 and 1.5, 1.5, 3.5, 3.5
    assert spearman(np.array([0, 0, 0, 1]), np.array([7, 7, 8, 8])) == pytest.approx(1 / 3**0.5)


def test_ties_do_not_correlate_with_the_order_of_appearance() -> None:
    tied, rising = np.zeros(1000), np.arange(1000.0)
    tied[::2] = 1
    assert abs(spearman(tied, rising)) < 0.01
    assert spearman(np.ones(5), rising[:5]) == 0.0


def test_area_under_curve_counts_ties_half() -> None:
    assert area_under_curve(np.array([1.0, 3.0]), np.array([1.0, 2.0])) == pytest.approx((0.5 + 0 + 1 + 1) / 4)
    assert area_under_curve(np.array([1.0, 3.0]), np.array([1.0, 2.0]), np.array([3.0, 1.0])) == pytest.approx((3 * 0.25 + 1) / 4)


def test_monotone_maps_change_nothing() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 200))
    assert spearman(np.exp(x), y**3) == pytest.approx(spearman(x, y))
    assert spearman(x, x) == pytest.approx(1.0)
    assert spearman(x, -x) == pytest.approx(-1.0)


def test_the_standard_error_is_seeded_and_about_that_of_independent_pairs() -> None:
    x, y = np.random.default_rng(1).normal(size=(2, 256))
    error = spearman_standard_error(x, y, seed=3)
    assert error == spearman_standard_error(x, y, seed=3)
    assert error == pytest.approx(1 / 255**0.5, rel=0.2)
