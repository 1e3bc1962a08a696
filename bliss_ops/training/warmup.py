"""Round 0: the proxy (and, when asked for, the target) learns from random data of the whole corpus, once per run.

Every round's proxy starts from here again; the target only goes on from here in round 1. With `target.warmup_steps = 0` the
target starts from its seeded initial weights, so runs of equal seed differ in their data alone.
"""

import logging
from typing import Any

from upath import UPath

from bliss_ops import selectors
from bliss_ops.config import ProxyConfig, TargetConfig
from bliss_ops.corpus import tokenizer
from bliss_ops.corpus.reading import SequenceReader
from bliss_ops.lake import Run, shard_file
from bliss_ops.manifest import read_manifest
from bliss_ops.training.loop import train_resumably
from bliss_ops.training.metrics import StepMetrics
from bliss_ops.training.schedules import warmup_stable
from bliss_ops.training.state import PROXY, TARGET, count_parameters, new_state

log = logging.getLogger(__name__)


def warm_up(run: Run, directory: UPath) -> tuple[list[str], dict[str, Any]]:
    """Write `state.safetensors` (the target) and, for methods that have a proxy, `proxy.safetensors`."""
    config = run.config
    sequences = read_manifest(run.corpus.sequences, made_by=f"bliss pack {run.corpus.name}")
    reader = SequenceReader([shard_file(run.corpus.sequences, shard) for shard in sequences.shards])
    metrics = {"target": _warm_up(run, reader, directory / TARGET, config.target, config.pretraining.learning_rate)}
    if selectors.uses_proxy(config.method):
        metrics["proxy"] = _warm_up(run, reader, directory / PROXY, config.proxy, config.proxy.warmup_learning_rate)
    return [PROXY, TARGET] if "proxy" in metrics else [TARGET], metrics


def _warm_up(run: Run, reader: SequenceReader, checkpoint: UPath, model: ProxyConfig | TargetConfig, peak: float) -> dict[str, Any]:
    config, settings = run.config, run.config.pretraining
    name = "proxy" if checkpoint.name == PROXY else "target"
    state = new_state(config, model, tokenizer.vocab_size(run.corpus))
    tokens_per_step = settings.batch_sequences * config.ingest.sequence_length
    log.info(
        "warm up %s of %s: %s, %s parameters, %d steps", name, run.name, model.shape, f"{count_parameters(state):,}", model.warmup_steps
    )
    train_resumably(
        state,
        lambda step: reader.batch(step, settings.batch_sequences, config.seed)[1],
        model.warmup_steps,
        checkpoint,
        learning_rate=lambda step: warmup_stable(step, peak=peak, warmup_steps=settings.warmup_steps),
        checkpoint_every_steps=settings.checkpoint_every_steps,
        micro_batch_sequences=settings.micro_batch_sequences,
        max_gradient_norm=settings.max_gradient_norm,
        metrics=StepMetrics(
            checkpoint.parent / f"{name}-metrics.jsonl", f"warm up {name} of {run.name}", model.warmup_steps, tokens_per_step
        ),
    )
    return {"parameters": count_parameters(state), "num_steps": model.warmup_steps}
