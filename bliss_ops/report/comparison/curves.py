"""Loss by tokens, and how many tokens (or FLOPs) a method needs to reach what the baseline ends with.

Only like is held against like. A model in the middle of its schedule has a higher loss than the same model after a decay of its learning
rate, so the curve that is read off has either only points of the stable schedule (the baseline's last one is the target), or, where every
run has decay branches at several points, only decayed models. Between two points the loss is taken as a straight line; the first crossing
counts. Tokens are all that the target was trained on, its warm-up included.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from bliss_ops import costs
from bliss_ops.lake import Run
from bliss_ops.manifest import find_manifest
from bliss_ops.models.flops import model_flops
from bliss_ops.report.comparison.rows import evaluation_rows
from bliss_ops.report.curves import read_rows

Point = tuple[float, float]  # tokens, loss
ENOUGH_DECAYED = 3  # fewer decayed models are no curve


@dataclass(frozen=True)
class Curve:
    """The held-out loss of one run's target, by the tokens it was trained on."""

    stable: list[Point] = field(default_factory=list)  # in the stable part of the schedule, round after round
    decayed: list[Point] = field(default_factory=list)  # after a decay branch


@dataclass(frozen=True)
class Crossing:
    """Where a curve reaches a loss."""

    num_tokens: float | None  # None: it does not
    is_first_point: bool  # it was measured no earlier: the number of tokens is an upper bound
    best: float  # the lowest loss of the curve
    last_tokens: float


@dataclass(frozen=True)
class SpeedUp:
    """One run against the baseline's run of its seed."""

    method: str
    seed: int
    target: float  # the baseline's last loss
    baseline_tokens: float
    crossing: Crossing
    baseline_flops: float | None = None  # training up to there and choosing the data
    flops: float | None = None

    @property
    def by_tokens(self) -> float | None:
        """The baseline's tokens divided by the method's, as the paper counts; training alone."""
        return self.baseline_tokens / self.crossing.num_tokens if self.crossing.num_tokens else None

    @property
    def by_flops(self) -> float | None:
        """The same of FLOPs, with those of choosing the data on both sides."""
        return self.baseline_flops / self.flops if self.flops and self.baseline_flops else None


def read_curve(run: Run, last_round: int) -> Curve:
    """The points of every round that is finished."""
    config, settings = run.config, run.config.pretraining
    tokens_per_step = settings.batch_sequences * config.ingest.sequence_length
    curve = Curve()
    for number in range(1, last_round + 1):
        here = run.round(number)
        last_step = config.target.warmup_steps + number * settings.num_steps
        if find_manifest(here / "pretrain"):
            for row in read_rows(here / "pretrain" / "metrics.jsonl"):
                if "validation_loss" in row and "branch" not in row and row["step"] <= last_step:
                    curve.stable.append((row["step"] * tokens_per_step, row["validation_loss"]))
        if find_manifest(here / "evaluation"):
            after_decay = (last_step + settings.decay_steps) * tokens_per_step  # of results that do not say
            rows = [row for row in evaluation_rows(here / "evaluation") if (row.task, row.metric) == ("validation", "loss")]
            curve.decayed.extend(sorted((row.num_tokens or after_decay, row.value) for row in rows))
    return curve


def comparable(curves: Sequence[Curve]) -> str:
    """`decayed` where every run has enough decayed models, else `stable`."""
    return "decayed" if curves and all(len(curve.decayed) >= ENOUGH_DECAYED for curve in curves) else "stable"


def crossing(points: Sequence[Point], target: float) -> Crossing:
    """The first place where the line through the points is at `target` or below."""
    best, last = min(loss for _, loss in points), points[-1][0]
    before: Point | None = None
    for tokens, loss in points:
        if loss <= target:
            if before is None:
                return Crossing(tokens, True, best, last)
            share = (before[1] - target) / (before[1] - loss)
            return Crossing(before[0] + share * (tokens - before[0]), False, best, last)
        before = (tokens, loss)
    return Crossing(None, False, best, last)


def speed_up(
    method: str,
    seed: int,
    points: Sequence[Point],
    baseline: Sequence[Point],
    runs: tuple[Run, Run] | None = None,
    *,
    are_decayed: bool = False,
) -> SpeedUp | None:
    """One run against the baseline's, from their comparable points; None where one of them has none.

    Args:
        method: of the run.
        seed: of both.
        points: the run's.
        baseline: the baseline's.
        runs: the run and the baseline's, where FLOPs are to be counted.
        are_decayed: whether the points are models after a decay branch.
    """
    if not points or not baseline:
        return None
    baseline_tokens, target = baseline[-1]
    found = crossing(points, target)
    if runs is None or found.num_tokens is None:
        return SpeedUp(method, seed, target, baseline_tokens, found)
    run, other = runs
    return SpeedUp(
        method,
        seed,
        target,
        baseline_tokens,
        found,
        flops_until(other, baseline_tokens, are_decayed),
        flops_until(run, found.num_tokens, are_decayed),
    )


def flops_until(run: Run, num_tokens: float, is_decayed: bool = False) -> float | None:
    """Training on so many tokens, and choosing them: the selection of every round that was begun by then; None where it is not known."""
    config, settings = run.config, run.config.pretraining
    steps = num_tokens / (settings.batch_sequences * config.ingest.sequence_length) - config.target.warmup_steps
    steps -= settings.decay_steps if is_decayed else 0  # the branch itself belongs to the round it leaves from
    rounds = max(1, math.ceil(steps / settings.num_steps - 1e-9))
    tokenizer = find_manifest(run.corpus.tokenizer)
    if tokenizer is None:
        return None
    target = model_flops(
        config.target.definition, vocab_size=int(tokenizer.metrics["vocab_size"]), sequence_length=config.ingest.sequence_length
    )
    selection = sum(costs.selection_cost(run, number).flops for number in range(1, min(rounds, config.num_rounds) + 1))
    return selection + num_tokens * target.training
