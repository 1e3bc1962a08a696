"""BLISS (arXiv 2510.06048): the score is the logit of a score model trained through bilevel optimisation.

The proxy starts from its warm-up in every round; the score model starts from the warmed proxy's backbone in round 1 and from the
previous round's score model afterwards.
"""

import copy
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from upath import UPath

from bliss_ops.lake import write_json

if TYPE_CHECKING:
    from bliss_ops.selectors import Scorer, SelectorInputs

SECTIONS = ("proxy", "bilevel", "target", "compute")
MODEL = "score_model.safetensors"
SETTINGS = "score_model.json"


def fit(inputs: "SelectorInputs", directory: UPath) -> tuple[Sequence[str], dict[str, Any]]:
    """Train the score model; writes its weights, its settings and `metrics.jsonl`."""
    import torch

    from bliss_ops.bilevel.outer_step import BilevelState
    from bliss_ops.bilevel.training import train_score_model
    from bliss_ops.corpus import validation
    from bliss_ops.models import language
    from bliss_ops.models.score import ScoreModel
    from bliss_ops.training.device import choose_device
    from bliss_ops.training.metrics import StepMetrics
    from bliss_ops.training.state import PROXY, TrainState, adamw, load_reference, new_model

    config, settings = inputs.config, inputs.config.bilevel
    device = choose_device(config.compute)
    shape = {"shape": config.proxy.shape, "vocab_size": inputs.vocab_size, "sequence_length": config.ingest.sequence_length}
    proxy_model = new_model(config, config.proxy, inputs.vocab_size)
    proxy = TrainState(proxy_model, adamw(proxy_model, settings.proxy_learning_rate, 0.0))
    proxy.restore(language.read_tensors(inputs.warmup / PROXY))
    score_model = ScoreModel(copy.deepcopy(proxy_model), settings.score_head).to(device)
    if inputs.previous is not None:
        language.load_weights(score_model, inputs.previous / MODEL)
    state = BilevelState(
        proxy=proxy,
        score=TrainState(score_model, adamw(score_model, settings.score_learning_rate, 0.0)),
        smoothed_gradient=[torch.zeros_like(parameter) for parameter in proxy_model.parameters()],
        reference=load_reference(config, inputs.vocab_size, inputs.reference) if settings.kl_weight else None,
    )
    tokens_per_step = (
        settings.batch_sequences * settings.num_inner_steps + settings.validation_batch_sequences
    ) * config.ingest.sequence_length
    metrics = StepMetrics(
        directory / "metrics.jsonl", f"fit {config.name} round {inputs.round_number}", settings.num_steps, tokens_per_step
    )
    guide = validation.read(inputs.validation, "guide")
    train_score_model(state, inputs.candidates, guide, settings, seed=config.seed, device=device, directory=directory, metrics=metrics)
    language.write_tensors(directory / MODEL, score_model.state_dict())
    write_json(directory / SETTINGS, shape | {"head": settings.score_head, "device": config.compute.device})
    last = metrics.rows[-1]
    return [MODEL, SETTINGS, "metrics.jsonl"], {
        name: last[name] for name in ("validation_loss", "effective_sample_size", "alignment_score_correlation")
    }


def load_scorer(directory: UPath) -> "Scorer":
    """Logits of the trained score model, in float32 on a CPU (one thread) and bfloat16 matrix products on a GPU."""
    import numpy as np
    import torch

    from bliss_ops.config import ComputeConfig
    from bliss_ops.models import language
    from bliss_ops.models.score import ScoreModel
    from bliss_ops.training.device import autocast, choose_device

    settings = json.loads((directory / SETTINGS).read_text())
    device = choose_device(ComputeConfig(device=settings["device"]), num_threads=1)
    backbone = language.build(settings["shape"], vocab_size=settings["vocab_size"], sequence_length=settings["sequence_length"], seed=0)
    model = ScoreModel(backbone, settings["head"])
    language.load_weights(model, directory / MODEL)
    model.to(device).eval()

    def score(_sequence_ids_B: np.ndarray, input_ids_BT: np.ndarray) -> np.ndarray:
        with torch.inference_mode(), autocast(device):
            values: np.ndarray = model(torch.from_numpy(input_ids_BT).to(device)).float().cpu().numpy()
        return values

    return score
