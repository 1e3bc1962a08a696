"""The model a round starts from: what is probed when someone asks which sequences help *now*.

That is the target when it has been trained at all, else the warmed-up proxy, which stands in for it; an untrained model's answer
says nothing about the text.
"""

from dataclasses import dataclass

from upath import UPath

from bliss_ops.config import ModelConfig, RunConfig
from bliss_ops.models import language
from bliss_ops.training.state import PROXY, TARGET, TrainState, adamw, new_model


@dataclass(frozen=True)
class StartingModel:
    """A checkpoint with its optimizer's moments; `path` is None, with the reason, when the round starts from an untrained model."""

    name: str
    path: UPath | None
    config: ModelConfig
    reason: str = ""


def starting_model(config: RunConfig, round_number: int, *, warmup: UPath, reference: UPath, has_proxy: bool) -> StartingModel:
    """The target the round starts from when it has been trained, else the warmed-up proxy, else none.

    Args:
        config: of the run.
        round_number: from 1.
        warmup: the warm-up's directory.
        reference: directory of the target's current checkpoint: of the former round, or of the warm-up in round 1.
        has_proxy: whether the run's method has a proxy.
    """
    if round_number > 1:
        return StartingModel(f"target of round {round_number - 1}", reference / TARGET, config.target)
    if config.target.warmup_steps > 0:
        return StartingModel("warmed-up target", warmup / TARGET, config.target)
    if has_proxy and config.proxy.warmup_steps > 0:
        return StartingModel("warmed-up proxy", warmup / PROXY, config.proxy)
    lacking = "proxy.warmup_steps is 0 too" if has_proxy else f"{config.method} has no warmed-up proxy"
    reason = (
        f"round {round_number} starts from an untrained model (target.warmup_steps is 0 and {lacking}), "
        "whose influences say nothing about the text"
    )
    return StartingModel("", None, config.target, reason)


def restored(model: StartingModel, config: RunConfig, vocab_size: int, *, learning_rate: float, weight_decay: float = 0.0) -> TrainState:
    """The checkpoint with its moments, on the run's device, under an AdamW of that rate.

    Raises:
        ValueError: the round starts from an untrained model, or the checkpoint is cut or of another shape.
    """
    if model.path is None:
        raise ValueError(f"{config.name}: {model.reason}: set target.warmup_steps or proxy.warmup_steps")
    network = new_model(config, model.config, vocab_size)
    state = TrainState(network, adamw(network, learning_rate, weight_decay))
    state.restore(language.read_tensors(model.path), where=str(model.path))
    return state
