"""The pretraining job of one round: stable learning rate on the subset, then a short decay branch that is evaluated.

The main branch (`state.safetensors`: weights and optimizer) is what the next round goes on from; the decayed model (`model/`) is what
gets evaluated and exported. Further decay branches (`branches/step-000200/model/`) start from checkpoints of the main branch once that is
finished, so it is the same with and without them. Data order is a function of the step, so a killed job goes on exactly where its last
checkpoint was; a killed branch is done again.

The job runs in `compute.num_workers` processes, which all execute `train_target`; the first one writes.
"""

import json
import logging
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from upath import UPath

from bliss_ops.corpus import tokenizer, validation
from bliss_ops.corpus.reading import SequenceReader
from bliss_ops.corpus.validation import ValidationRows
from bliss_ops.lake import Run, remove, shard_file
from bliss_ops.launching import Launcher
from bliss_ops.manifest import Manifest, find_manifest, read_manifest
from bliss_ops.models import language
from bliss_ops.training import parallel
from bliss_ops.training.checkpoints import checkpoint_path
from bliss_ops.training.jobs import TENSORBOARD, batch_description, check_tokens, loop_settings, step_metrics
from bliss_ops.training.loop import mean_token_loss, train, train_resumably
from bliss_ops.training.metrics import StepMetrics
from bliss_ops.training.schedules import linear_decay, warmup_stable
from bliss_ops.training.state import TARGET, TrainState, new_state
from bliss_ops.training.workers import Workers

log = logging.getLogger(__name__)

MODEL, METRICS = "model", "metrics.jsonl"


def pretrain(run: Run, round_number: int, launch: Launcher, directory: UPath) -> tuple[list[str], dict[str, Any]]:
    """Train the target on the round's subset; returns the files written and what was trained on.

    Raises:
        ValueError: the subset was made from other sequences than the corpus has now; or training cannot go on (loop.py).
    """
    config, settings = run.config, run.config.pretraining
    subset = read_manifest(run.round(round_number) / "subset", made_by=f"bliss materialize {run.name} --round {round_number}")
    check_subset(run, round_number, subset)
    launch(partial(train_target, run, round_number, directory), config.compute.num_workers)
    tokens_per_step = settings.batch_sequences * config.ingest.sequence_length
    first_step = first_step_of(run, round_number)
    ends = {branch_folder(step): step for step in settings.decay_at_steps} | {MODEL: settings.num_steps}
    models = [
        {"path": path, "step": (end := first_step + step + settings.decay_steps), "num_tokens": end * tokens_per_step}
        for path, step in ends.items()
    ]
    files = [TARGET, METRICS, *(f"{path}/{name}" for path in ends for name in ("config.json", "model.safetensors"))]
    vocab_size = tokenizer.vocab_size(run.corpus)
    return files, {
        "num_steps": settings.num_steps,
        "num_tokens": settings.num_steps * tokens_per_step,
        "parameters": language.num_parameters(config.target.definition, vocab_size=vocab_size),
        "models": models,
    }


def first_step_of(run: Run, round_number: int) -> int:
    """Optimizer steps that the target has done before the round."""
    return run.config.target.warmup_steps + (round_number - 1) * run.config.pretraining.num_steps


def branch_folder(step: int) -> str:
    """Where the model of the decay branch from that step of the round goes."""
    return f"branches/step-{step:06d}/{MODEL}"


def check_subset(run: Run, round_number: int, subset: Manifest) -> None:
    """Return when the subset's tokens are those of the corpus as it is now.

    Raises:
        ValueError: the corpus was packed again, with another tokenizer or length, or its tokenizer was made again.
    """
    corpus = run.corpus
    again = f"run the stages of the round again from `bliss fit {run.name} --round {round_number}`, or put the corpus back"
    now = find_manifest(corpus.sequences)
    made_from = subset.inputs.get(run.lake.relative(corpus.sequences))
    if made_from is None or (now is not None and now.digest != made_from):
        others = ", ".join(address for address in subset.inputs if address.startswith("corpora/"))
        raise ValueError(
            f"the subset {run.round(round_number) / 'subset'} was made from other sequences ({others}, {(made_from or '?')[:12]}) than "
            f"{corpus.sequences} has now ({now.digest[:12] if now else 'none'}): another tokenizer or sequence length. {again}"
        )
    tokens = read_manifest(corpus.tokenizer, made_by=f"bliss train-tokenizer {corpus.name}")
    if now is not None and now.inputs.get(run.lake.relative(corpus.tokenizer), tokens.digest) != tokens.digest:
        raise ValueError(
            f"{corpus.sequences} was packed with another tokenizer than {corpus.tokenizer} is now: pack it again, then {again}"
        )


def train_target(run: Run, round_number: int, directory: UPath) -> None:
    """The job of every worker: the main branch, then the decay branches."""
    job = _Target.begin(run, round_number, directory, Workers.current())
    job.train_main_branch()
    rows = [job.train_extra_branch(step) for step in run.config.pretraining.decay_at_steps]
    job.train_final_branch()
    if job.workers.writes:
        job.metrics.rows += [row for branch in rows for row in branch]
        job.metrics.write()
        job.discard_branch_points()
    job.metrics.close()
    job.workers.barrier()


@dataclass
class _Target:
    run: Run
    round_number: int
    directory: UPath
    workers: Workers
    reader: SequenceReader
    held_out: ValidationRows
    state: TrainState
    metrics: StepMetrics
    first_step: int  # of the round; steps count the target's whole life
    vocab_size: int

    @classmethod
    def begin(cls, run: Run, round_number: int, directory: UPath, workers: Workers) -> "_Target":
        config, vocab_size = run.config, tokenizer.vocab_size(run.corpus)
        subset = read_manifest(run.round(round_number) / "subset", made_by=f"bliss materialize {run.name} --round {round_number}")
        reader = SequenceReader([shard_file(run.round(round_number) / "subset", shard) for shard in subset.shards], read_ahead=True)
        state = new_state(config, config.target, vocab_size, workers)
        first_step = first_step_of(run, round_number)
        end = first_step + config.pretraining.num_steps + config.pretraining.decay_steps
        title = f"pretrain {run.name} round {round_number}"
        metrics = step_metrics(run, config.target, directory / METRICS, title, end, workers, curves_in=directory / TENSORBOARD)
        log.info("%s: %s, %s sequences", title, config.target.shape, f"{reader.num_sequences:,}")
        held_out = validation.read(run.corpus.validation, "holdout")
        return cls(run, round_number, directory, workers, reader, held_out, state, metrics, first_step, vocab_size)

    @property
    def last_step(self) -> int:
        """Of the main branch."""
        return self.first_step + self.run.config.pretraining.num_steps

    def train_main_branch(self) -> None:
        settings = self.run.config.pretraining
        train_resumably(
            self.state,
            last_step=self.last_step,
            checkpoint=self.directory / TARGET,
            start=self.start,
            learning_rate=lambda step: warmup_stable(step, peak=settings.learning_rate, warmup_steps=settings.warmup_steps),
            checkpoint_every_steps=settings.checkpoint_every_steps,
            keep_checkpoints=settings.keep_checkpoints,
            keep_every_steps=settings.keep_every_steps,
            keep_steps=tuple(self.first_step + step for step in settings.decay_at_steps),
            metrics=self.metrics,
            after_step=partial(self.evaluate_now_and_then, self.metrics, self.last_step),
            **self.shared(),
        )

    def start(self) -> None:
        """The former round's state, or the warm-up's.

        Raises:
            ValueError: it is cut, of another model, or has done another number of steps than it should have.
        """
        run, number = self.run, self.round_number
        before = (run.round(number - 1) / "pretrain" if number > 1 else run.warmup) / TARGET
        self.state.restore(language.read_tensors(before), where=str(before))
        if self.state.step != self.first_step:
            raise ValueError(
                f"{before} has done {self.state.step} steps, but round {number} begins after {self.first_step} (target.warmup_steps and "
                "pretraining.num_steps of every former round): put these settings back, or make that artifact again"
            )

    def train_extra_branch(self, step: int) -> list[dict[str, float]]:
        """The decay branch from that step of the round; returns its rows. One that is finished is left as it is."""
        folder, done = branch_folder(step), self.directory / "branches" / f"step-{step:06d}" / METRICS
        is_done = self.workers.agreed(self.workers.writes and done.is_file())  # written last
        if is_done:
            return [json.loads(line) for line in done.read_text().splitlines()]
        end = self.first_step + step + self.run.config.pretraining.decay_steps
        point = checkpoint_path(self.directory / TARGET, self.first_step + step)
        if not point.is_file():
            raise ValueError(
                f"{self.metrics.title}: the decay branch of step {step} starts from {point}, which is not there any more: "
                f"delete {self.directory} and run the stage again, or leave that step out of pretraining.decay_at_steps"
            )
        self.state.restore(language.read_tensors(point), where=str(point))
        title = f"{self.metrics.title}, decay from step {step}"
        drawn_in = self.directory / TENSORBOARD / f"branch-{step:06d}"
        metrics = step_metrics(self.run, self.run.config.target, done, title, end, self.workers, curves_in=drawn_in, branch=step)
        metrics.resume(self.state.step)
        self.train_branch(end, metrics)
        self.export(folder)
        if self.workers.writes:
            metrics.write()
        metrics.close()
        self.workers.barrier()
        return metrics.rows

    def train_final_branch(self) -> None:
        if self.run.config.pretraining.decay_at_steps:
            path = self.directory / TARGET
            self.state.restore(language.read_tensors(path), where=str(path))
        self.train_branch(self.last_step + self.run.config.pretraining.decay_steps, self.metrics)
        self.export(MODEL)

    def train_branch(self, end: int, metrics: StepMetrics) -> None:
        """From where the state is, with a learning rate that falls to zero."""
        settings, begin = self.run.config.pretraining, self.state.step
        train(
            self.state,
            last_step=end,
            learning_rate=lambda step: linear_decay(step - begin, peak=settings.learning_rate, decay_steps=settings.decay_steps),
            metrics=metrics,
            after_step=partial(self.evaluate_now_and_then, metrics, end),
            **self.shared(),
        )

    def shared(self) -> dict[str, Any]:
        """What all branches have in common."""
        settings, seed, length = self.run.config.pretraining, self.run.config.seed, self.run.config.ingest.sequence_length
        where = self.reader.files[0].parent

        def batch_of(step: int) -> np.ndarray:
            input_ids_BT = self.reader.batch(step - self.first_step, settings.batch_sequences, seed)[1]
            check_tokens(input_ids_BT, length, self.vocab_size, where)
            return input_ids_BT

        return loop_settings(self.run, self.workers) | {
            "batch_of": batch_of,
            "describe_batch": batch_description(self.reader.files, self.first_step, settings.batch_sequences, seed),
        }

    def evaluate_now_and_then(self, metrics: StepMetrics, end: int, step: int) -> None:
        if (step - self.first_step) % self.run.config.pretraining.evaluate_every_steps == 0 or step == end:
            loss, _, _ = mean_token_loss(self.state.model, self.held_out, objective=self.state.loss(), workers=self.workers)
            metrics.add(step, validation_loss=loss)

    def export(self, folder: str) -> None:
        """The weights as `AutoModelForCausalLM` loads them; every worker gives its part."""
        weights = {}
        for name, value in self.state.model.state_dict().items():
            tensor = parallel.whole(value.detach())
            if self.workers.writes:
                weights[name] = tensor.cpu()
        if self.workers.writes:
            language.save(self.state.model, self.directory, folder, weights=weights)

    def discard_branch_points(self) -> None:
        """Delete the checkpoints that branches started from, unless the policy keeps them."""
        settings = self.run.config.pretraining
        for step in settings.decay_at_steps:
            at = self.first_step + step
            if settings.keep_every_steps is None or at % settings.keep_every_steps:
                remove(checkpoint_path(self.directory / TARGET, at))
