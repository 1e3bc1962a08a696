"""What a comparison found, in numbers: the page and `summary.json` are two ways to write it down."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bliss_ops.report.comparison.costs import MethodCost, costs_by_method
from bliss_ops.report.comparison.curves import SpeedUp, comparable, speed_up
from bliss_ops.report.comparison.losses import Mean, MethodLoss, against, losses_by_method
from bliss_ops.report.comparison.members import Member, differing_settings, methods_of, with_the_same_sequences
from bliss_ops.report.comparison.summary import MethodRow, caveats, method_rows
from bliss_ops.report.comparison.tasks import TaskResult, pair, task_results

Settings = list[tuple[str, list[tuple[str, list[int]]]]]
SHARED = ("num_rounds", "window_shards", "target.", "pretraining.", "compute.", "selection.", "ingest.", "evaluation.")


@dataclass(frozen=True)
class Findings:
    """Fields are the names the page's template uses."""

    members: Sequence[Member]
    round_number: int
    baseline: str
    missing: Mapping[str, str]
    rows: list[MethodRow]
    second: tuple[Mean, str] | None
    kind: str
    speed_ups: list[SpeedUp]
    costs: list[MethodCost]
    tasks: list[TaskResult]
    together: list[Member]
    settings: Settings
    caveats: list[str]

    @classmethod
    def of(cls, members: Sequence[Member], round_number: int, baseline: str, missing: Mapping[str, str]) -> "Findings":
        """Everything but the pictures."""
        of_runs = {member.key: member.result.loss for member in members if member.result}
        losses = losses_by_method(of_runs, baseline)
        costs = costs_by_method({member.key: member.cost for member in members if member.cost})
        kind, speed_ups = speed_ups_of(members, baseline)
        return cls(
            members=members,
            round_number=round_number,
            baseline=baseline,
            missing=missing,
            rows=method_rows(losses, speed_ups, costs, baseline),
            second=against(of_runs, losses[0].method, losses[1].method) if len(losses) > 1 else None,
            kind=kind,
            speed_ups=speed_ups,
            costs=costs,
            tasks=_tasks(members, round_number, baseline),
            together=with_the_same_sequences(members),
            settings=differing_settings(members),
            caveats=caveats(losses, baseline, missing),
        )

    @property
    def unfair(self) -> Settings:
        """Settings that a fair comparison shares, and these runs do not."""
        return [(name, values) for name, values in self.settings if name.startswith(SHARED)]

    def summary(self, overlap_of_methods: Sequence[Sequence[float | None]]) -> dict[str, Any]:
        """What `summary.json` holds."""
        return {
            "round": self.round_number,
            "baseline": self.baseline,
            "runs": [member.run.name for member in self.members],
            "missing": dict(self.missing),
            "validation_losses": {member.run.name: member.result.loss for member in self.members if member.result},
            "methods": [_plain_loss(row.loss) for row in self.rows],
            "speed_up": {"points": self.kind, "runs": [_plain_speed_up(one) for one in self.speed_ups]},
            "costs": [vars(cost) for cost in self.costs],
            "tasks": [_plain_task(result) for result in self.tasks],
            "overlap": {"methods": methods_of(self.together), "jaccard": overlap_of_methods},
            "differing_settings": {name: dict(values) for name, values in self.settings},
            "caveats": self.caveats,
        }


def speed_ups_of(members: Sequence[Member], baseline: str) -> tuple[str, list[SpeedUp]]:
    """Which points are comparable, and every run against the baseline's run of its seed."""
    measured = {member.key: member for member in members if member.curve.stable or member.curve.decayed}
    kind = comparable([member.curve for member in measured.values()])
    found = []
    for (method, key), member in measured.items():
        other = measured.get((baseline, key))
        if other is None or method == baseline:
            continue
        runs = (member.run, other.run) if member.cost and other.cost else None
        one = speed_up(method, key[1], getattr(member.curve, kind), getattr(other.curve, kind), runs, are_decayed=kind == "decayed")
        found += [one] if one else []
    return kind, found


def _tasks(members: Sequence[Member], round_number: int, baseline: str) -> list[TaskResult]:
    of_baseline = {member.key[1]: member.run for member in members if member.config.method == baseline}
    pairs = {
        member.key: pair(member.run, of_baseline[member.key[1]], round_number)
        for member in members
        if member.config.method != baseline and member.key[1] in of_baseline
    }
    return task_results({member.key: member.tasks for member in members if member.tasks}, pairs, baseline)


def _plain_loss(loss: MethodLoss) -> dict[str, Any]:
    return vars(loss) | {"differences": {str(seed): value for seed, value in loss.differences.items()}}


def _plain_speed_up(one: SpeedUp) -> dict[str, Any]:
    return vars(one) | {"crossing": vars(one.crossing), "by_tokens": one.by_tokens, "by_flops": one.by_flops}


def _plain_task(result: TaskResult) -> dict[str, Any]:
    return vars(result) | {"value": vars(result.value), "difference": vars(result.difference) if result.difference else None}
