"""The state of one model in training: weights, AdamW moments, step; written as safetensors, restored exactly.

What is written does not depend on how the model is spread over workers: whole tensors under the model's own names, so that a job can
go on with another number of workers and another sharding.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bliss_ops.config import ModelConfig, RunConfig
from bliss_ops.models import language
from bliss_ops.training import parallel
from bliss_ops.training.device import choose_device
from bliss_ops.training.workers import ALONE, Workers

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from upath import UPath

log = logging.getLogger(__name__)

PROXY = "proxy.safetensors"
TARGET = "state.safetensors"  # in the warm-up and in every round, so a reference model is read the same way in all of them
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass
class TrainState:
    """A model with its optimizer and the number of optimizer steps done."""

    model: nn.Module
    optimizer: torch.optim.AdamW
    step: int = 0
    objective: nn.Module | None = None  # the model over the workers of the job (training/parallel.py); None: this process alone

    def loss(self) -> nn.Module:
        """What is called for the loss of a micro-batch, like `parallel.Objective`."""
        if self.objective is None:
            self.objective = parallel.Objective(self.model)
        return self.objective

    def each_tensor(self, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
        """Everything needed to go on exactly, name by name; of a sharded model one whole tensor at a time, and all workers must ask."""
        for name, value in self.model.state_dict().items():
            yield f"{prefix}model.{name}", parallel.whole(value.detach())
        for name, parameter in self.model.named_parameters():
            for moment, value in self.optimizer.state.get(parameter, {}).items():
                yield f"{prefix}{moment}.{name}", parallel.whole(value)
        yield f"{prefix}num_steps", torch.tensor(self.step)

    def tensors(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """Everything needed to go on exactly, by name."""
        return dict(self.each_tensor(prefix))

    def restore(self, tensors: dict[str, torch.Tensor], prefix: str = "", *, where: str = "the checkpoint") -> None:
        """Take over what `tensors` wrote, in place and whole: what is not there is as in a new optimizer.

        Raises:
            ValueError: it belongs to a model of another shape, or is no checkpoint; the message names `where` it is from.
        """
        if f"{prefix}num_steps" not in tensors:
            raise ValueError(f"{where} holds no training state: it has {len(tensors)} tensors, but not {prefix}num_steps")
        _load_weights(self.model, tensors, prefix, where=where)
        for name, parameter in self.model.named_parameters():
            moments: dict[str, Any] = {moment: tensors.get(f"{prefix}{moment}.{name}") for moment in MOMENTS}
            self.optimizer.state.pop(parameter, None)
            if all(value is not None for value in moments.values()):
                # a fused optimizer counts its steps on the parameter's device
                self.optimizer.state[parameter] = {key: parallel.placed_like(value, parameter).clone() for key, value in moments.items()}
        self.step = int(tensors[f"{prefix}num_steps"])

    def root_mean_squares(self) -> list[torch.Tensor] | None:
        """Usual size of the gradient, the root of its bias-corrected second moment, in new tensors; None before the first step."""
        state, beta = self.optimizer.state, self.optimizer.param_groups[0]["betas"][1]
        moments = [state[parameter] for parameter in self.model.parameters() if parameter in state]
        if not moments:
            return None
        num_updates = float(moments[0]["step"])  # the same for all; asking each would wait for a GPU every time
        values = torch._foreach_div([moment["exp_avg_sq"] for moment in moments], 1 - beta**num_updates)  # noqa: SLF001
        torch._foreach_sqrt_(values)
        return list(values)


def new_model(config: RunConfig, model_config: ModelConfig, vocab_size: int) -> "PreTrainedModel":
    """A freshly initialised model of the run's seed, on the run's device.

    Raises:
        ValueError: the tokenizer's vocabulary does not fit the shape.
    """
    return _build(config, model_config, vocab_size).to(choose_device(config.compute))


def new_state(config: RunConfig, model_config: ModelConfig, vocab_size: int, workers: Workers = ALONE) -> TrainState:
    """`new_model` over the workers, with the optimizer of pretraining.

    Raises:
        ValueError: the tokenizer's vocabulary does not fit the shape.
    """
    settings, device = config.pretraining, choose_device(config.compute)
    model = _build(config, model_config, vocab_size)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    sharding = parallel.choose_sharding(settings.sharding, num_parameters, device, workers)
    objective = parallel.spread(
        model,
        device,
        workers,
        sharding=sharding,
        activation_checkpointing=settings.activation_checkpointing,
        compile_blocks=config.compute.compile,
    )
    if workers.count > 1:
        log.info("%s parameters over %d workers, %s", f"{num_parameters:,}", workers.count, sharding)
    return TrainState(model, adamw(model, settings.learning_rate, settings.weight_decay), objective=objective)


def load_reference(config: RunConfig, vocab_size: int, directory: "UPath") -> nn.Module:
    """The target's current checkpoint (of the warm-up or of a round), frozen."""
    model: nn.Module = new_model(config, config.target, vocab_size)
    _load_weights(model, language.read_tensors(directory / TARGET), where=str(directory / TARGET))
    return model.eval().requires_grad_(False)


def adamw(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with betas 0.9/0.95; only matrices decay. Fused: one pass over memory, a third of the time of the default on a CPU too."""
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=learning_rate, betas=(0.9, 0.95), eps=1e-8, fused=True)


def step_with(optimizer: torch.optim.Optimizer, parameters: Sequence[torch.Tensor], gradient: Sequence[torch.Tensor]) -> None:
    """One optimizer step with a gradient computed elsewhere."""
    for parameter, value in zip(parameters, gradient, strict=True):
        parameter.grad = value
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def _build(config: RunConfig, model_config: ModelConfig, vocab_size: int) -> "PreTrainedModel":
    return language.build(model_config.definition, vocab_size=vocab_size, sequence_length=config.ingest.sequence_length, seed=config.seed)


def _load_weights(model: nn.Module, tensors: dict[str, torch.Tensor], prefix: str = "", *, where: str = "the checkpoint") -> None:
    here = model.state_dict()
    there = {name: tensors.get(f"{prefix}model.{name}") for name in here}
    unknown = [name for name in tensors if name.startswith(f"{prefix}model.") and name.removeprefix(f"{prefix}model.") not in here]
    wrong = [name for name, value in there.items() if value is None or value.shape != here[name].shape]
    if wrong or unknown:
        name = wrong[0] if wrong else unknown[0].removeprefix(f"{prefix}model.")
        found, ours = there.get(name, tensors.get(f"{prefix}model.{name}")), here.get(name)
        raise ValueError(
            f"{where} belongs to a model of another shape: {name} is {_size(found)} there and {_size(ours)} here, and so it is with "
            f"{len(wrong) + len(unknown) - 1} more tensors: put the former model's settings back, or use another run name"
        )
    model.load_state_dict({name: parallel.placed_like(value, here[name]) for name, value in there.items() if value is not None})


def _size(tensor: torch.Tensor | None) -> str:
    return "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"
