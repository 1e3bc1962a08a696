"""How fast stages are: as finished ones of the lake were measured, or as given.

A stage that runs a model is measured in model FLOP/s, another in tokens/s; a fit that has neither takes as long as fits of its method
took. Only what one kind of device did counts: of the devices in the lake the one asked for, else the one that worked longest.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from bliss_ops import costs
from bliss_ops.costs import StageWork
from bliss_ops.lake import Lake
from bliss_ops.manifest import find_manifest

OF_A_METHOD = ("fit", "score")  # stages whose speed depends on the method


@dataclass(frozen=True)
class Measured:
    """Finished work of one stage on one kind of device."""

    stage: str
    method: str
    device: str
    flops: float
    num_tokens: int
    device_seconds: float


@dataclass(frozen=True)
class Speeds:
    """What to divide work by."""

    measured: list[Measured] = field(default_factory=list)
    flops_per_second: float | None = None  # given: counts more than what was measured
    described: str = "no rate is known"

    def device_seconds(self, stage: str, method: str, work: StageWork) -> float | None:
        """How long one device takes for the work; None where no rate is known."""
        if work.flops and self.flops_per_second:
            return work.flops / self.flops_per_second
        alike = [one for one in self.measured if one.stage == stage and bool(one.flops) == bool(work.flops)]
        of_method = [one for one in alike if one.method == method]
        if stage in OF_A_METHOD and (of_method or not work.flops):
            alike = of_method  # a model's FLOP/s may be another method's, tokens/s may not
        if work.flops:
            return _divided(work.flops, sum(one.flops for one in alike), alike)
        if work.num_tokens:
            return _divided(work.num_tokens, sum(one.num_tokens for one in alike), alike)
        if stage == "fit" and alike:
            return sum(one.device_seconds for one in alike) / len(alike)
        return 0.0 if work.num_tokens == 0 else None


def _divided(work: float, done: float, by: Iterable[Measured]) -> float | None:
    seconds = sum(one.device_seconds for one in by)
    return work * seconds / done if done and seconds else None


def measured_speeds(lake: Lake, device: str | None = None, *, without: str | None = None) -> Speeds:
    """The rates of all finished stages in the lake.

    Args:
        lake: with finished runs and corpora.
        device: what the device's name has in it, such as `H200` or `cpu`; None takes the one that worked longest.
        without: a run that is left out, to predict it from the others.
    """
    found = [*_of_corpora(lake), *(one for name in lake.run_names() if name != without for one in _of_run(lake, name))]
    if device is None:
        seconds: dict[str, float] = defaultdict(float)
        for one in found:
            seconds[one.device] += one.device_seconds
        chosen = {max(seconds, key=lambda name: (seconds[name], name))} if seconds else set()
    else:
        chosen = {one.device for one in found if device.lower() in one.device.lower()}
    used = [one for one in found if one.device in chosen]
    if not used:
        return Speeds([], None, "no rate is known: no finished stage of the lake was measured" + (f" on {device}" if device else ""))
    return Speeds(used, None, f"measured on {len(used)} finished stages in the lake, {', '.join(sorted(chosen))}")


def given_speed(device: str, utilisation: float) -> float:
    """Model FLOP/s of a GPU at a model FLOPs utilisation.

    Raises:
        ValueError: the GPU's peak is not known.
    """
    from bliss_ops.training.device import PEAK_TERAFLOPS

    words = set(device.upper().replace("-", " ").split())
    for name, peak in PEAK_TERAFLOPS:
        if set(name.upper().split()) <= words:
            return utilisation * peak * 1e12
    known = ", ".join(name for name, _ in PEAK_TERAFLOPS)
    raise ValueError(f"the peak of device {device!r} is not known: known are {known}; or give --flops-per-second")


def _of_run(lake: Lake, name: str) -> list[Measured]:
    run = lake.run(name)
    found = []
    for number in range(1, run.config.num_rounds + 1):
        if find_manifest(run.round(number) / "scores") is None:
            continue
        work = costs.recorded_work(run, number)
        for stage, cost in costs.stage_costs(run, number, work).items():
            if cost.device_seconds:
                num_tokens = work[stage].num_tokens or 0
                found.append(Measured(stage, run.config.method, cost.device, cost.flops, num_tokens, cost.device_seconds))
    return found


def _of_corpora(lake: Lake) -> list[Measured]:
    found = []
    for name in lake.corpus_names():
        corpus = lake.corpus(name)
        packed = find_manifest(corpus.sequences)
        if packed is None:
            continue
        for stage, manifest in (("extract", find_manifest(corpus.documents)), ("pack", packed)):
            if manifest and manifest.cost:
                cost = manifest.cost
                found.append(Measured(stage, "", cost.device, 0.0, int(packed.metrics["num_tokens"]), cost.device_seconds))
    return found
