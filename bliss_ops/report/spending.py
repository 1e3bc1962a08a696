"""What a round cost, stage by stage: planned and done model FLOPs, time, memory; and what choosing the data is of all that."""

from dataclasses import dataclass, field

from bliss_ops import costs, rounds
from bliss_ops.lake import Run
from bliss_ops.manifest import find_manifest

NOTHING = "\N{EN DASH}"


@dataclass(frozen=True)
class StageSpending:
    """One stage: what its settings said it would do, what it did, and what that took."""

    name: str
    num_tokens: int | None
    planned_flops: float
    flops: float
    seconds: float | None
    peak_memory_bytes: int | None
    peak_gpu_memory_bytes: int | None


@dataclass(frozen=True)
class Spending:
    """A round's stages; `reason` says why nothing can be said."""

    reason: str = ""
    stages: list[StageSpending] = field(default_factory=list)
    devices: list[str] = field(default_factory=list)
    selection_flops: float = 0.0
    selection_seconds: float | None = None
    flops: float = 0.0
    seconds: float | None = None
    num_epochs: float = 0.0

    @property
    def selection_share(self) -> float:
        return self.selection_flops / self.flops if self.flops else 0.0


def read(run: Run, round_number: int) -> Spending:
    """What the finished stages of the round wrote down about themselves, beside the plan of their settings."""
    for what, directory in (("validation set", run.corpus.validation), ("tokenizer", run.corpus.tokenizer)):
        if find_manifest(directory) is None:
            return Spending(f"the corpus's {what} is not in the lake, so its work cannot be counted")
    sizes = costs.sizes_of(run, round_number)
    done = costs.recorded_work(run, round_number)
    taken = costs.stage_costs(run, round_number, done)
    planned = costs.round_work(run.config, sizes, round_number)
    stages = [
        StageSpending(
            name, done[name].num_tokens, planned[name].flops, cost.flops, cost.seconds, cost.peak_memory_bytes, cost.peak_gpu_memory_bytes
        )
        for name, cost in taken.items()
        if name in planned
    ]
    selection = costs.selection_cost(run, round_number)
    seconds = [stage.seconds for stage in stages if stage.seconds is not None]
    return Spending(
        stages=stages,
        devices=sorted({cost.device for cost in taken.values() if cost.device}),
        selection_flops=selection.flops,
        selection_seconds=selection.seconds,
        flops=sum(stage.flops for stage in stages),
        seconds=sum(seconds) if len(seconds) == len(stages) else None,
        num_epochs=rounds.num_epochs(run.config, sizes.num_selected) if sizes.num_selected else 0.0,
    )


def duration(seconds: float | None) -> str:
    """`1 h 12 min`, `3.4 min`, `12 s`, `0.4 s`; a dash where it is not known."""
    if seconds is None:
        return NOTHING
    if seconds >= 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60)} min"
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"


def magnitude(value: float | None) -> str:
    """`1.23 x 10¹⁵` from a thousand million on, `12,345` below; a dash for nothing."""
    if not value:
        return NOTHING
    if value < 1e9:
        return f"{value:,.0f}"
    digits, _, power = f"{value:.2e}".partition("e+")
    return f"{digits} \N{MULTIPLICATION SIGN} 10" + power.lstrip("0").translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def memory(num_bytes: int | None) -> str:
    """`1.2 GB`, `340 MB`; a dash where it is not known."""
    if not num_bytes:
        return NOTHING
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"
