"""A score model in a selector's directory: how it is built in `score_model.json`, its weights in `score_model.safetensors`.

Whatever method trained it, it is loaded and run the same way.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bliss_ops.lake import write_json
from bliss_ops.models import language

if TYPE_CHECKING:
    from torch import nn
    from upath import UPath

    from bliss_ops.config import RunConfig
    from bliss_ops.models.scorer import Finish, ModelScorer

MODEL = "score_model.safetensors"
SETTINGS = "score_model.json"


def write_settings(
    directory: "UPath",
    config: "RunConfig",
    vocab_size: int,
    *,
    pooling: str,
    head: str = "linear",
    num_pooling_heads: int = 4,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write what it takes to build the model again; its backbone has the proxy's shape.

    Args:
        directory: of the selector.
        config: of the run.
        vocab_size: of the corpus's tokenizer.
        pooling: `ScoreModel`'s.
        head: `ScoreModel`'s.
        num_pooling_heads: `ScoreModel`'s `num_heads`.
        more: what else the method's scorer needs.
    """
    built = {
        "shape": config.proxy.definition,
        "vocab_size": vocab_size,
        "sequence_length": config.ingest.sequence_length,
        "head": head,
        "pooling": pooling,
        "num_pooling_heads": num_pooling_heads,
        "device": config.compute.device,
    }
    write_json(directory / SETTINGS, built | dict(more or {}))


def read_settings(directory: "UPath") -> dict[str, Any]:
    """What `write_settings` wrote."""
    settings: dict[str, Any] = json.loads((directory / SETTINGS).read_text())
    return settings


def write_weights(directory: "UPath", model: "nn.Module") -> None:
    language.write_tensors(directory / MODEL, model.state_dict())


def load_scorer(directory: "UPath", *, finish: "Finish | None" = None) -> "ModelScorer":
    """The model as a scorer, in float32 on a CPU (one thread) and bfloat16 matrix products on a GPU.

    Args:
        directory: of the selector.
        finish: (sequence_ids_B, the model's output_B) -> score_B; the output itself unless given.
    """
    from bliss_ops.config import ComputeConfig
    from bliss_ops.models.score import ScoreModel
    from bliss_ops.models.scorer import ModelScorer
    from bliss_ops.training.device import choose_device

    settings = read_settings(directory)
    device = choose_device(ComputeConfig(device=settings["device"]), num_threads=1)
    backbone = language.build(settings["shape"], vocab_size=settings["vocab_size"], sequence_length=settings["sequence_length"], seed=0)
    model = ScoreModel(backbone, settings["head"], pooling=settings["pooling"], num_heads=settings["num_pooling_heads"])
    language.load_weights(model, directory / MODEL)
    return ModelScorer(model, device, finish=finish)
