"""A method in one row: loss, difference, speed-up and cost over its seeds; and the sentences that keep a reader from reading too much."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bliss_ops.report.comparison.costs import MethodCost
from bliss_ops.report.comparison.curves import SpeedUp
from bliss_ops.report.comparison.losses import NUM_ERRORS, Mean, MethodLoss, coverage, mean_of


@dataclass(frozen=True)
class MethodRow:
    """What is said of one method; a speed-up is words, because it may not exist."""

    method: str
    loss: MethodLoss
    difference: Mean | None
    speed_ups: list[SpeedUp]  # by seed
    cost: MethodCost | None
    is_baseline: bool

    @property
    def by_tokens(self) -> str:
        return "1" if self.is_baseline else ratio([one.by_tokens for one in self.speed_ups], self._bound)

    @property
    def by_flops(self) -> str:
        if self.is_baseline:
            return "1"
        reached = [one for one in self.speed_ups if one.crossing.num_tokens is not None]
        if any(one.by_flops is None for one in reached):
            return "\N{EN DASH}"  # nothing to count from
        return ratio([one.by_flops for one in self.speed_ups], self._bound)

    @property
    def _bound(self) -> str:
        return "at least " if any(one.crossing.is_first_point for one in self.speed_ups) else ""


def method_rows(losses: Sequence[MethodLoss], speed_ups: Sequence[SpeedUp], costs: Sequence[MethodCost], baseline: str) -> list[MethodRow]:
    """In the order of the losses."""
    of_method = {cost.method: cost for cost in costs}
    return [
        MethodRow(
            loss.method,
            loss,
            mean_of(list(loss.differences.values())),
            [one for one in speed_ups if one.method == loss.method],
            of_method.get(loss.method),
            loss.method == baseline,
        )
        for loss in losses
    ]


def ratio(values: Sequence[float | None], bound: str = "") -> str:
    """A mean speed-up with its standard error; where a seed does not reach the target there is no mean, only how many do."""
    if not values:
        return "\N{EN DASH}"
    reached = [value for value in values if value is not None]
    if not reached:
        return "not reached"
    if len(reached) < len(values):
        return f"reached by {len(reached)} of {len(values)} seeds"
    mean = mean_of(reached)
    assert mean is not None
    error = "" if mean.standard_error is None else f" \N{PLUS-MINUS SIGN} {mean.standard_error:.2f}"
    return f"{bound}{mean.value:.2f}\N{MULTIPLICATION SIGN}{error}"


def caveats(losses: Sequence[MethodLoss], baseline: str, missing: Mapping[str, str]) -> list[str]:
    """What a reader of the numbers has to know: missing runs, few seeds, many comparisons."""
    found = []
    if missing:
        found.append(f"Missing: {'; '.join(f'{name} ({state})' for name, state in missing.items())}.")
    compared = [loss for loss in losses if loss.num_pairs]
    if not any(loss.method == baseline for loss in losses):
        return [*found, f"There is no run of the baseline {baseline}: differences and speed-ups cannot be taken."]
    single = [loss.method for loss in losses if len(loss.seeds) == 1]
    if single:
        found.append(
            f"One seed only: {', '.join(single)}. One run is one observation: whether another seed would say the same is not known."
        )
    numbers = sorted({loss.num_pairs for loss in compared if loss.num_pairs > 1})
    if numbers:
        held = [(number, coverage(number) or 0.0) for number in numbers]
        shares = "; ".join(f"with {number} pairs in {100 * share:.0f} % of cases" for number, share in held)
        found.append(
            f"\N{PLUS-MINUS SIGN} is the standard error of a mean over seeds. A difference within {NUM_ERRORS:g} of its errors is called "
            f"not distinguishable. So wide an interval holds the true value (Student's t), {shares}, not in 95 %."
        )
        several = [loss for loss in compared if loss.num_pairs > 1]
        if len(several) > 1:
            by_chance = sum(1 - (coverage(loss.num_pairs) or 0.0) for loss in several)
            found.append(
                f"{len(several)} methods are held against {baseline}: if none of them differed from it, {by_chance:.1f} of these "
                "differences would be expected to lie outside by chance alone. The runs of the baseline are in every difference, so the "
                "differences are not independent of each other."
            )
    return found
