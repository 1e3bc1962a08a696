"""Means over seeds with their errors, differences from the baseline seed by seed, and what may be said of them.

Runs of one seed share their initial weights and the order of their data, so their difference has much less noise than the two losses;
its standard error is that of the mean over seeds. With few seeds two standard errors hold the truth less often than one thinks: how
often is Student's t distribution's answer, and it is said on the page.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Key = tuple[str, int]  # corpus and seed: what makes two runs a pair
NUM_ERRORS = 2.0  # standard errors within which a difference is not told from none


@dataclass(frozen=True)
class Mean:
    """A mean over seeds; its standard error is None where there is one value."""

    value: float
    standard_error: float | None
    count: int


@dataclass(frozen=True)
class MethodLoss:
    """The held-out loss of one method over its seeds, and its difference from the baseline's runs of the same seeds."""

    method: str
    seeds: list[int]
    mean: float
    standard_error: float | None  # None with one seed
    difference: float | None
    difference_error: float | None
    num_pairs: int
    verdict: str
    differences: dict[int, float]  # by seed


def losses_by_method(losses: Mapping[tuple[str, Key], float], baseline: str) -> list[MethodLoss]:
    """Methods by mean loss, best first; without runs of the baseline there are no differences.

    Args:
        losses: of (method, (corpus, seed)).
        baseline: the method that the others are held against.
    """
    found = []
    for method in dict.fromkeys(method for method, _ in losses):
        mine = {key: loss for (other, key), loss in losses.items() if other == method}
        pairs = {key: loss - losses[baseline, key] for key, loss in mine.items() if (baseline, key) in losses and method != baseline}
        mean = mean_of(list(mine.values()))
        assert mean is not None
        difference = mean_of(list(pairs.values()))
        found.append(
            MethodLoss(
                method,
                [seed for _, seed in mine],
                mean.value,
                mean.standard_error,
                difference.value if difference else None,
                difference.standard_error if difference else None,
                len(pairs),
                "" if method == baseline else verdict(difference, baseline),
                {seed: value for (_, seed), value in pairs.items()},
            )
        )
    return sorted(found, key=lambda one: (one.mean, one.method))


def against(losses: Mapping[tuple[str, Key], float], method: str, other: str) -> tuple[Mean, str] | None:
    """One method's difference from another, over the pairs that both have, and what it says; None without a pair."""
    pairs = [loss - losses[other, key] for (name, key), loss in losses.items() if name == method and (other, key) in losses]
    difference = mean_of(pairs)
    return None if difference is None else (difference, verdict(difference, other))


def mean_of(values: Sequence[float]) -> Mean | None:
    """Mean and its standard error; None of nothing."""
    if not values:
        return None
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
    return Mean(float(np.mean(values)), error, len(values))


def verdict(difference: Mean | None, baseline: str, *, lower_is_better: bool = True, least_error: float = 0.0) -> str:
    """What a difference from the baseline says, in words.

    Args:
        difference: over pairs of runs of one seed.
        baseline: the method that is subtracted.
        lower_is_better: as of a loss; not of an accuracy.
        least_error: another standard error that counts where it is larger, such as that over questions.
    """
    if difference is None:
        return f"no run of {baseline} with the same seed"
    if difference.standard_error is None:
        return "one seed: cannot be told from chance"
    error = max(difference.standard_error, least_error)
    if abs(difference.value) <= NUM_ERRORS * error:
        return f"not distinguishable from {baseline}"
    return f"{'better' if (difference.value < 0) == lower_is_better else 'worse'} than {baseline}"


def coverage(num_values: int, num_errors: float = NUM_ERRORS) -> float | None:
    """How often `num_errors` standard errors around a mean of that many normal values hold the true mean: P(|t| < num_errors).

    Student's t with n - 1 degrees of freedom in closed form (Abramowitz and Stegun 26.7.3 and 26.7.4); None for one value.
    """
    degrees = num_values - 1
    if degrees < 1:
        return None
    angle = math.atan(num_errors / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    term = cosine if degrees % 2 else 1.0
    series = 0.0
    for k in range(1, degrees // 2 + 1):  # term k has cosine to the power 2k - 1 (odd degrees) or 2k - 2 (even)
        series += term
        term *= cosine**2 * ((2 * k) / (2 * k + 1) if degrees % 2 else (2 * k - 1) / (2 * k))
    return 2 / math.pi * (angle + sine * series) if degrees % 2 else sine * series
