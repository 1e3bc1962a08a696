"""What one outer step of bilevel training costs: beside the published algorithm and beside a plain weighted training step.

    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/bilevel.py                  # under three minutes on one CPU thread
    python benchmarks/bilevel.py --grid full --device cuda                    # needs torch, transformers, numpy, pyarrow, pydantic only

All do one AdamW step of the proxy on the same weighted batch; the outer steps also update the score model. The plain step has the
product's blockwise loss; `ordinary` is the same with cross-entropy on full logits, as most training loops have it. They run in turn
(reference, plain, ours, reference, ...) in one process, so that a slow minute of the machine hits all of them. Validation rows are a
quarter of the batch, the product's default proportion, and as long as the candidates, the worst case: padded rows cost less. On one CPU
thread the clock is the process's CPU time, which a neighbour on the machine disturbs less than wall time; elsewhere it is wall time,
synchronised. Peak memory is what two steps add to the loaded models, optimizer moments included, each in a fresh process. Before anything
is timed, both hypergradients are compared in float64. Ends with one line of JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # a bare machine has a copy of the repository, not an installation

import torch

from benchmarks.reference_algorithm import ReferenceState, hypergradient, losses, reference_outer_step
from bliss_ops.bilevel.hypergradient import ROUTES, double_backward, score_gradient
from bliss_ops.bilevel.lower_level import LowerLevel
from bliss_ops.bilevel.objective import sample_weights
from bliss_ops.bilevel.outer_step import outer_step
from bliss_ops.bilevel.state import Batch, BilevelState, ValidationBatch
from bliss_ops.bilevel.vectors import norm
from bliss_ops.config import BilevelConfig
from bliss_ops.models import language
from bliss_ops.models.score import ScoreModel
from bliss_ops.models.shapes import shape
from bliss_ops.models.token_loss import weighted_loss
from bliss_ops.training.device import autocast
from bliss_ops.training.state import TrainState, adamw

VOCABULARY = {"tiny-neox-128": 2048}  # the named shapes have their published 50,304
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12}  # dense bfloat16, per second, from the data sheet
SOLVERS: dict[str, dict[str, Any]] = {
    "lookahead": {},
    "adam_diagonal": {"ihvp": "adam_diagonal"},
    "identity": {"ihvp": "identity"},
    "warm_start": {"ihvp": "warm_start"},
    "conjugate_gradient": {"ihvp": "conjugate_gradient", "num_solver_steps": 3},
}
OTHER_ROUTES = {
    f"adam_diagonal, {route}": {"ihvp": "adam_diagonal", "alignment": route} for route in ROUTES if route != "central_difference"
}
VARIANTS = ("reference", "ordinary", "plain", "ours")
RATIOS = ("speedup_vs_reference", "plain_steps", "reference_plain_steps", "ordinary_plain_steps", "memory_ratio")
TOLERANCE = 1e-8  # between the two hypergradients in float64


@dataclass(frozen=True)
class Size:
    """One row of the grid."""

    proxy: str
    batch_sequences: int
    sequence_length: int
    validation_tokens: int = 1024  # longest validation row

    @property
    def validation_rows(self) -> int:
        return max(1, self.batch_sequences // 4)


def grid(name: str, device: torch.device) -> list[Size]:
    """Batch, sequence length and proxy grow one at a time; the last row is the headline."""
    if name == "quick":
        return [Size("tiny-neox-128", 8, 128), Size("tiny-neox-128", 16, 128), Size("pythia-14m", 8, 128)]
    batches = (4, 8, 16, 32)
    if device.type == "cuda":
        rows = [Size(proxy, batch, 1024) for proxy in ("pythia-14m", "pythia-31m", "pythia-160m") for batch in batches[:3]]
        return [*rows, *(Size("pythia-31m", 16, length) for length in (256, 512)), Size("pythia-31m", 32, 1024)]
    rows = [Size(proxy, batch, 128) for proxy in ("tiny-neox-128", "pythia-31m") for batch in batches]
    return [*rows, *(Size("pythia-14m", 8, length) for length in (64, 256, 512)), *(Size("pythia-14m", batch, 128) for batch in batches)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--grid", choices=("quick", "full"), default="quick")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--validation-tokens", type=int, default=1024, help="longest validation row; the default is never shorter than T")
    parser.add_argument("--memory-of", choices=VARIANTS, help=argparse.SUPPRESS)  # what a fresh process is asked for
    parser.add_argument("--size", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    name = ("cuda" if torch.cuda.is_available() else "cpu") if arguments.device == "auto" else arguments.device
    device = torch.device(name)
    if device.type == "cpu":
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    if arguments.memory_of:
        print(json.dumps(peak_bytes(arguments.memory_of, Size(**json.loads(arguments.size)), device)))
        return 0

    error = hypergradient_error()
    print(f"hypergradients of the two algorithms at the same z, float64: relative error {error:.1e}")
    if error > TOLERANCE:
        raise SystemExit(f"the two hypergradients differ by {error:.1e}, more than {TOLERANCE:g}: nothing was timed")
    print("proxy           B    T  rows of f | seconds: reference ordinary    plain     ours | x reference  plain steps (reference's)  MiB")
    rows = []
    sizes = [replace(size, validation_tokens=arguments.validation_tokens) for size in grid(arguments.grid, device)]
    for size in sizes:
        with_memory = arguments.grid == "full" or size == sizes[-1]
        rows.append(measure(size, device, arguments.repeats, with_memory=with_memory))
        print_row(rows[-1])
    batch, length = (8 if arguments.grid == "full" else 4), (1024 if device.type == "cuda" else 64)
    small = replace(sizes[-1], proxy="pythia-14m", batch_sequences=batch, sequence_length=length)
    result = {
        **{key: rows[-1][key] for key in RATIOS},
        "model_flops_utilisation": rows[-1]["model_flops_utilisation"],
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "precision": "bfloat16 autocast" if device.type == "cuda" else "float32",
        "validation_batch": f"a quarter of the batch, rows of at most {arguments.validation_tokens} tokens",
        "hypergradient_error": error,
        "solvers_and_routes": compare(small, SOLVERS | OTHER_ROUTES, device, arguments.repeats),
        "rows": rows,
    }
    print(json.dumps(result))
    return 0


def measure(size: Size, device: torch.device, repeats: int, *, with_memory: bool) -> dict[str, Any]:
    """One row: the three variants in turn, their peak memory when asked for, and the ratios."""
    seconds = timed({variant: step_of(variant, size, device) for variant in VARIANTS}, device, repeats)
    best = {variant: min(times) for variant, times in seconds.items()}
    memory = {variant: fresh_peak_bytes(variant, size, device) for variant in VARIANTS} if with_memory else None
    peak = next((flops for name, flops in PEAK_FLOPS.items() if device.type == "cuda" and name in torch.cuda.get_device_name()), None)
    return {
        **asdict(size),
        "validation_rows": size.validation_rows,
        "best_seconds": best,
        "median_seconds": {variant: statistics.median(times) for variant, times in seconds.items()},
        "speedup_vs_reference": best["reference"] / best["ours"],
        "plain_steps": best["ours"] / best["plain"],
        "reference_plain_steps": best["reference"] / best["plain"],
        "ordinary_plain_steps": best["ours"] / best["ordinary"],
        "peak_memory_mib": {variant: value / 2**20 for variant, value in memory.items()} if memory else None,
        "memory_ratio": memory["reference"] / memory["ours"] if memory else None,
        "model_flops_utilisation": step_flops(size) / best["ours"] / peak if peak else None,
    }


def compare(size: Size, settings: dict[str, dict[str, Any]], device: torch.device, repeats: int) -> dict[str, Any]:
    """Plain steps that our outer step costs under each of several settings, at one size."""
    steps = {"plain": step_of("plain", size, device)} | {name: step_of("ours", size, device, **values) for name, values in settings.items()}
    seconds = timed(steps, device, repeats)
    plain_steps = {name: min(seconds[name]) / min(seconds["plain"]) for name in settings}
    for name, value in plain_steps.items():
        print(f"  {name:20s} {value:5.2f} plain steps ({size.proxy}, B {size.batch_sequences}, T {size.sequence_length})")
    return {"size": asdict(size), "plain_steps": plain_steps}


def timed(steps: dict[str, Callable[[], None]], device: torch.device, repeats: int) -> dict[str, list[float]]:
    """Seconds of each step, `repeats` times in turn after one round that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(repeats + 1):
        for name, step in steps.items():
            if number == 0 and name == "reference" and device.type == "cpu":
                continue  # nothing to compile or to load there, and the slowest by far
            begin = now(device)
            step()
            if number:
                seconds[name].append(now(device) - begin)
    return seconds


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def step_of(variant: str, size: Size, device: torch.device, **settings: Any) -> Callable[[], None]:
    """A function that does one step of the variant on its own models; equal seeds give all variants the same weights and batches."""
    config = BilevelConfig(batch_sequences=size.batch_sequences, validation_batch_sequences=size.validation_rows, **settings)
    vocab_size = VOCABULARY.get(size.proxy, 50_304)
    generator = torch.Generator().manual_seed(0)
    rows = size.batch_sequences + size.validation_rows
    tokens = torch.randint(0, vocab_size, (rows, size.sequence_length), generator=generator).to(device)
    input_ids_BT, validation_ids_BT = tokens[: size.batch_sequences], tokens[size.batch_sequences :, : size.validation_tokens]
    proxy_model = language.build(size.proxy, vocab_size=vocab_size, sequence_length=size.sequence_length, seed=0).to(device)
    proxy = TrainState(proxy_model, adamw(proxy_model, config.proxy_learning_rate, 0.0))
    if variant in ("plain", "ordinary"):
        weight_B = torch.full((size.batch_sequences,), 1 / size.batch_sequences, device=device)
        one_step = plain_step if variant == "plain" else ordinary_step
        return lambda: one_step(proxy, input_ids_BT, weight_B)
    backbone = language.build(size.proxy, vocab_size=vocab_size, sequence_length=size.sequence_length, seed=1)
    score_model = ScoreModel(backbone, config.score_head, pooling=config.score_pooling, num_heads=config.num_pooling_heads).to(device)
    score = TrainState(score_model, adamw(score_model, config.score_learning_rate, 0.0))
    if variant == "reference":
        reference = ReferenceState(proxy, score)
        return lambda: reference_outer_step(reference, input_ids_BT, validation_ids_BT)
    state = BilevelState(proxy, score)
    batch = Batch(input_ids_BT, size.batch_sequences)
    weight_N = torch.full((size.validation_rows,), 1 / size.validation_rows, device=device)
    validation = ValidationBatch(validation_ids_BT, validation_ids_BT, weight_N)

    def step() -> None:
        outer_step(state, [], batch, validation, config)

    return step


def plain_step(state: TrainState, input_ids_BT: torch.Tensor, weight_B: torch.Tensor) -> None:
    """One AdamW step on the weighted loss with the product's blockwise loss."""
    with autocast(input_ids_BT.device):
        loss, _, _ = weighted_loss(state.model, input_ids_BT, input_ids_BT, weight_B)
    torch.autograd.backward(loss)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)


def ordinary_step(state: TrainState, input_ids_BT: torch.Tensor, weight_B: torch.Tensor) -> None:
    """The same with the whole batch's logits at once."""
    torch.autograd.backward((weight_B * losses(state.model, input_ids_BT)).sum())
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)


def peak_bytes(variant: str, size: Size, device: torch.device) -> int:
    """What a step needs beside the loaded models; the second one, which has all that is carried from the first."""
    step = step_of(variant, size, device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        step()
        return torch.cuda.max_memory_allocated() - before
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is that of building the models
    before = memory_status("VmRSS")
    step()
    step()
    return memory_status("VmHWM") - before


def memory_status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) * 1024


def fresh_peak_bytes(variant: str, size: Size, device: torch.device) -> int:
    """`peak_bytes` in a process of its own."""
    command = [sys.executable, __file__, "--device", device.type, "--memory-of", variant, "--size", json.dumps(asdict(size))]
    return int(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))


def step_flops(size: Size) -> float:
    """Model FLOPs of our outer step with the default solver: matrix products and attention; a backward pass costs two forward passes."""
    sizes = language.transformers_config(shape(size.proxy), vocab_size=50_304, sequence_length=size.sequence_length)
    matrices = sizes.num_hidden_layers * (4 * sizes.hidden_size**2 + 2 * sizes.hidden_size * sizes.intermediate_size)
    attention = sizes.num_hidden_layers * 4 * size.sequence_length * sizes.hidden_size
    backbone = 2 * matrices + attention  # forward, per token
    whole = backbone + 2 * VOCABULARY.get(size.proxy, 50_304) * sizes.hidden_size
    candidates = size.batch_sequences * size.sequence_length
    validation = size.validation_rows * min(size.sequence_length, size.validation_tokens)
    return 3.0 * whole * validation + (1 + 3) * whole * candidates + 3 * backbone * candidates


def hypergradient_error() -> float:
    """Relative difference between the reference's hypergradient and ours, the same z, float64, a small model."""
    torch.manual_seed(0)
    config = BilevelConfig(min_effective_sample_size=0.0)
    proxy = language.build("tiny-neox-64", vocab_size=64, sequence_length=16, seed=0).double()
    score = ScoreModel(language.build("tiny-neox-64", vocab_size=64, sequence_length=16, seed=1), pooling="attention").double()
    torch.nn.init.normal_(score.head.weight)  # a head at zero would give equal weights and no gradient below it
    input_ids_BT = torch.randint(0, 64, (5, 16))
    z = [torch.randn_like(parameter) for parameter in proxy.parameters()]
    score_B = score(input_ids_BT)
    lower = LowerLevel(proxy, input_ids_BT, len(input_ids_BT), config)
    found = double_backward(lower, sample_weights(score_B.detach(), config), z)
    coefficient_B, _ = score_gradient(score_B, lambda leaf_B: sample_weights(leaf_B, config), found.alignment_b)
    ours = torch.autograd.grad(score_B, list(score.parameters()), coefficient_B)
    theirs = hypergradient(proxy, score, input_ids_BT, z)
    return norm([a - b for a, b in zip(ours, theirs, strict=True)]) / norm(theirs)


def print_row(row: dict[str, Any]) -> None:
    best, memory = row["best_seconds"], row["peak_memory_mib"]
    print(
        f"{row['proxy']:14s} {row['batch_sequences']:3d} {row['sequence_length']:4d}  {row['validation_rows']:9d} |"
        f"          {best['reference']:9.3f} {best['ordinary']:8.3f} {best['plain']:8.3f} {best['ours']:8.3f} |"
        f" {row['speedup_vs_reference']:11.2f}  {row['plain_steps']:11.2f} ({row['reference_plain_steps']:.2f})"
        + (f"  {' / '.join(f'{memory[variant]:.0f}' for variant in VARIANTS)}  {row['memory_ratio']:.2f}" if memory else "")
        + (f"  MFU {row['model_flops_utilisation']:.1%}" if row["model_flops_utilisation"] else ""),
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
