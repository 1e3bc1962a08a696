"""What a pretraining step costs beside the transformers Trainer and beside the loop that most people would write.

    .venv/bin/python benchmarks/pretrain.py                                                              # two minutes on one CPU core
    .venv/bin/python benchmarks/pretrain.py --shape pythia-14m --sequence-length 256 --batch-sequences 8 --steps 3
    .venv/bin/python benchmarks/pretrain.py --shape pythia-410m --sequence-length 1024 --batch-sequences 512 --micro-batch-sequences 32 \
        --compile --steps 10                                                                             # on a GPU

Three ways over the same sequences from the same weights with the same optimizer, in turn in one process:
    ours      `training.loop.train` as the pretrain stage calls it: batches from Parquet, read ahead, metrics, finiteness looked at
    trainer   transformers' Trainer: rows in memory and in order, nothing logged or saved
    plain     forward with labels, backward, clip, step; rows in memory, and no step waits for its loss
Their losses are compared step by step first, then each goes on with its own model. The two rivals have it easier than in life: their
rows are in memory. On a CPU the process is pinned to one core and the clock is its CPU time, which neighbours disturb little; so the
thread that reads ahead is paid for. On a GPU the clock is wall time. The data loader is measured alone, too, at T = 1024, beside what a
410M model on an H200 would take from it. Ends with one line of JSON.
"""

import argparse
import itertools
import json
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # a bare machine has a copy of the repository, not an installation

import numpy as np
import torch
from upath import UPath

from bliss_ops import schemas
from bliss_ops.corpus.packing import _TOKENS, _sequence_table
from bliss_ops.corpus.parquet import parquet_file
from bliss_ops.corpus.reading import SequenceReader
from bliss_ops.lake import shard_file
from bliss_ops.models import language
from bliss_ops.models.flops import model_flops
from bliss_ops.models.shapes import shape
from bliss_ops.training import parallel
from bliss_ops.training.device import autocast, known_peak_flops
from bliss_ops.training.loop import train
from bliss_ops.training.metrics import StepMetrics
from bliss_ops.training.prefetch import prefetched
from bliss_ops.training.state import TrainState, adamw

LEARNING_RATE, WEIGHT_DECAY, MAX_GRADIENT_NORM = 1e-3, 0.1, 1.0
VOCABULARY = 2048  # of tiny shapes
NUM_AHEAD = 2
CHECKED_STEPS = 5
UNTIMED_STEPS = 1  # of every turn, since the others begin anew there: data loaders, wrappers
LOADER = {"sequence_length": 1024, "batch_sequences": 512, "num_sequences": 160 * schemas.SEQUENCES_PER_ROW_GROUP}  # 42M tokens
APPETITE = {"shape": "pythia-410m", "teraflops": 989.0, "mfu": 0.45}  # of an H200


def main() -> None:
    arguments = parse_arguments()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        torch.set_num_threads(1)
    logging.getLogger("bliss_ops").setLevel(logging.WARNING)
    turn_steps = UNTIMED_STEPS + arguments.steps
    num_steps = CHECKED_STEPS + arguments.repetitions * turn_steps
    vocab_size = shape(arguments.shape).vocab_size or VOCABULARY
    with tempfile.TemporaryDirectory(prefix="bliss-benchmark-") as directory:
        files = write_sequences(UPath(directory) / "subset", vocab_size, arguments.sequence_length, num_steps * arguments.batch_sequences)
        ways: dict[str, Way] = {name: kind(arguments, device, files, directory) for name, kind in WAYS.items()}
        for way in ways.values():
            way.turn(0, CHECKED_STEPS)
        check_losses({name: way.losses for name, way in ways.items()}, device)
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for repetition in range(arguments.repetitions):
            for name, way in ways.items():
                seconds[name].append(way.turn(CHECKED_STEPS + repetition * turn_steps, turn_steps))
                rate = arguments.steps * arguments.batch_sequences * arguments.sequence_length / seconds[name][-1]
                print(f"{repetition} {name:8} {rate:12,.0f} tok/s", flush=True)
        loader = measure_loader(UPath(directory) / "loader", device)
    report(arguments, device, seconds, loader, vocab_size)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="tiny-neox-96")
    parser.add_argument("--sequence-length", type=int, default=128)
    parser.add_argument("--batch-sequences", type=int, default=32, help="of an optimizer step")
    parser.add_argument("--micro-batch-sequences", type=int, help="of a forward pass; all of a step unless given")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of each turn")
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="torch.compile the model in all three")
    arguments = parser.parse_args()
    arguments.micro_batch_sequences = arguments.micro_batch_sequences or arguments.batch_sequences
    if arguments.batch_sequences % arguments.micro_batch_sequences:
        parser.error("--micro-batch-sequences must divide --batch-sequences: the Trainer knows no other accumulation")
    return arguments


class Way:
    """A model in training: `turn` does steps and says how long all but the first took; `losses` are those of the last turn."""

    def __init__(self, arguments: argparse.Namespace, device: torch.device, files: list[UPath], directory: str) -> None:
        self.arguments, self.device, self.directory = arguments, device, directory
        self.micro, self.batch = arguments.micro_batch_sequences, arguments.batch_sequences
        self.reader = SequenceReader(files, read_ahead=True)
        self.losses: list[float] = []
        self.model = language.build(
            arguments.shape, vocab_size=shape(arguments.shape).vocab_size or VOCABULARY, sequence_length=arguments.sequence_length, seed=0
        )
        self.prepare()
        self.model.train()

    def prepare(self) -> None:
        """Model to the device, compiled where asked for; optimizer."""
        self.model.to(self.device)
        self.optimizer = adamw(self.model, LEARNING_RATE, WEIGHT_DECAY)

    def turn(self, first_step: int, num_steps: int) -> float:
        raise NotImplementedError

    def rows(self, first_step: int, num_steps: int) -> np.ndarray:
        return np.concatenate([self.reader.batch(step, self.batch, 0)[1] for step in range(first_step, first_step + num_steps)])

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter()
        return time.process_time()


class Ours(Way):
    def prepare(self) -> None:
        objective = parallel.spread(self.model, self.device, compile_blocks=self.arguments.compile)
        self.state = TrainState(self.model, adamw(self.model, LEARNING_RATE, WEIGHT_DECAY), objective=objective)

    def turn(self, first_step: int, num_steps: int) -> float:
        begun = [0.0]
        metrics = StepMetrics(UPath(self.directory) / "metrics.jsonl", "benchmark", 1 << 30, self.batch * self.arguments.sequence_length)

        def after_step(step: int) -> None:
            if step == first_step + UNTIMED_STEPS:
                begun[0] = self.now()

        train(
            self.state,
            lambda step: self.reader.batch(step, self.batch, 0)[1],
            first_step + num_steps,
            learning_rate=lambda _step: LEARNING_RATE,
            micro_batch_sequences=self.micro,
            max_gradient_norm=MAX_GRADIENT_NORM,
            metrics=metrics,
            after_step=after_step,
            num_batches_ahead=NUM_AHEAD,
        )
        seconds = self.now() - begun[0]
        self.losses = [row["loss"] for row in metrics.rows]
        return seconds


class Plain(Way):
    def prepare(self) -> None:
        super().prepare()
        if self.arguments.compile:
            self.model.compile(dynamic=False)

    def turn(self, first_step: int, num_steps: int) -> float:
        rows, losses, begun = self.rows(first_step, num_steps), [], 0.0
        for step in range(num_steps):
            if step == UNTIMED_STEPS:
                begun = self.now()
            total = torch.zeros((), device=self.device)
            batch = torch.from_numpy(rows[step * self.batch : (step + 1) * self.batch]).to(self.device)
            for tokens in batch.split(self.micro):
                with autocast(self.device):
                    loss = self.model(input_ids=tokens, labels=tokens).loss * (len(tokens) / self.batch)
                loss.backward()
                total += loss.detach()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRADIENT_NORM)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            losses.append(total)
        seconds = self.now() - begun
        self.losses = [float(loss) for loss in losses]
        return seconds


class Trainer(Way):
    def turn(self, first_step: int, num_steps: int) -> float:
        import transformers

        way, losses, begun = self, [], [0.0]

        class Recording(transformers.Trainer):
            def training_step(self, *arguments: Any, **keywords: Any) -> torch.Tensor:
                losses.append(super().training_step(*arguments, **keywords))
                return losses[-1]

        class Clock(transformers.TrainerCallback):
            def on_step_end(self, _arguments: Any, state: Any, _control: Any, **_keywords: Any) -> None:
                if state.global_step == UNTIMED_STEPS:
                    begun[0] = way.now()

        settings = transformers.TrainingArguments(
            output_dir=f"{self.directory}/trainer",
            per_device_train_batch_size=self.micro,
            gradient_accumulation_steps=self.batch // self.micro,
            max_steps=num_steps,
            max_grad_norm=MAX_GRADIENT_NORM,
            bf16=self.device.type == "cuda",
            use_cpu=self.device.type == "cpu",
            torch_compile=self.arguments.compile,
            train_sampling_strategy="sequential",
            dataloader_num_workers=2 if self.device.type == "cuda" else 0,
            dataloader_pin_memory=self.device.type == "cuda",
            remove_unused_columns=False,
            logging_strategy="no",
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
        )
        constant = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda _step: 1.0)
        trainer = Recording(
            self.model,
            settings,
            train_dataset=Rows(self.rows(first_step, num_steps)),
            data_collator=transformers.default_data_collator,
            optimizers=(self.optimizer, constant),
            callbacks=[Clock()],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train()
        seconds = self.now() - begun[0]
        per_step = self.batch // self.micro
        self.losses = [float(sum(losses[step * per_step : (step + 1) * per_step])) for step in range(num_steps)]
        return seconds


class Rows(torch.utils.data.Dataset[Any]):
    """Sequences that are in memory."""

    def __init__(self, tokens: np.ndarray) -> None:
        self.tokens = torch.from_numpy(tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[row], "labels": self.tokens[row]}


WAYS: dict[str, Callable[..., Way]] = {"ours": Ours, "trainer": Trainer, "plain": Plain}


def check_losses(losses: dict[str, list[float]], device: torch.device) -> None:
    """The three compute the same, or there is nothing to compare: to rounding on a CPU, to that of bfloat16 on a GPU."""
    for step, values in enumerate(zip(*losses.values(), strict=True)):
        print(f"step {step + 1}: " + ", ".join(f"{name} {value:.6f}" for name, value in zip(losses, values, strict=True)))
    for name, values in losses.items():
        assert len(values) == CHECKED_STEPS
        np.testing.assert_allclose(values, losses["plain"], rtol=2e-5 if device.type == "cpu" else 5e-3, err_msg=name)


def write_sequences(directory: UPath, vocab_size: int, length: int, num_sequences: int, num_shards: int = 4) -> list[UPath]:
    """Parquet as `pack` writes it, with tokens as frequent as words are (rank r as 1 / r)."""
    schema, group = schemas.sequences(length, vocab_size), schemas.SEQUENCES_PER_ROW_GROUP
    ends = np.cumsum(1 / np.arange(1, vocab_size + 1))
    files = [shard_file(directory, shard) for shard in range(num_shards)]
    for shard, path in enumerate(files):
        draws = np.random.default_rng(shard)
        with parquet_file(path, schema, tokens=_TOKENS) as file:
            for first in range(0, -(-num_sequences // num_shards), group):
                tokens = np.searchsorted(ends, draws.random(group * length) * ends[-1])
                file.write_table(_sequence_table(tokens, shard * 10_000_000 + first, schema))
    return files


def measure_loader(directory: UPath, device: torch.device) -> dict[str, float]:
    """Tokens a second of reader and prefetch alone, and what the edge of a block costs without and with reading ahead."""
    length, batch, total = (LOADER[name] for name in ("sequence_length", "batch_sequences", "num_sequences"))
    files = write_sequences(directory, 50_304, length, total)
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    reader = SequenceReader(files, read_ahead=True)
    num_steps = reader.num_sequences // batch
    rates = []
    for epoch in range(3):
        begun = clock()
        steps = range(epoch * num_steps, (epoch + 1) * num_steps)
        with prefetched(lambda step: reader.batch(step, batch, 0)[1], steps[0], steps[-1] + 1, num_ahead=NUM_AHEAD, pin=False) as batches:
            for step in steps:
                batches(step)
        rates.append(num_steps * batch * length / (clock() - begun))
    begun = clock()
    SequenceReader(files).batch(0, 1, 0)
    return {"tokens_per_second": statistics.median(rates), "block_seconds": clock() - begun}


def report(
    arguments: argparse.Namespace, device: torch.device, seconds: dict[str, list[float]], loader: dict[str, float], vocab_size: int
) -> None:
    tokens = arguments.steps * arguments.batch_sequences * arguments.sequence_length
    rate = {name: tokens / statistics.median(values) for name, values in seconds.items()}
    flops = model_flops(arguments.shape, vocab_size=vocab_size, sequence_length=arguments.sequence_length).training
    peak = known_peak_flops(torch.cuda.get_device_name()) if device.type == "cuda" else None
    eater = model_flops(APPETITE["shape"], vocab_size=50_277, sequence_length=LOADER["sequence_length"]).training
    appetite = APPETITE["mfu"] * APPETITE["teraflops"] * 1e12 / eater
    result = {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else "cpu, one core",
        "shape": arguments.shape,
        "sequence_length": arguments.sequence_length,
        "batch_sequences": arguments.batch_sequences,
        "micro_batch_sequences": arguments.micro_batch_sequences,
        "compile": arguments.compile,
        "ratio_vs_trainer": round(paired(seconds["trainer"], seconds["ours"]), 3),
        "ratio_vs_plain": round(paired(seconds["plain"], seconds["ours"]), 3),
        "mfu": round(rate["ours"] * flops / peak, 4) if peak else None,
        **{f"{name}_tokens_per_second": round(value) for name, value in rate.items()},
        "model_gigaflops": round(rate["ours"] * flops / 1e9, 1),
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
        "loader_tokens_per_second": round(loader["tokens_per_second"]),
        "loader_block_seconds": round(loader["block_seconds"], 3),
        "h200_appetite_tokens_per_second": round(appetite),
        "loader_vs_appetite": round(loader["tokens_per_second"] / appetite, 1),
    }
    spread = {name: [round(tokens / value) for value in values] for name, values in seconds.items()}
    print("tokens/s of every turn:", ", ".join(itertools.chain(f"{name} {values}" for name, values in spread.items())))
    print(json.dumps(result))


def paired(numerators: list[float], denominators: list[float]) -> float:
    """Median ratio of what ran one after the other."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


if __name__ == "__main__":
    main()
