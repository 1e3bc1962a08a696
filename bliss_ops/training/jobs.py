"""What the training jobs of a run share, warm-up and pretraining: settings of the loop, metrics, checks of their batches.

Legend of shapes: B sequences of an optimizer step, T tokens.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from upath import UPath

from bliss_ops.config import ModelConfig
from bliss_ops.corpus import tokenizer
from bliss_ops.corpus.reading import SequenceReader
from bliss_ops.lake import Run
from bliss_ops.models.flops import model_flops
from bliss_ops.training.device import choose_device, peak_flops
from bliss_ops.training.metrics import Speed, StepMetrics
from bliss_ops.training.tensorboard import curves
from bliss_ops.training.workers import Workers

TENSORBOARD = "tensorboard"


def loop_settings(run: Run, workers: Workers) -> dict[str, Any]:
    """Arguments of the loop that the warm-up has, too."""
    settings = run.config.pretraining
    return {
        "micro_batch_sequences": settings.micro_batch_sequences,
        "max_gradient_norm": settings.max_gradient_norm,
        "num_batches_ahead": settings.num_batches_ahead,
        "workers": workers,
    }


def step_metrics(
    run: Run,
    model: ModelConfig,
    path: UPath,
    title: str,
    last_step: int,
    workers: Workers,
    *,
    curves_in: UPath,
    branch: int | None = None,
) -> StepMetrics:
    """Metrics of a training job of one model, with MFU where the device's peak is known, and with curves in the worker that writes."""
    config = run.config
    device, vocab_size, length = choose_device(config.compute), tokenizer.vocab_size(run.corpus), config.ingest.sequence_length
    peak = peak_flops(device, config.compute)
    flops = model_flops(model.definition, vocab_size=vocab_size, sequence_length=length).training
    return StepMetrics(
        path,
        title,
        last_step,
        config.pretraining.batch_sequences * length,
        speed=Speed(flops, peak * workers.count if peak else None),
        curves=curves(curves_in, wanted=config.pretraining.tensorboard and workers.writes),
        branch=branch,
    )


def check_tokens(input_ids_BT: np.ndarray, length: int, vocab_size: int, where: UPath) -> None:
    """Return when these are sequences for this model.

    Raises:
        ValueError: they have another length, or tokens that the tokenizer does not have.
    """
    if input_ids_BT.shape[1] != length:
        raise ValueError(
            f"{where} holds sequences of {input_ids_BT.shape[1]} tokens, but ingest.sequence_length is {length}: it was made from another "
            "corpus; make it again"
        )
    if int(input_ids_BT.max()) >= vocab_size:
        raise ValueError(
            f"{where} holds the token {int(input_ids_BT.max()):,}, but the corpus's tokenizer has {vocab_size:,} tokens: it was made with "
            "another tokenizer; make it again"
        )


def batch_description(files: list[UPath], first_step: int, batch_sequences: int, seed: int) -> Callable[[int], str]:
    """Which sequences a step reads, in words; read again, with a reader of its own, because another thread may be reading ahead."""

    def describe(step: int) -> str:
        ids = SequenceReader(files).batch(step - first_step, batch_sequences, seed)[0]
        begin = (step - first_step) * batch_sequences
        some = ", ".join(map(str, ids[:8].tolist()))
        more = f" and {len(ids) - 8} more" if len(ids) > 8 else ""
        return f"batch: positions {begin} to {begin + len(ids) - 1} of the stream of {files[0].parent}, sequence ids {some}{more}"

    return describe
