"""What choosing the data cost, method by method, beside what training on it cost: FLOPs, time, memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bliss_ops import costs
from bliss_ops.lake import Run
from bliss_ops.manifest import find_manifest
from bliss_ops.report.comparison.losses import Key


@dataclass(frozen=True)
class RunCost:
    """Selection and training of one run over its rounds; None where a stage did not measure."""

    selection_flops: float
    selection_seconds: float | None
    training_flops: float
    training_seconds: float | None
    peak_memory_bytes: int | None  # of the selection


@dataclass(frozen=True)
class MethodCost:
    """Means over the runs of a method; the peak is the largest."""

    method: str
    selection_flops: float
    selection_seconds: float | None
    training_flops: float
    training_seconds: float | None
    peak_memory_bytes: int | None

    @property
    def share(self) -> float:
        """FLOPs of choosing for each FLOP of training."""
        return self.selection_flops / self.training_flops if self.training_flops else 0.0


def run_cost(run: Run, round_number: int) -> RunCost | None:
    """Of the rounds up to this one; None where a round is not trained or the corpus does not say what is counted from."""
    rounds = range(1, round_number + 1)
    if not (find_manifest(run.corpus.tokenizer) and find_manifest(run.corpus.validation)):
        return None
    if not all(find_manifest(run.round(number) / artifact) for number in rounds for artifact in ("scores", "selection", "pretrain")):
        return None
    selection = [costs.selection_cost(run, number) for number in rounds]
    training = [costs.training_cost(run, number) for number in rounds]
    return RunCost(
        sum(one.flops for one in selection),
        _sum([one.seconds for one in selection]),
        sum(one.flops for one in training),
        _sum([one.seconds for one in training]),
        _max([one.peak_memory_bytes for one in selection]),
    )


def costs_by_method(found: Mapping[tuple[str, Key], RunCost]) -> list[MethodCost]:
    """Methods in the order given."""
    rows = []
    for method in dict.fromkeys(method for method, _ in found):
        mine = [cost for (other, _), cost in found.items() if other == method]
        rows.append(
            MethodCost(
                method,
                sum(cost.selection_flops for cost in mine) / len(mine),
                _mean([cost.selection_seconds for cost in mine]),
                sum(cost.training_flops for cost in mine) / len(mine),
                _mean([cost.training_seconds for cost in mine]),
                _max([cost.peak_memory_bytes for cost in mine]),
            )
        )
    return rows


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _mean(values: Sequence[float | None]) -> float | None:
    total = _sum(values)
    return None if total is None else total / len(values)


def _max(values: Sequence[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return max(known) if known and len(known) == len(values) else None
