"""Causal language models: built from a shape with seeded weights, saved as safetensors, and their per-sequence loss.

Legend of shapes: B sequences, T tokens, V vocabulary.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from bliss_ops.models.initialisation import initialise
from bliss_ops.models.shapes import Definition, Shape, model_vocab_size, shape

if TYPE_CHECKING:  # a training process on a bare GPU machine has no upath
    import torch
    from transformers import PretrainedConfig, PreTrainedModel
    from upath import UPath

_ANY_VOCABULARY = 4096


def build(definition: Definition, *, vocab_size: int, sequence_length: int, seed: int) -> "PreTrainedModel":
    """A freshly initialised model in float32 on the CPU; equal arguments give equal weights.

    Args:
        definition: the name of a shape, or an architecture.
        vocab_size: of the tokenizer.
        sequence_length: the longest sequence that the model will see.
        seed: of the weights.

    Raises:
        ValueError: there is no such shape, or it has fewer tokens or positions than are asked for.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    config = transformers_config(definition, vocab_size=vocab_size, sequence_length=sequence_length)
    sizes = shape(definition) if isinstance(definition, str) else None
    if sizes is None or sizes.initialisation == "transformers":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            drawn: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        return drawn
    with no_init_weights():  # every parameter is drawn below: twice would be 6 s instead of 2.6 s at 410M
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    initialise(model, sizes.initialisation, width=sizes.hidden_size, num_layers=sizes.num_layers, seed=seed)
    return model


def on_meta(definition: Definition, *, vocab_size: int, sequence_length: int) -> "PreTrainedModel":
    """The model without its weights: names and shapes only, no memory."""
    import torch
    from transformers import AutoModelForCausalLM

    config = transformers_config(definition, vocab_size=vocab_size, sequence_length=sequence_length)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model


def transformers_config(definition: Definition, *, vocab_size: int, sequence_length: int) -> "PretrainedConfig":
    """The configuration of a shape or architecture in the transformers library, dropout-free.

    Raises:
        ValueError: there is no such shape, or it has fewer tokens or positions than are asked for.
    """
    from bliss_ops.models import architecture

    model_vocabulary = model_vocab_size(definition, vocab_size)
    if isinstance(definition, str):
        return _config_of(shape(definition), vocab_size=model_vocabulary, sequence_length=sequence_length)
    return architecture.config_of(definition, sequence_length=sequence_length)


def _config_of(sizes: Shape, *, vocab_size: int, sequence_length: int) -> "PretrainedConfig":
    from transformers import GPTNeoXConfig, LlamaConfig

    shared = {
        "vocab_size": vocab_size,
        "hidden_size": sizes.hidden_size,
        "intermediate_size": sizes.intermediate_size,
        "num_hidden_layers": sizes.num_layers,
        "num_attention_heads": sizes.num_heads,
        "max_position_embeddings": max(2048, sequence_length),
        "use_cache": False,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    config_class = GPTNeoXConfig if sizes.family == "gpt_neox" else LlamaConfig
    return config_class(**shared)


def num_parameters(definition: Definition, *, vocab_size: int | None = None) -> int:
    """Parameters of a shape or architecture, embeddings included, without allocating them.

    Args:
        definition: the name of a shape, or an architecture.
        vocab_size: of the tokenizer; None takes the model's own, or 4,096 where the model takes any.
    """
    takes_any = isinstance(definition, str) and shape(definition).vocab_size is None
    model = on_meta(definition, vocab_size=vocab_size or (_ANY_VOCABULARY if takes_any else 0), sequence_length=1)
    return sum(parameter.numel() for parameter in model.parameters())


def token_loss_sums(logits_BTV: "torch.Tensor", labels_BT: "torch.Tensor") -> "tuple[torch.Tensor, torch.Tensor]":
    """Summed next-token cross-entropy of each sequence and the number of tokens in the sum, both of shape B."""
    import torch
    import torch.nn.functional as F

    targets_BT = F.pad(labels_BT[:, 1:], (0, 1), value=-100)  # shifting the labels leaves the much larger logits where they are
    if logits_BTV.dtype in (torch.bfloat16, torch.float16):
        logits_BTV = logits_BTV.float()
    losses_BT = F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten(), reduction="none", ignore_index=-100).view_as(targets_BT)
    return losses_BT.sum(1), (targets_BT != -100).sum(1)


def save(model: "PreTrainedModel", directory: "UPath", name: str, *, weights: "Mapping[str, torch.Tensor] | None" = None) -> list[str]:
    """Write `<name>/config.json` and `<name>/model.safetensors`, the layout `AutoModelForCausalLM.from_pretrained` loads.

    Args:
        model: whose configuration is written, and whose weights.
        directory: holds the directory `<name>`.
        name: may be several directories deep.
        weights: in place of the model's own, where this process holds a part of them only.
    """
    from bliss_ops.lake import write_json

    config = model.config.to_dict() | {"architectures": [type(model).__name__]}
    write_json(directory / name / "config.json", json.loads(json.dumps(config, default=str)))
    write_tensors(directory / name / "model.safetensors", model.state_dict() if weights is None else weights)
    return [f"{name}/config.json", f"{name}/model.safetensors"]


def load(directory: "UPath", name: str) -> "PreTrainedModel":
    """The model `save` wrote.

    Raises:
        ValueError: the weights are cut or of another shape than their configuration.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    values = json.loads((directory / name / "config.json").read_text())
    config = AutoConfig.for_model(**values)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    load_weights(model, directory / name / "model.safetensors")
    return model


def load_weights(model: "torch.nn.Module", path: "UPath") -> None:
    """Fill `model` from a safetensors file; raises ValueError when it is cut or does not fit."""
    try:
        model.load_state_dict(read_tensors(path))
    except RuntimeError as error:
        raise ValueError(f"{path} holds weights of another shape than the model: {error}") from error


def write_tensors(path: "UPath", tensors: "Mapping[str, torch.Tensor]") -> None:
    """Tensors as one safetensors file, written atomically and straight from their memory."""
    from safetensors.torch import save_file

    from bliss_ops.lake import atomic_file

    seen: set[int] = set()
    on_cpu: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        on_cpu[name] = tensor.detach().contiguous().cpu()
        if on_cpu[name].data_ptr() in seen and tensor.numel():  # safetensors refuses two names of the same memory: tied embeddings
            on_cpu[name] = on_cpu[name].clone()
        seen.add(on_cpu[name].data_ptr())
    with atomic_file(path) as file:
        save_file(on_cpu, file, metadata={"format": "pt"})


def read_tensors(path: "UPath") -> "dict[str, torch.Tensor]":
    """Tensors of a safetensors file, mapped into memory and not copied; one of an object store is downloaded for that.

    Raises:
        ValueError: the file is cut or not safetensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from bliss_ops.lake import local_copy

    try:
        with local_copy(path) as file:
            tensors: dict[str, torch.Tensor] = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}): delete it and run its stage again") from error
    return tensors
