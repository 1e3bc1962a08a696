"""Round 0: the proxy (and, when asked for, the target) learns from random data of the whole corpus, once per run.

Every round's proxy starts from here again; the target only goes on from here in round 1. With `target.warmup_steps = 0` the
target starts from its seeded initial weights, so runs of equal seed differ in their data alone. Like pretraining, each is a job of
`compute.num_workers` processes.
"""

import logging
from functools import partial
from typing import Any, Literal

import numpy as np
from upath import UPath

from bliss_ops import selectors
from bliss_ops.config import ProxyConfig, TargetConfig
from bliss_ops.corpus import tokenizer
from bliss_ops.corpus.reading import SequenceReader
from bliss_ops.lake import Run, shard_file
from bliss_ops.launching import Launcher
from bliss_ops.manifest import read_manifest
from bliss_ops.models import language
from bliss_ops.training.jobs import TENSORBOARD, batch_description, check_tokens, loop_settings, step_metrics
from bliss_ops.training.loop import train_resumably
from bliss_ops.training.schedules import warmup_stable
from bliss_ops.training.state import PROXY, TARGET, new_state
from bliss_ops.training.workers import Workers

log = logging.getLogger(__name__)

Role = Literal["target", "proxy"]
FILES: dict[Role, str] = {"target": TARGET, "proxy": PROXY}


def warm_up(run: Run, launch: Launcher, directory: UPath) -> tuple[list[str], dict[str, Any]]:
    """Write `state.safetensors` (the target) and, for methods that have a proxy, `proxy.safetensors`."""
    roles: list[Role] = ["target", "proxy"] if selectors.uses_proxy(run.config.method) else ["target"]
    vocab_size, metrics = tokenizer.vocab_size(run.corpus), dict[str, Any]()
    for role in roles:
        model = _model(run, role)
        if model.warmup_steps:
            launch(partial(train, run, role, directory), run.config.compute.num_workers)
        else:  # not worth starting workers for
            _write_initial(run, role, vocab_size, directory)
        metrics[role] = {"parameters": language.num_parameters(model.definition, vocab_size=vocab_size), "num_steps": model.warmup_steps}
    return [FILES[role] for role in roles], metrics


def train(run: Run, role: Role, directory: UPath) -> None:
    """The warm-up of one of the two, the job of every worker."""
    config, settings, workers = run.config, run.config.pretraining, Workers.current()
    model, vocab_size, length = _model(run, role), tokenizer.vocab_size(run.corpus), run.config.ingest.sequence_length
    sequences = read_manifest(run.corpus.sequences, made_by=f"bliss pack {run.corpus.name}")
    reader = SequenceReader([shard_file(run.corpus.sequences, shard) for shard in sequences.shards], read_ahead=True)
    title = f"warm up {role} of {run.name}"
    log.info("%s: %s, %d steps", title, model.shape, model.warmup_steps)
    peak = model.warmup_learning_rate if isinstance(model, ProxyConfig) else settings.learning_rate
    metrics = step_metrics(
        run, model, directory / f"{role}-metrics.jsonl", title, model.warmup_steps, workers, curves_in=directory / TENSORBOARD / role
    )

    def batch_of(step: int) -> np.ndarray:
        input_ids_BT = reader.batch(step, settings.batch_sequences, config.seed)[1]
        check_tokens(input_ids_BT, length, vocab_size, run.corpus.sequences)
        return input_ids_BT

    train_resumably(
        new_state(config, model, vocab_size, workers),
        batch_of,
        model.warmup_steps,
        directory / FILES[role],
        learning_rate=lambda step: warmup_stable(step, peak=peak, warmup_steps=settings.warmup_steps),
        checkpoint_every_steps=settings.checkpoint_every_steps,
        keep_checkpoints=settings.keep_checkpoints,
        metrics=metrics,
        describe_batch=batch_description(reader.files, 0, settings.batch_sequences, config.seed),
        **loop_settings(run, workers),
    )
    metrics.close()


def _write_initial(run: Run, role: Role, vocab_size: int, directory: UPath) -> None:
    """The seeded weights, built on the CPU: the process that starts the workers may have no GPU."""
    config = run.config.model_copy(update={"compute": run.config.compute.model_copy(update={"device": "cpu"})})
    language.write_tensors(directory / FILES[role], new_state(config, _model(run, role), vocab_size).tensors())


def _model(run: Run, role: Role) -> TargetConfig | ProxyConfig:
    return run.config.target if role == "target" else run.config.proxy
