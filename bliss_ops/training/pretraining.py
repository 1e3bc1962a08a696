"""The pretraining job of one round: stable learning rate on the subset, then a short decay branch that is evaluated.

The main branch (`state.safetensors`: weights and optimizer) is what the next round goes on from; the decayed model (`model/`) is
what gets evaluated and exported. Data order is a function of the step, so a killed job goes on exactly where its last checkpoint was.
"""

import logging
from typing import Any

from upath import UPath

from bliss_ops.corpus import tokenizer, validation
from bliss_ops.corpus.reading import SequenceReader
from bliss_ops.lake import Run, shard_file
from bliss_ops.manifest import read_manifest
from bliss_ops.models import language
from bliss_ops.training.loop import mean_token_loss, train, train_resumably
from bliss_ops.training.metrics import StepMetrics
from bliss_ops.training.schedules import linear_decay, warmup_stable
from bliss_ops.training.state import TARGET, count_parameters, new_state

log = logging.getLogger(__name__)


def pretrain(run: Run, round_number: int, directory: UPath) -> tuple[list[str], dict[str, Any]]:
    """Train the target on the round's subset; returns the files written and what was trained on."""
    config, settings, here = run.config, run.config.pretraining, run.round(round_number)
    subset = read_manifest(here / "subset", made_by=f"bliss materialize {run.name} --round {round_number}")
    reader = SequenceReader([shard_file(here / "subset", shard) for shard in subset.shards])
    held_out = validation.read(run.corpus.validation, "holdout")
    state = new_state(config, config.target, tokenizer.vocab_size(run.corpus))
    before = (run.round(round_number - 1) / "pretrain" if round_number > 1 else run.warmup) / TARGET
    if not (directory / TARGET).exists():
        state.restore(language.read_tensors(before))
    first_step = config.target.warmup_steps + (round_number - 1) * settings.num_steps
    last_step = first_step + settings.num_steps
    tokens_per_step = settings.batch_sequences * config.ingest.sequence_length
    metrics = StepMetrics(
        directory / "metrics.jsonl", f"pretrain {run.name} round {round_number}", last_step + settings.decay_steps, tokens_per_step
    )
    log.info(
        "pretrain %s: %s, %s parameters, %s sequences",
        run.name,
        config.target.shape,
        f"{count_parameters(state):,}",
        f"{reader.num_sequences:,}",
    )

    def evaluate_now_and_then(step: int) -> None:
        if (step - first_step) % settings.evaluate_every_steps == 0 or step in (last_step, last_step + settings.decay_steps):
            metrics.add(step, validation_loss=mean_token_loss(state.model, held_out)[0])

    shared: dict[str, Any] = {
        "micro_batch_sequences": settings.micro_batch_sequences,
        "max_gradient_norm": settings.max_gradient_norm,
        "metrics": metrics,
        "after_step": evaluate_now_and_then,
    }

    def batch_of(step: int) -> Any:
        return reader.batch(step - first_step, settings.batch_sequences, config.seed)[1]

    train_resumably(
        state,
        batch_of,
        last_step,
        directory / TARGET,
        learning_rate=lambda step: warmup_stable(step, peak=settings.learning_rate, warmup_steps=settings.warmup_steps),
        checkpoint_every_steps=settings.checkpoint_every_steps,
        **shared,
    )
    metrics.resume(last_step)  # a job killed in the decay branch does the branch again
    train(
        state,
        batch_of,
        last_step + settings.decay_steps,
        learning_rate=lambda step: linear_decay(step - last_step, peak=settings.learning_rate, decay_steps=settings.decay_steps),
        **shared,
    )
    metrics.write()
    files = [TARGET, "metrics.jsonl", *language.save(state.model, directory, "model")]
    return files, {
        "num_steps": settings.num_steps,
        "num_tokens": settings.num_steps * tokens_per_step,
        "parameters": count_parameters(state),
    }
