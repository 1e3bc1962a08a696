"""BLISS (arXiv 2510.06048): the score is the logit of a score model trained through bilevel optimisation.

The proxy starts from its warm-up in every round; the score model starts from the warmed proxy's backbone in round 1 and from the
previous round's score model afterwards.
"""

import copy
import json
import logging
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from upath import UPath

from bliss_ops.models import saved_score
from bliss_ops.models.saved_score import MODEL, SETTINGS

if TYPE_CHECKING:
    from bliss_ops.bilevel.state import BilevelState
    from bliss_ops.config import RunConfig
    from bliss_ops.selectors import Scorer, SelectorFlops, SelectorInputs

log = logging.getLogger(__name__)

SECTIONS = ("proxy", "bilevel", "target", "compute")
METRICS = "metrics.jsonl"


def fit(inputs: "SelectorInputs", directory: UPath) -> tuple[Sequence[str], dict[str, Any]]:
    """Train the score model on `compute.num_workers` processes; writes its weights, its settings and `metrics.jsonl`."""
    config = inputs.config
    inputs.launch(partial(train, inputs, directory), config.compute.num_workers)
    settings = config.bilevel
    saved_score.write_settings(
        directory,
        config,
        inputs.vocab_size,
        pooling=settings.score_pooling,
        head=settings.score_head,
        num_pooling_heads=settings.num_pooling_heads,
    )
    last = json.loads((directory / METRICS).read_text().splitlines()[-1])
    kept = ("validation_loss", "effective_sample_size", "probe_correlation", "probe_score_std", "probe_tied", "validation_auc", "residual")
    return [MODEL, SETTINGS, METRICS], {name: last[name] for name in kept if name in last}


def train(inputs: "SelectorInputs", directory: UPath) -> None:
    """The training job, the same in every worker; the first one writes."""
    from bliss_ops.bilevel.training import train_score_model
    from bliss_ops.corpus import validation
    from bliss_ops.training.device import choose_device
    from bliss_ops.training.metrics import StepMetrics
    from bliss_ops.training.workers import Workers

    config, settings, workers = inputs.config, inputs.config.bilevel, Workers.current()
    rows_per_step = settings.batch_sequences * settings.num_inner_steps + settings.validation_batch_sequences
    metrics = StepMetrics(
        directory / METRICS,
        f"fit {config.name} round {inputs.round_number}",
        settings.num_steps,
        rows_per_step * config.ingest.sequence_length,
    )
    state = _new_state(inputs)
    train_score_model(
        state,
        inputs.candidates,
        validation.read(inputs.validation, "guide"),
        settings,
        seed=config.seed,
        device=choose_device(config.compute),
        directory=directory,
        metrics=metrics,
        workers=workers,
    )
    if workers.writes:
        saved_score.write_weights(directory, state.score.model)
    workers.barrier()


def load_scorer(directory: UPath) -> "Scorer":
    """Logits of the trained score model."""
    return saved_score.load_scorer(directory)


def flops(config: "RunConfig", *, vocab_size: int, num_sequences: int, validation_row_tokens: float | None = None) -> "SelectorFlops":
    """Bilevel training as bilevel/cost.py counts it, and one backbone pass per score; its fit does not depend on the window's size."""
    from bliss_ops.bilevel.cost import training_flops
    from bliss_ops.models.flops import model_flops
    from bliss_ops.selectors import SelectorFlops

    length = config.ingest.sequence_length
    proxy = model_flops(config.proxy.definition, vocab_size=vocab_size, sequence_length=length)
    has_reference = config.bilevel.kl_weight > 0 and config.target.warmup_steps > 0
    reference = model_flops(config.target.definition, vocab_size=vocab_size, sequence_length=length) if has_reference else None
    fit = training_flops(config.bilevel, proxy, sequence_length=length, reference=reference, validation_row_tokens=validation_row_tokens)
    return SelectorFlops(fit=fit, score=num_sequences * length * proxy.backbone_forward)


def _new_state(inputs: "SelectorInputs") -> "BilevelState":
    """Proxy from the warm-up, score model from the proxy or from the previous round, reference for the KL term."""
    from bliss_ops.bilevel.state import BilevelState
    from bliss_ops.models import language
    from bliss_ops.models.score import ScoreModel
    from bliss_ops.training.device import compiled
    from bliss_ops.training.state import PROXY, TrainState, adamw, load_reference, new_model

    config, settings = inputs.config, inputs.config.bilevel
    proxy_model = new_model(config, config.proxy, inputs.vocab_size)
    proxy = TrainState(proxy_model, adamw(proxy_model, settings.proxy_learning_rate, 0.0))
    proxy.restore(language.read_tensors(inputs.warmup / PROXY))
    score_model = ScoreModel(
        copy.deepcopy(proxy_model), settings.score_head, pooling=settings.score_pooling, num_heads=settings.num_pooling_heads
    ).to(proxy_model.device)
    if inputs.previous is not None and settings.score_start == "inherited":
        language.load_weights(score_model, inputs.previous / MODEL)
    compiled(proxy_model, config.compute)
    compiled(score_model, config.compute)
    is_trained = config.target.warmup_steps > 0 or inputs.round_number > 1
    if settings.kl_weight and not is_trained:
        log.warning("fit %s: the target has had no training step yet, so the KL term is left out of this round", config.name)
    return BilevelState(
        proxy=proxy,
        score=TrainState(score_model, adamw(score_model, settings.score_learning_rate, 0.0)),
        reference=load_reference(config, inputs.vocab_size, inputs.reference) if settings.kl_weight and is_trained else None,
    )
