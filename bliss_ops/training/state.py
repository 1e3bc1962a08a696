"""The state of one model in training: weights, AdamW moments, step; written as safetensors, restored exactly."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from bliss_ops.config import ModelConfig, RunConfig
from bliss_ops.models import language
from bliss_ops.training.device import choose_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from upath import UPath

PROXY = "proxy.safetensors"
TARGET = "state.safetensors"  # in the warm-up and in every round, so a reference model is read the same way in all of them
MOMENTS = ("exp_avg", "exp_avg_sq", "step")


@dataclass
class TrainState:
    """A model with its optimizer and the number of optimizer steps done."""

    model: nn.Module
    optimizer: torch.optim.AdamW
    step: int = 0

    def tensors(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """Everything needed to go on exactly, by name."""
        named = {f"{prefix}model.{name}": parameter.detach() for name, parameter in self.model.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for moment, value in self.optimizer.state.get(parameter, {}).items():
                named[f"{prefix}{moment}.{name}"] = value
        named[f"{prefix}num_steps"] = torch.tensor(self.step)
        return named

    def restore(self, tensors: dict[str, torch.Tensor], prefix: str = "") -> None:
        """Take over what `tensors` wrote.

        Raises:
            ValueError: it belongs to a model of another shape.
        """
        _load_weights(self.model, tensors, prefix)
        for name, parameter in self.model.named_parameters():
            moments: dict[str, Any] = {moment: tensors.get(f"{prefix}{moment}.{name}") for moment in MOMENTS}
            if all(value is not None for value in moments.values()):
                # a fused optimizer counts its steps on the parameter's device
                self.optimizer.state[parameter] = {moment: value.to(parameter.device).clone() for moment, value in moments.items()}
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
    device, length = choose_device(config.compute), config.ingest.sequence_length
    return language.build(model_config.shape, vocab_size=vocab_size, sequence_length=length, seed=config.seed).to(device)


def new_state(config: RunConfig, model_config: ModelConfig, vocab_size: int) -> TrainState:
    """`new_model` with the optimizer of pretraining."""
    model = new_model(config, model_config, vocab_size)
    return TrainState(model, adamw(model, config.pretraining.learning_rate, config.pretraining.weight_decay))


def load_reference(config: RunConfig, vocab_size: int, directory: "UPath") -> nn.Module:
    """The target's current checkpoint (of the warm-up or of a round), frozen."""
    model: nn.Module = new_model(config, config.target, vocab_size)
    _load_weights(model, language.read_tensors(directory / TARGET))
    return model.eval().requires_grad_(False)


def count_parameters(state: TrainState) -> int:
    return sum(parameter.numel() for parameter in state.model.parameters())


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


def _load_weights(model: nn.Module, tensors: dict[str, torch.Tensor], prefix: str = "") -> None:
    beginning = f"{prefix}model."
    weights = {name.removeprefix(beginning): value for name, value in tensors.items() if name.startswith(beginning)}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"the checkpoint belongs to a model of another shape: {error}") from error
