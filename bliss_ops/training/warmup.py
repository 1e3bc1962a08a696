"""Round 0: the proxy (and, when asked for, the target) learns from random data of the whole corpus, once per run.

Every round's proxy starts from here again; the target only goes on from here in round 1. With `target.warmup_steps = 0` the
target starts from its seeded initial weights, so runs of equal seed differ in their data alone.
"""

import logging
from typing import Any

import torch
from upath import UPath

from bliss_ops import selectors
from bliss_ops.config import ModelConfig, RunConfig
from bliss_ops.corpus.reading import SequenceReader
from bliss_ops.lake import Corpus, Run, shard_file
from bliss_ops.manifest import read_manifest
from bliss_ops.models import language
from bliss_ops.training.device import choose_device
from bliss_ops.training.loop import train_resumably
from bliss_ops.training.metrics import StepMetrics
from bliss_ops.training.schedules import warmup_stable
from bliss_ops.training.state import TrainState, adamw

log = logging.getLogger(__name__)

PROXY = "proxy.safetensors"
TARGET = "state.safetensors"  # the name `pretrain` gives its own: a reference model is read the same way in every round


def warm_up(run: Run, directory: UPath) -> tuple[list[str], dict[str, Any]]:
    """Write `state.safetensors` (the target) and, for methods that have a proxy, `proxy.safetensors`."""
    config = run.config
    sequences = read_manifest(run.corpus.sequences, made_by=f"bliss pack {run.corpus.name}")
    reader = SequenceReader([shard_file(run.corpus.sequences, shard) for shard in sequences.shards])
    models: list[tuple[str, ModelConfig, int, float]] = [
        (TARGET, config.target, config.target.warmup_steps, config.pretraining.learning_rate),
    ]
    if selectors.uses_proxy(config.method):
        models.append((PROXY, config.proxy, config.proxy.warmup_steps, config.proxy.warmup_learning_rate))
    totals: dict[str, Any] = {}
    for file, model_config, num_steps, peak in models:
        name = "proxy" if file == PROXY else "target"
        state = new_state(config, model_config, vocab_size_of(run.corpus))
        batch = config.bilevel.batch_sequences if name == "proxy" else config.pretraining.batch_sequences
        metrics = StepMetrics(
            directory / f"{name}-metrics.jsonl", f"warm up {name} of {run.name}", num_steps, batch * config.ingest.sequence_length
        )
        log.info("warm up %s of %s: %s, %s parameters", name, run.name, model_config.shape, f"{count_parameters(state):,}")
        train_resumably(
            state,
            lambda step, batch=batch: reader.batch(step, batch, config.seed)[1],  # type: ignore[misc]
            num_steps,
            directory / file,
            learning_rate=lambda step, peak=peak: warmup_stable(step, peak=peak, warmup_steps=config.pretraining.warmup_steps),  # type: ignore[misc]
            checkpoint_every_steps=config.pretraining.checkpoint_every_steps,
            micro_batch_sequences=config.pretraining.micro_batch_sequences,
            max_gradient_norm=config.pretraining.max_gradient_norm,
            metrics=metrics,
        )
        totals |= {f"{name}_parameters": count_parameters(state), f"{name}_steps": num_steps}
    return [file for file, *_ in models], totals


def new_state(config: RunConfig, model_config: ModelConfig, vocab_size: int) -> TrainState:
    """A freshly initialised model of the run's seed with its optimizer, on the run's device.

    Raises:
        ValueError: the tokenizer's vocabulary does not fit the shape.
    """
    device = choose_device(config.compute)
    model = language.build(model_config.shape, vocab_size=vocab_size, sequence_length=config.ingest.sequence_length, seed=config.seed).to(
        device
    )
    return TrainState(model, adamw(model, config.pretraining.learning_rate, config.pretraining.weight_decay))


def count_parameters(state: TrainState) -> int:
    return sum(parameter.numel() for parameter in state.model.parameters())


def load_reference(config: RunConfig, vocab_size: int, directory: UPath) -> torch.nn.Module:
    """The target's current checkpoint (of the warm-up or of a round), frozen."""
    state = new_state(config, config.target, vocab_size)
    state.restore(language.read_tensors(directory / TARGET))
    return state.model.eval().requires_grad_(False)


def vocab_size_of(corpus: Corpus) -> int:
    """Number of tokens of the corpus's tokenizer."""
    return int(read_manifest(corpus.tokenizer, made_by=f"bliss train-tokenizer {corpus.name}").metrics["vocab_size"])
