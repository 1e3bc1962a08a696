"""LESS (Xia et al. 2024, arXiv 2402.04333) for pretraining: would a step on this sequence go where the validation gradient points?

    score(x) = sum_i w_i cos( P Gamma(x; theta_i), P grad f(theta_i) )

over checkpoints theta_i of a short warm-up on random candidates, with Gamma the step AdamW would make on x alone
(models/gradient_similarity.py), f the validation loss, P a random projection (models/projection.py) and w_i the mean learning rate
before checkpoint i, as a share of the sum. Where it had to be adapted:

- All parameters, not LoRA's: a model that is being pretrained has no adapter.
- The warm-up goes on from the model the round starts from, with its optimizer, at its learning rate, instead of four epochs over 5 %
  of an instruction set. The proxy stands in for a target that has not been trained yet.
- One target: f is the weighted mean over all validation sets, where the paper takes the maximum over subtasks of one benchmark.
- A gradient is projected block by block and forgotten; the paper keeps a store of projected gradients for many targets. With a single
  one known beforehand even the projection is not needed: `less.projection = "none"` is the number it estimates, at the same cost.

Every score takes a forward and a backward pass and the making of all numbers of Gamma, at every checkpoint.
"""

import json
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from upath import UPath

from bliss_ops.lake import write_json

if TYPE_CHECKING:
    import torch

    from bliss_ops.config import ModelConfig, RunConfig
    from bliss_ops.corpus.validation import ValidationRows
    from bliss_ops.models.projection import Projection
    from bliss_ops.selectors import Scorer, SelectorFlops, SelectorInputs
    from bliss_ops.training.metrics import StepMetrics
    from bliss_ops.training.starting import StartingModel
    from bliss_ops.training.state import TrainState

log = logging.getLogger(__name__)

SECTIONS = ("less", "proxy", "target", "pretraining", "compute")
SETTINGS = "less.json"
TARGETS = "validation_gradients.safetensors"
METRICS = "metrics.jsonl"
_STREAM = 0x6C65  # of the candidates that are trained on
_ROWS_PER_PASS = {"cpu": 16, "cuda": 64}  # of the validation set


def fit(inputs: "SelectorInputs", directory: UPath) -> tuple[Sequence[str], dict[str, Any]]:
    """Train the checkpoints, each kept with its optimizer, and take the validation gradient at each; a killed fit goes on.

    Raises:
        ValueError: the loss is not finite, or the model is of another shape than its checkpoint.
    """
    from bliss_ops.corpus import validation
    from bliss_ops.models.gradient_similarity import projected
    from bliss_ops.models.language import write_tensors
    from bliss_ops.training.metrics import StepMetrics

    config, settings = inputs.config, inputs.config.less
    starting, state = _starting_state(inputs)
    first = state.step
    last_steps = [
        first + settings.num_warmup_steps * number // settings.num_checkpoints for number in range(1, settings.num_checkpoints + 1)
    ]
    tokens_per_step = config.pretraining.batch_sequences * config.ingest.sequence_length
    metrics = StepMetrics(directory / METRICS, f"fit {config.name} round {inputs.round_number}", last_steps[-1], tokens_per_step)
    learning_rate = _schedule(config, starting.config)
    guide = validation.read(inputs.validation, "guide")
    sketch = {"kind": settings.projection, "size": settings.projection_size, "entries": settings.sketch_entries, "seed": config.seed}
    projection = _projection(sketch, state.model)
    checkpoints, losses, targets = [], [], {}
    for number, (begin, last) in enumerate(zip([first, *last_steps], last_steps, strict=False), start=1):
        file = f"checkpoint-{number}.safetensors"
        _train(inputs, state, first, last, directory / file, learning_rate, metrics)
        loss, gradients = validation_gradient(state.model, guide)
        targets[file] = projected(projection, gradients, state.model)
        checkpoints.append({"file": file, "learning_rate": float(np.mean([learning_rate(step) for step in range(begin, last)]))})
        losses.append(loss)
        log.info("%s: checkpoint %d of %d, validation loss %.3f", metrics.title, number, len(last_steps), loss)
    write_tensors(directory / TARGETS, targets)
    group = state.optimizer.param_groups[0]
    model = {"shape": starting.config.definition, "vocab_size": inputs.vocab_size, "sequence_length": config.ingest.sequence_length}
    adam = {"betas": group["betas"], "epsilon": group["eps"]}
    write_json(directory / SETTINGS, {**model, "device": config.compute.device, "checkpoints": checkpoints, **adam, "projection": sketch})
    found = {"model": starting.name or "untrained target", "shape": starting.config.shape, "validation_losses": losses}
    return [*targets, TARGETS, SETTINGS, METRICS], found


def load_scorer(directory: UPath) -> "Scorer":
    """The weighted mean of the checkpoints' cosines, in float32 on a CPU (one thread) and bfloat16 matrix products on a GPU."""
    from bliss_ops.config import ComputeConfig
    from bliss_ops.models import language
    from bliss_ops.models.gradient_scorer import GradientScorer
    from bliss_ops.models.gradient_similarity import AdamMoments, CheckpointSimilarity, similarity_to
    from bliss_ops.training.device import choose_device

    settings = json.loads((directory / SETTINGS).read_text())
    device = choose_device(ComputeConfig(device=settings["device"]), num_threads=1)
    sizes = {"vocab_size": settings["vocab_size"], "sequence_length": settings["sequence_length"]}
    targets = language.read_tensors(directory / TARGETS)
    similarities, projection = [], None
    for checkpoint in settings["checkpoints"]:
        file = checkpoint["file"]
        tensors = {name: value.to(device) for name, value in language.read_tensors(directory / file).items()}
        model = language.build(settings["shape"], **sizes, seed=0).to(device)
        model.load_state_dict({name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")})
        moments = {
            name: AdamMoments.of(
                tensors[f"exp_avg.{name}"],
                tensors[f"exp_avg_sq.{name}"],
                int(tensors[f"step.{name}"]),
                betas=settings["betas"],
                epsilon=settings["epsilon"],
            )
            for name, _ in model.named_parameters()
        }
        projection = projection or _projection(settings["projection"], model)
        similarities.append(CheckpointSimilarity(model, moments, similarity_to(targets[file].to(device), projection)))
    rates = [checkpoint["learning_rate"] for checkpoint in settings["checkpoints"]]
    return GradientScorer(similarities, [rate / sum(rates) for rate in rates], device)


def flops(
    config: "RunConfig",
    *,
    vocab_size: int,
    num_sequences: int,
    validation_row_tokens: float | None = None,  # noqa: ARG001 - of the contract; no validation row is counted
) -> "SelectorFlops":
    """Warm-up steps, and for every sequence and checkpoint a forward and a backward pass and the projection of P numbers.

    Counted for the target, unless its warm-up has no steps: then for the proxy, which stands in for it in round 1. Left out are the
    validation gradients (as many passes as there are guide rows, per checkpoint) and the elementwise work, 8 operations per parameter.
    """
    from bliss_ops.models.flops import model_flops
    from bliss_ops.models.language import num_parameters
    from bliss_ops.selectors import SelectorFlops

    settings, length = config.less, config.ingest.sequence_length
    model = config.target if config.target.warmup_steps > 0 else config.proxy
    training = model_flops(model.definition, vocab_size=vocab_size, sequence_length=length).training * length
    additions = {"none": 2, "sparse": settings.sketch_entries, "rademacher": settings.projection_size}[settings.projection]
    projecting = 2.0 * additions * num_parameters(model.definition, vocab_size=vocab_size)
    return SelectorFlops(
        fit=settings.num_warmup_steps * config.pretraining.batch_sequences * training,
        score=settings.num_checkpoints * num_sequences * (training + projecting),
    )


def validation_gradient(model: "torch.nn.Module", guide: "ValidationRows") -> "tuple[float, dict[str, torch.Tensor]]":
    """The validation loss (weighted mean over all tokens) and its plain gradient, by parameter."""
    import torch

    from bliss_ops.corpus.validation import IGNORED, trim_padding
    from bliss_ops.models.token_loss import weighted_loss
    from bliss_ops.training.device import autocast

    device = next(model.parameters()).device
    counts_N = (guide.labels_NT[:, 1:] != IGNORED).sum(1)
    share_N = guide.weight_N * counts_N / (guide.weight_N * counts_N).sum()
    by_length = np.argsort(-counts_N, kind="stable")  # rows of similar length together: what is padding is not computed
    size, total = _ROWS_PER_PASS[device.type], 0.0
    model.zero_grad(set_to_none=True)
    for begin in range(0, len(by_length), size):
        rows = by_length[begin : begin + size]
        input_ids_BT, labels_BT = (
            torch.from_numpy(part).to(device) for part in trim_padding(guide.input_ids_NT[rows], guide.labels_NT[rows])
        )
        with autocast(device):
            loss, _, _ = weighted_loss(model, input_ids_BT, labels_BT, torch.from_numpy(share_N[rows]).to(device))
        torch.autograd.backward(loss)
        total += loss.item()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    return total, gradients


def _starting_state(inputs: "SelectorInputs") -> "tuple[StartingModel, TrainState]":
    """The model the round starts from, under the optimizer of pretraining; with no moments yet where nothing has been trained."""
    from bliss_ops.training.starting import restored, starting_model
    from bliss_ops.training.state import new_state

    config = inputs.config
    model = starting_model(config, inputs.round_number, warmup=inputs.warmup, reference=inputs.reference, has_proxy=True)
    if model.path is None:
        return model, new_state(config, model.config, inputs.vocab_size)
    rate, decay = config.pretraining.learning_rate, config.pretraining.weight_decay
    return model, restored(model, config, inputs.vocab_size, learning_rate=rate, weight_decay=decay)


def _schedule(config: "RunConfig", model: "ModelConfig") -> Callable[[int], float]:
    """The learning rate that the model has been trained with, by step of its whole life."""
    from bliss_ops.training.schedules import warmup_stable

    peak = config.proxy.warmup_learning_rate if model is config.proxy else config.pretraining.learning_rate
    return lambda step: warmup_stable(step, peak=peak, warmup_steps=config.pretraining.warmup_steps)


def _train(
    inputs: "SelectorInputs",
    state: "TrainState",
    first: int,
    last: int,
    checkpoint: UPath,
    learning_rate: Callable[[int], float],
    metrics: "StepMetrics",
) -> None:
    """Up to step `last`, which ends in `checkpoint`; the file may hold an earlier step, of a fit that was killed."""
    from bliss_ops.models.language import read_tensors, write_tensors
    from bliss_ops.training.loop import train

    settings = inputs.config.pretraining
    if checkpoint.is_file():
        state.restore(read_tensors(checkpoint))
        metrics.resume(state.step)
        log.info("%s: going on after step %d", metrics.title, state.step)

    def save(step: int) -> None:
        if step == last or step % settings.checkpoint_every_steps == 0:
            metrics.write()
            write_tensors(checkpoint, state.tensors())

    train(
        state,
        lambda step: inputs.candidates.batch(step - first, settings.batch_sequences, inputs.config.seed ^ _STREAM)[1],
        last,
        learning_rate=learning_rate,
        micro_batch_sequences=settings.micro_batch_sequences,
        max_gradient_norm=settings.max_gradient_norm,
        metrics=metrics,
        after_step=save,
    )


def _projection(sketch: dict[str, Any], model: "torch.nn.Module") -> "Projection | None":
    """What `less.projection` asks for, for gradients of that model."""
    from bliss_ops.models.projection import CountSketch, Rademacher

    parameters = list(model.parameters())
    if sketch["kind"] == "none":
        return None
    if sketch["kind"] == "rademacher":
        return Rademacher(sketch["size"], seed=sketch["seed"])
    num_numbers, device = sum(parameter.numel() for parameter in parameters), parameters[0].device
    return CountSketch(num_numbers, sketch["size"], entries=sketch["entries"], seed=sketch["seed"], device=device)
