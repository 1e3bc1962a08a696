"""MATES (Yu et al. 2024, arXiv 2406.06046): a small model learns what single sequences do to the validation loss, and predicts it for all.

    influence_i = loss before - loss after one AdamW step of the model the round starts from on sequence i alone     (a few probes)
    score_i = prediction_i / temperature + Gumbel draw, with prediction_i of a regressor of the standardised influences   (everything)

The best k of such scores are a sample without replacement in proportion to exp(prediction / temperature). The regressor is the score
model `bliss` trains, on the warmed-up proxy's backbone; published was BERT. Nearly all of the time goes into the probes: each one
costs a training step and a look at the whole validation set. docs/baselines.md has the table of what is adapted.
"""

import copy
import json
import logging
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from upath import UPath

from bliss_ops.lake import write_json, write_parquet
from bliss_ops.models import saved_score
from bliss_ops.models.saved_score import MODEL, SETTINGS
from bliss_ops.selectors.random import gumbel

if TYPE_CHECKING:
    from torch import nn

    from bliss_ops.config import RunConfig
    from bliss_ops.selectors import Scorer, SelectorFlops, SelectorInputs
    from bliss_ops.training.regression import Labelled, Regression
    from bliss_ops.training.workers import Workers

log = logging.getLogger(__name__)

SECTIONS = ("proxy", "mates", "target", "compute")
PROBES = "probes.parquet"
REGRESSOR = "regressor.json"
METRICS = "metrics.jsonl"
CHECKPOINT = "regressor.safetensors"

FEWEST_PROBES = 16
_STREAM = 0x6D617465  # of the Gumbel draws
_VALIDATION, _HEADS = 0x6D, 4


def fit(inputs: "SelectorInputs", directory: UPath) -> tuple[Sequence[str], dict[str, Any]]:
    """Probe, and fit the regressor; on `compute.num_workers` processes, which share the probes.

    Raises:
        ValueError: the round starts from an untrained model, the window has too few sequences, or a loss is not finite.
    """
    config, settings = inputs.config, inputs.config.mates
    inputs.launch(partial(train, inputs, directory), config.compute.num_workers)
    sampled = {"sampling": settings.sampling, "temperature": settings.temperature, "seed": config.seed, "round": inputs.round_number}
    saved_score.write_settings(directory, config, inputs.vocab_size, pooling=settings.pooling, num_pooling_heads=_HEADS, more=sampled)
    return [MODEL, SETTINGS, PROBES, REGRESSOR, METRICS], json.loads((directory / REGRESSOR).read_text())


def train(inputs: "SelectorInputs", directory: UPath) -> None:
    """The job, the same in every worker: they share the probes, then each fits the same regressor, and the first one writes.

    Far less work than the probes, and no worker waits longer for another than a collective operation of GPUs may take.
    """
    from bliss_ops.training.regression import Labelled
    from bliss_ops.training.workers import Workers

    workers, settings, seed = Workers.current(), inputs.config.mates, inputs.config.seed
    sequence_ids_M, probes_MT = _probes(inputs)
    influence_M, metrics = _influences(inputs, directory, probes_MT)
    try:
        labelled = Labelled.split(probes_MT, influence_M, settings.num_heldout(len(influence_M)), seed)
    except ValueError as error:
        raise ValueError(f"mates: no influence differs from another ({error}): raise mates.learning_rate") from None
    model, found = _fit_regressor(inputs, directory, labelled, workers)
    if workers.writes:
        write_parquet(directory / PROBES, _table({"sequence_id": sequence_ids_M, "influence": influence_M}))
        saved_score.write_weights(directory, model)
        write_json(directory / REGRESSOR, metrics | found)
    workers.barrier()


def load_scorer(directory: UPath) -> "Scorer":
    """The regressor's predictions, as `sampling` says: with the Gumbel draw of each sequence id, or alone."""
    settings = saved_score.read_settings(directory)

    def finish(sequence_ids_B: np.ndarray, prediction_B: np.ndarray) -> np.ndarray:
        draw_B = gumbel(sequence_ids_B, settings["seed"], settings["round"], stream=_STREAM)
        score_B: np.ndarray = (prediction_B.astype(np.float64) / settings["temperature"] + draw_B).astype(np.float32)
        return score_B

    return saved_score.load_scorer(directory, finish=finish if settings["sampling"] == "gumbel" else None)


def flops(config: "RunConfig", *, vocab_size: int, num_sequences: int, validation_row_tokens: float | None = None) -> "SelectorFlops":
    """M probes of (3 T F + V t F), the regressor's training and looks at 3 and 1 times its backbone, and one backbone pass per score.

    F is the forward pass per token of the model probed: of the target, unless its warm-up has no steps (then, in round 1, the proxy is
    probed, and that is what is counted). The V validation rows are counted with `validation_row_tokens` (t) each, T unless given: rows
    are padded to T, and what is padding is not computed, so without it the count is an upper bound.
    """
    from bliss_ops.models.flops import model_flops
    from bliss_ops.selectors import SelectorFlops

    settings, length = config.mates, config.ingest.sequence_length
    probed = config.target if config.target.warmup_steps > 0 else config.proxy
    of_probed = model_flops(probed.definition, vocab_size=vocab_size, sequence_length=length)
    of_regressor = model_flops(config.proxy.definition, vocab_size=vocab_size, sequence_length=length).backbone_forward * length
    num_probes = min(settings.num_probes, num_sequences)
    num_looks = num_probes + 2.0  # before, and after a step on nothing
    row_tokens = length if validation_row_tokens is None else validation_row_tokens
    probing = num_probes * length * of_probed.training + num_looks * settings.validation_rows * row_tokens * of_probed.forward
    steps, held_out = settings.num_steps(num_probes), settings.num_heldout(num_probes)
    learning = 3 * settings.num_epochs * max(0, num_probes - held_out) * of_regressor
    looking = (-(-steps // settings.evaluate_every_steps) + 1) * held_out * of_regressor
    return SelectorFlops(fit=probing + learning + looking, score=num_sequences * of_regressor)


def _probes(inputs: "SelectorInputs") -> tuple[np.ndarray, np.ndarray]:
    """(sequence_ids_M, input_ids_MT): the first of the candidate stream, in the narrow type they are kept in."""
    settings = inputs.config.mates
    parts = [(ids, tokens.astype(np.int32)) for ids, tokens in inputs.candidates.sample(settings.num_probes, inputs.config.seed)]
    sequence_ids_M, probes_MT = (np.concatenate(column) for column in zip(*parts, strict=True))
    if len(sequence_ids_M) < FEWEST_PROBES:
        raise ValueError(
            f"mates: the candidate window has {len(sequence_ids_M)} sequences, a regressor takes at least {FEWEST_PROBES} probes: "
            "ingest more, or lower num_rounds"
        )
    if len(sequence_ids_M) < settings.num_probes:
        log.warning("mates: %d probes are asked for and the window has %d sequences", settings.num_probes, len(sequence_ids_M))
    return sequence_ids_M, probes_MT


def _influences(inputs: "SelectorInputs", directory: UPath, probes_MT: np.ndarray) -> tuple[np.ndarray, dict[str, Any]]:
    """(influence_M, metrics of the probing)."""
    from bliss_ops.corpus import validation
    from bliss_ops.training.probing import measured_influences
    from bliss_ops.training.starting import restored, starting_model
    from bliss_ops.training.workers import Workers

    config, settings = inputs.config, inputs.config.mates
    model = starting_model(config, inputs.round_number, warmup=inputs.warmup, reference=inputs.reference, has_proxy=True)
    state = restored(model, config, inputs.vocab_size, learning_rate=settings.learning_rate, weight_decay=settings.weight_decay)
    guide = validation.read(inputs.validation, "guide")
    rows = np.sort(np.random.default_rng([config.seed, _VALIDATION]).permutation(len(guide))[: settings.validation_rows])
    found = measured_influences(
        state,
        probes_MT,
        guide.take(rows),
        directory=directory,
        title=f"probe {config.name} round {inputs.round_number}",
        section="mates",
        max_gradient_norm=settings.max_gradient_norm,
        workers=Workers.current(),
    )
    return found.influence_M, {
        "num_probes": len(found.influence_M),
        "model": model.name,
        "shape": model.config.shape,
        "validation_loss": found.loss,
        "mean_influence": float(found.influence_M.mean()),
        "influence_std": float(found.influence_M.std()),
        "momentum_influence": found.momentum,
    }


def _fit_regressor(
    inputs: "SelectorInputs", directory: UPath, labelled: "Labelled", workers: "Workers"
) -> "tuple[nn.Module, dict[str, float]]":
    """(the model with the weights of its best step, how well it ranks); goes on from its checkpoint, and writes `metrics.jsonl`."""
    from bliss_ops.training.checkpoints import Checkpoint
    from bliss_ops.training.metrics import StepMetrics
    from bliss_ops.training.regression import fit_regressor

    config, settings = inputs.config, inputs.config.mates
    last_step = settings.num_steps(len(labelled.label_M))
    tokens_per_step = settings.regressor_batch_sequences * config.ingest.sequence_length
    title = f"fit {config.name} round {inputs.round_number}"
    metrics = StepMetrics(directory / METRICS, title, last_step, tokens_per_step)
    state = _new_regressor(inputs)
    checkpoint = Checkpoint(directory / CHECKPOINT, state, metrics, settings.checkpoint_every_steps, last_step, workers)
    if checkpoint.resume():
        log.info("%s: going on after step %d", title, state.step)
    found = fit_regressor(state, labelled, settings, seed=config.seed, metrics=metrics, after_step=checkpoint.after_step)
    log.info(
        "%s: Spearman of predicted and measured influence %+.3f +- %.3f on %d held-out probes (of step %d, the best)",
        title, found["spearman"], found["spearman_standard_error"], found["num_heldout"], found["best_step"],
    )  # fmt: skip
    if found["spearman"] < 2 * found["spearman_standard_error"]:
        log.warning("%s: that is not clearly above zero: the scores say little; raise mates.num_probes or validation_rows", title)
    return state.train.model, found


def _new_regressor(inputs: "SelectorInputs") -> "Regression":
    """On the warmed-up proxy's backbone, or as the former round left it."""
    from bliss_ops.models import language
    from bliss_ops.models.score import ScoreModel
    from bliss_ops.training.device import compiled
    from bliss_ops.training.regression import Regression
    from bliss_ops.training.state import PROXY, TrainState, adamw, new_model

    config, settings = inputs.config, inputs.config.mates
    proxy = new_model(config, config.proxy, inputs.vocab_size)
    TrainState(proxy, adamw(proxy, 0.0, 0.0)).restore(language.read_tensors(inputs.warmup / PROXY))
    model = ScoreModel(copy.deepcopy(proxy), pooling=settings.pooling, num_heads=_HEADS).to(proxy.device)
    if inputs.previous is not None and settings.regressor_start == "inherited":
        language.load_weights(model, inputs.previous / MODEL)
    compiled(model, config.compute)
    optimizer = adamw(model, settings.regressor_learning_rate, settings.regressor_weight_decay)
    return Regression(TrainState(model, optimizer))


def _table(columns: dict[str, np.ndarray]) -> Any:
    import pyarrow as pa

    return pa.table(columns).sort_by("sequence_id")
