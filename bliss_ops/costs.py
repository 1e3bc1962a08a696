"""What selecting and training cost: model FLOPs counted from settings and sizes, time and memory as the stages' manifests have them.

`round_work` counts what the stages of a round have to do, before anything runs; `recorded_work` counts what they did, from what they
wrote down. Stages that run no model (select, materialize) have tokens and no FLOPs. What every stage took is beside it (metering.py):
device seconds are what a GPU-hour is made of.

Selection is everything that is done to choose the data: the proxy's warm-up (once per run, counted to round 1), fit, score, select.
Training is the pretraining of the target; its own warm-up, the fidelity measurement and the evaluation belong to neither.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from bliss_ops import selectors
from bliss_ops.config import ModelConfig, RunConfig
from bliss_ops.fidelity import num_positions_read
from bliss_ops.lake import Run
from bliss_ops.manifest import Manifest, find_manifest, read_manifest
from bliss_ops.models.flops import ModelFlops, model_flops
from bliss_ops.sharding import Cost

WARM_UP_PROXY, WARM_UP_TARGET = "warm_up proxy", "warm_up target"  # two jobs of one stage
SELECTION = (WARM_UP_PROXY, "fit", "score", "select")
TRAINING = ("pretrain",)


@dataclass(frozen=True)
class Sizes:
    """What a round's work depends on beside the settings."""

    vocab_size: int
    num_candidates: int  # sequences of the candidate window
    num_selected: int
    num_guide_rows: int
    num_guide_tokens: int
    num_holdout_tokens: int


@dataclass(frozen=True)
class StageWork:
    """What one stage does: sequences and tokens that go through it, and model FLOPs."""

    num_sequences: int | None = None  # None where the settings do not tell
    num_tokens: int | None = None
    flops: float = 0.0


@dataclass(frozen=True)
class StageCost:
    """Work of one stage and what it took; None where the manifest is of a version that did not measure."""

    flops: float
    seconds: float | None
    device_seconds: float | None
    peak_memory_bytes: int | None
    peak_gpu_memory_bytes: int | None
    device: str


@dataclass(frozen=True)
class SelectionCost:
    """Several stages together: seconds added up, the largest of the peaks; None where one of them did not measure."""

    flops: float
    seconds: float | None
    device_seconds: float | None
    peak_memory_bytes: int | None
    by_stage: dict[str, StageCost] = field(default_factory=dict)


def round_work(config: RunConfig, sizes: Sizes, round_number: int) -> dict[str, StageWork]:
    """What every stage of a round has to do, by its settings; the warm-up belongs to round 1."""
    settings, length = config.pretraining, config.ingest.sequence_length
    proxy, target = (_per_token(model, config, sizes.vocab_size) for model in (config.proxy, config.target))
    has_proxy = selectors.uses_proxy(config.method)
    flops = selectors.load(config.method).flops(
        config,
        vocab_size=sizes.vocab_size,
        num_sequences=sizes.num_candidates,
        validation_row_tokens=sizes.num_guide_tokens / sizes.num_guide_rows if sizes.num_guide_rows else None,
    )
    num_read = num_positions_read(config, sizes.num_candidates)
    work: dict[str, StageWork] = {}
    if round_number == 1:
        if has_proxy:
            work[WARM_UP_PROXY] = _training(config.proxy.warmup_steps * settings.batch_sequences, length, proxy)
        work[WARM_UP_TARGET] = _training(config.target.warmup_steps * settings.batch_sequences, length, target)
    work["fit"] = StageWork(num_read, None if num_read is None else num_read * length, flops.fit)
    work["score"] = StageWork(sizes.num_candidates, sizes.num_candidates * length, flops.score)
    work["fidelity"] = _fidelity(config, sizes, round_number)
    work["select"] = StageWork(sizes.num_candidates, sizes.num_candidates * length)
    work["materialize"] = StageWork(sizes.num_selected, sizes.num_selected * length)
    num_validation_tokens = num_validation_points(config) * sizes.num_holdout_tokens
    work["pretrain"] = _training(num_training_steps(config) * settings.batch_sequences, length, target, num_validation_tokens)
    work["evaluate"] = _evaluating(num_models(config), sizes, target)
    return work


def num_training_steps(config: RunConfig) -> int:
    """Optimizer steps of a round's pretraining, its decay branches included."""
    return config.pretraining.num_steps + num_models(config) * config.pretraining.decay_steps


def num_models(config: RunConfig) -> int:
    """Models that a round's pretraining leaves and the evaluation measures: one per decay branch."""
    return 1 + len(config.pretraining.decay_at_steps)


def num_validation_points(config: RunConfig) -> int:
    """How often a round's pretraining takes the validation loss: every so many steps, and at the end of the main and every other branch."""
    settings = config.pretraining
    branches = [(0, settings.num_steps)]
    if settings.decay_steps:
        branches += [(step, step + settings.decay_steps) for step in (*settings.decay_at_steps, settings.num_steps)]
    every = settings.evaluate_every_steps
    return sum(end // every - begin // every + (end % every > 0) for begin, end in branches)


def sizes_of(run: Run, round_number: int) -> Sizes:
    """The sizes of a round whose scores are finished."""
    here, corpus = run.round(round_number), run.corpus
    scores = read_manifest(here / "scores", made_by=f"bliss score {run.name} --round {round_number}")
    selection = find_manifest(here / "selection")
    validation = read_manifest(corpus.validation, made_by=f"bliss prepare-validation {corpus.name}").metrics
    tokenizer = read_manifest(corpus.tokenizer, made_by=f"bliss train-tokenizer {corpus.name}").metrics
    return Sizes(
        vocab_size=int(tokenizer["vocab_size"]),
        num_candidates=int(scores.metrics["num_sequences"]),
        num_selected=int(selection.metrics["num_selected"]) if selection else 0,
        num_guide_rows=int(validation.get("num_guide_rows", 0)),
        num_guide_tokens=int(validation.get("num_guide_tokens", 0)),
        num_holdout_tokens=int(validation.get("num_holdout_tokens", 0)),
    )


def recorded_work(run: Run, round_number: int) -> dict[str, StageWork]:
    """What the finished stages of a round did, from what they wrote down; of the fit, the FLOPs are those of its settings.

    Raises:
        ValueError: the round has no scores yet.
    """
    config, sizes, here = run.config, sizes_of(run, round_number), run.round(round_number)
    length, batch = config.ingest.sequence_length, config.pretraining.batch_sequences
    models = {"proxy": config.proxy, "target": config.target}
    per_token = {name: _per_token(model, config, sizes.vocab_size) for name, model in models.items()}
    work = {name: stage for name, stage in round_work(config, sizes, round_number).items() if name in ("fit", "score")}
    if round_number == 1 and (warmup := find_manifest(run.warmup)):
        for stage, name in ((WARM_UP_PROXY, "proxy"), (WARM_UP_TARGET, "target")):
            if name == "target" or selectors.uses_proxy(config.method):
                work[stage] = _training(warmup.metrics[name]["num_steps"] * batch, length, per_token[name])
    if fidelity := find_manifest(here / "fidelity"):
        num_probes = fidelity.metrics["num_probes"] if fidelity.metrics["measured"] else 0
        is_proxy = fidelity.metrics.get("model") == "warmed-up proxy"
        work["fidelity"] = _probing(num_probes, per_token["proxy" if is_proxy else "target"], config, sizes)
    if selection := find_manifest(here / "selection"):
        work["select"] = StageWork(selection.metrics["num_candidates"], selection.metrics["num_candidates"] * length)
    if subset := find_manifest(here / "subset"):
        work["materialize"] = StageWork(subset.metrics["num_sequences"], subset.metrics["num_sequences"] * length)
    if pretrained := find_manifest(here / "pretrain"):
        rows = [json.loads(line) for line in (here / "pretrain" / "metrics.jsonl").read_text().splitlines()]
        num_steps, num_points = (sum(name in row for row in rows) for name in ("loss", "validation_loss"))
        work["pretrain"] = _training(num_steps * batch, length, per_token["target"], num_points * sizes.num_holdout_tokens)
    if pretrained and find_manifest(here / "evaluation"):
        work["evaluate"] = _evaluating(len(pretrained.metrics.get("models", [0])), sizes, per_token["target"])
    return work


def selection_cost(run: Run, round_number: int) -> SelectionCost:
    """What choosing the round's data took; of the stages that are finished.

    Raises:
        ValueError: the round has no scores yet.
    """
    return _together(run, round_number, SELECTION)


def training_cost(run: Run, round_number: int) -> SelectionCost:
    """What the round's pretraining took."""
    return _together(run, round_number, TRAINING)


def stage_costs(run: Run, round_number: int, work: Mapping[str, StageWork]) -> dict[str, StageCost]:
    """What every finished stage of a round took, with the warm-up in round 1; `work` is what `recorded_work` found of it."""
    taken = dict(_taken(run, round_number, work))
    return {name: _stage_cost(work[name], taken[name]) for name in work if name in taken}


ARTIFACTS = {
    "fit": "selector", "score": "scores", "fidelity": "fidelity", "select": "selection", "materialize": "subset",
    "pretrain": "pretrain", "evaluate": "evaluation",
}  # fmt: skip


def stage_manifest(run: Run, round_number: int, name: str) -> Manifest | None:
    """The manifest of a finished stage."""
    return find_manifest(run.warmup if name.startswith("warm_up") else run.round(round_number) / ARTIFACTS[name])


def _taken(run: Run, round_number: int, work: Mapping[str, StageWork]) -> Iterator[tuple[str, Cost | None]]:
    """What each stage took. The warm-up trains both models in one go: each has the share of the seconds that it has of the FLOPs."""
    warm_ups = [name for name in work if name.startswith("warm_up")]
    flops = sum(work[name].flops for name in warm_ups)
    for name in work:
        if manifest := stage_manifest(run, round_number, name):
            share = (work[name].flops / flops if flops else float(name == WARM_UP_TARGET)) if name in warm_ups else 1.0
            yield name, manifest.cost and _share(manifest.cost, share)


def _share(cost: Cost, share: float) -> Cost:
    return cost.model_copy(update={name: share * getattr(cost, name) for name in ("seconds", "device_seconds", "cpu_seconds")})


def _stage_cost(work: StageWork, cost: Cost | None) -> StageCost:
    if cost is None:
        return StageCost(work.flops, None, None, None, None, "")
    return StageCost(work.flops, cost.seconds, cost.device_seconds, cost.peak_memory_bytes, cost.peak_gpu_memory_bytes, cost.device)


def _together(run: Run, round_number: int, names: tuple[str, ...]) -> SelectionCost:
    taken = stage_costs(run, round_number, recorded_work(run, round_number))
    stages = {name: stage for name, stage in taken.items() if name in names}
    measured = [
        (stage.seconds, stage.device_seconds, stage.peak_memory_bytes)
        for stage in stages.values()
        if stage.seconds is not None and stage.device_seconds is not None and stage.peak_memory_bytes is not None
    ]
    if len(measured) < len(stages):
        return SelectionCost(sum(stage.flops for stage in stages.values()), None, None, None, stages)
    seconds, device_seconds, peaks = zip(*measured, strict=True) if measured else ((), (), ())
    return SelectionCost(sum(stage.flops for stage in stages.values()), sum(seconds), sum(device_seconds), max(peaks, default=0), stages)


def _per_token(model: ModelConfig, config: RunConfig, vocab_size: int) -> ModelFlops:
    return model_flops(model.definition, vocab_size=vocab_size, sequence_length=config.ingest.sequence_length)


def _training(num_sequences: int, length: int, model: ModelFlops, num_validation_tokens: int = 0) -> StageWork:
    num_tokens = num_sequences * length
    return StageWork(num_sequences, num_tokens, num_tokens * model.training + num_validation_tokens * model.forward)


def _evaluating(number: int, sizes: Sizes, model: ModelFlops) -> StageWork:
    """The held-out loss of each model; what zero-shot tasks take is not counted."""
    num_tokens = number * sizes.num_holdout_tokens
    return StageWork(None, num_tokens, num_tokens * model.forward)


def _fidelity(config: RunConfig, sizes: Sizes, round_number: int) -> StageWork:
    """Nothing where the round starts from an untrained model (training/starting.py); a shared warm-up without a target's is a proxy's."""
    if round_number > 1 or config.target.warmup_steps > 0:
        return _probing(config.fidelity.num_probes, _per_token(config.target, config, sizes.vocab_size), config, sizes)
    has_proxy = selectors.uses_proxy(config.method) or config.warmup_of is not None
    num_probes = config.fidelity.num_probes if has_proxy and config.proxy.warmup_steps > 0 else 0
    return _probing(num_probes, _per_token(config.proxy, config, sizes.vocab_size), config, sizes)


def _probing(num_probes: int, model: ModelFlops, config: RunConfig, sizes: Sizes) -> StageWork:
    """A step on each probe and the validation loss after it, which is most of the work."""
    num_probes = min(num_probes, sizes.num_candidates)
    rows = min(config.fidelity.validation_rows, sizes.num_guide_rows)
    validation_tokens = rows * sizes.num_guide_tokens / max(sizes.num_guide_rows, 1)
    num_tokens = num_probes * config.ingest.sequence_length
    return StageWork(num_probes, num_tokens, num_tokens * model.training + num_probes * validation_tokens * model.forward)
