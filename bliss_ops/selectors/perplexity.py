"""Lowest loss: minus the mean next-token loss of the warmed-up proxy, so the text the proxy finds easiest comes first.

It never looks at the validation set. The warm-up is the one `bliss` starts from, so the comparison isolates what bilevel training adds.
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from upath import UPath

from bliss_ops.lake import write_json

if TYPE_CHECKING:
    import torch

    from bliss_ops.config import RunConfig
    from bliss_ops.selectors import Scorer, SelectorFlops, SelectorInputs

SECTIONS = ("proxy", "compute")
MODEL = "proxy_model.safetensors"
SETTINGS = "proxy_model.json"


def fit(inputs: "SelectorInputs", directory: UPath) -> tuple[Sequence[str], dict[str, Any]]:
    """Copy the warmed-up proxy's weights, without its optimizer.

    Raises:
        ValueError: the warm-up belongs to a proxy of another shape.
    """
    from bliss_ops.models import language
    from bliss_ops.training.state import PROXY, TrainState, adamw, new_model

    config = inputs.config
    model = new_model(config, config.proxy, inputs.vocab_size)
    proxy = TrainState(model, adamw(model, config.proxy.warmup_learning_rate, 0.0))
    proxy.restore(language.read_tensors(inputs.warmup / PROXY))
    language.write_tensors(directory / MODEL, model.state_dict())
    shape = {"shape": config.proxy.definition, "vocab_size": inputs.vocab_size, "sequence_length": config.ingest.sequence_length}
    write_json(directory / SETTINGS, shape | {"device": config.compute.device})
    return [MODEL, SETTINGS], {"num_warmup_steps": proxy.step}


def load_scorer(directory: UPath) -> "Scorer":
    """Minus the mean token loss, in float32 on a CPU (one thread) and bfloat16 matrix products on a GPU."""
    from bliss_ops.config import ComputeConfig
    from bliss_ops.models import language
    from bliss_ops.models.scorer import ModelScorer
    from bliss_ops.models.token_loss import loss_sums
    from bliss_ops.training.device import choose_device

    settings = json.loads((directory / SETTINGS).read_text())
    device = choose_device(ComputeConfig(device=settings["device"]), num_threads=1)
    model = language.build(settings["shape"], vocab_size=settings["vocab_size"], sequence_length=settings["sequence_length"], seed=0)
    language.load_weights(model, directory / MODEL)

    def minus_loss(input_ids_BT: "torch.Tensor") -> "torch.Tensor":
        loss_B, num_tokens_B = loss_sums(model, input_ids_BT, input_ids_BT)
        return -loss_B / num_tokens_B

    return ModelScorer(model, device, minus_loss)


def flops(
    config: "RunConfig",
    *,
    vocab_size: int,
    num_sequences: int,
    validation_row_tokens: float | None = None,  # noqa: ARG001 - of the contract; no validation row is counted
) -> "SelectorFlops":
    """A forward pass of the proxy for every sequence; its warm-up is counted apart."""
    from bliss_ops.models.flops import model_flops
    from bliss_ops.selectors import SelectorFlops

    length = config.ingest.sequence_length
    of_proxy = model_flops(config.proxy.definition, vocab_size=vocab_size, sequence_length=length)
    return SelectorFlops(fit=0.0, score=num_sequences * length * of_proxy.forward)
