"""Any causal language model of the transformers library, by the config.json that describes it: read once, when a run is configured.

The content of the file is kept in the run's own config.json, so that later stages need no other file and two paths to the same content
are the same model. Only classes of the installed library are used: no code from the file's authors, nothing from a hub.

Losses here multiply hidden states by the output matrix block by block and score models stop at the hidden states, so that not every head
will do. What a model must be (causal; logits = hidden states times output matrix) is tried out on a copy of it with two layers, a small
vocabulary and random weights, in a second.

Legend of shapes: B sequences, T tokens, D hidden size.
"""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from bliss_ops.config import Recipe
from bliss_ops.models.shapes import Definition, model_vocab_size
from bliss_ops.names import check_allowed, check_stored

if TYPE_CHECKING:
    from transformers import PretrainedConfig

log = logging.getLogger(__name__)

RecipeT = TypeVar("RecipeT", bound=Recipe)

SECTIONS = ("proxy", "target")  # of a recipe, that hold a model
# about files, precision and generation, not about the mathematics of a model that begins with random weights
_LEFT_OUT = ("architectures", "dtype", "quantization_config", "torch_dtype", "transformers_version", "use_cache")
_FILE_BYTES = 16 << 20  # of a config.json: the largest known have 100 kB
# What no model has had by far: building one would fill the memory before it fails.
_MOST = {"vocab_size": 10_000_000, "hidden_size": 1 << 17, "num_hidden_layers": 1 << 12, "intermediate_size": 1 << 20}
_TRIAL_VOCABULARY, _TRIAL_LAYERS, _TRIAL_LENGTH = 128, 2, 8


def with_architectures(recipe: RecipeT) -> RecipeT:
    """The recipe or run with every `shape` that is a path replaced by a name, and its `architecture` by the content of the file.

    Raises:
        ValueError: a file is missing, or describes no model that can be trained here.
    """
    models = {}
    for section in SECTIONS:
        model = getattr(recipe, section)
        if model.architecture is not None:  # kept before, or written by hand
            checked(model.architecture, f"{section}.architecture")
        elif model.shape.endswith(".json"):
            architecture = read(model.shape, setting=f"{section}.shape")
            models[section] = model.model_copy(update={"shape": name_of(architecture), "architecture": architecture})
    return recipe.model_copy(update=models)


def check_models(recipe: Recipe, sections: Sequence[str] = SECTIONS) -> None:
    """Return when the models can be built for the recipe's sequences and, where it trains one, its tokenizer.

    Raises:
        ValueError: a shape is unknown, a vocabulary or a longest sequence too small, an architecture of a kind that is not supported.
    """
    for section in sections:
        definition: Definition = getattr(recipe, section).definition
        try:
            model_vocab_size(definition, recipe.ingest.vocab_size if recipe.ingest.tokenizer is None else 0)
            if not isinstance(definition, str):
                config_of(definition, sequence_length=recipe.ingest.sequence_length)
                check_behaviour(definition)
        except ValueError as error:
            raise ValueError(f"{section}.shape: {error}") from error


def read(path: str, *, setting: str = "shape") -> dict[str, Any]:
    """The content of a config.json that bears on the mathematics, without dropout.

    Raises:
        ValueError: there is no such file, or it does not describe a causal language model of the installed transformers library.
    """
    from upath import UPath

    try:
        check_allowed(check_stored(path))
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from error
    try:
        with UPath(path).open("rb") as file:
            content = file.read(_FILE_BYTES + 1)
    except FileNotFoundError:
        raise ValueError(f"{setting}: there is no file {path}: give the path of a config.json of the transformers library") from None
    except OSError as error:
        raise ValueError(f"{setting}: {path} cannot be read ({error}): give the path of a config.json of transformers") from error
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:  # a ValueError is also what a number of 5,000 digits raises
        raise ValueError(f"{setting}: {path} is not JSON: {error}") from error
    return checked(values, f"{setting}: {path}")


def checked(values: Any, where: str) -> dict[str, Any]:
    """What of a model's config bears on the mathematics, without dropout.

    Raises:
        ValueError: it does not describe a causal language model of the installed transformers library.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = str(values.get("model_type") or "") if isinstance(values, dict) else ""
    if not kind:
        raise ValueError(f'{where} has no "model_type": it is not the config.json of a transformers model')
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        raise ValueError(
            f"{where} describes a model of type {kind!r}, which is not a causal language model of the installed transformers "
            "library: use one that is (gpt2, gpt_neox, llama, mistral, qwen2, ...); code that comes with a model is never run"
        )
    values = {key: value for key, value in values.items() if not key.startswith("_") and key not in _LEFT_OUT}
    config = _config(values, where)
    if config.is_encoder_decoder:
        raise ValueError(f"{where} describes an encoder with a decoder, which is not supported: use a decoder alone")
    needed = ("vocab_size", "hidden_size", "num_hidden_layers")
    if missing := [name for name in needed if not isinstance(getattr(config, name, None), int)]:
        raise ValueError(f"{where} has no {', '.join(missing)}: a model made of several is not supported, only its text part")
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, int | float) and value > 0 and not name.startswith(("classifier", "summary")):
            log.warning("%s: %s is set from %g to 0: models are trained without dropout here", where, name, value)
            values[name] = 0.0
    return {**values, "vocab_size": config.vocab_size}


def name_of(architecture: Mapping[str, Any]) -> str:
    """Model type and the beginning of a hash of the content, for logs and reports."""
    content = json.dumps(architecture, sort_keys=True, separators=(",", ":"))
    return f"{architecture['model_type']}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def config_of(architecture: Mapping[str, Any], *, sequence_length: int) -> "PretrainedConfig":
    """The configuration object.

    Raises:
        ValueError: the library refuses it, or its sequences are shorter than `sequence_length`.
    """
    config = _config(architecture, f"the {architecture['model_type']} architecture")
    longest = getattr(config, "max_position_embeddings", None)
    if isinstance(longest, int) and 0 < longest < sequence_length:
        raise ValueError(
            f"the {architecture['model_type']} architecture has {longest:,} positions (max_position_embeddings) and sequences have "
            f"{sequence_length:,} tokens: raise it in the config.json, or shorten ingest.sequence_length"
        )
    config.use_cache = False
    return config


def check_behaviour(architecture: Mapping[str, Any]) -> None:
    """Return when the model is causal and its logits are its hidden states times its output matrix.

    Raises:
        ValueError: it is not so, or the library cannot build it.
    """
    import torch
    from transformers import AutoModelForCausalLM

    kind = architecture["model_type"]
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(_trial(architecture), dtype=torch.float32).eval()
            for parameter in model.parameters():  # biases begin at zero and would not show
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
            input_ids_BT = torch.randint(_TRIAL_VOCABULARY, (2, _TRIAL_LENGTH))
            changed_BT = input_ids_BT.clone()
            changed_BT[:, -1] = (changed_BT[:, -1] + 1) % _TRIAL_VOCABULARY
            hidden_BTD, changed_BTD = (model.base_model(input_ids=ids).last_hidden_state for ids in (input_ids_BT, changed_BT))
            logits_BTV = model(input_ids=input_ids_BT).logits
            matrix_VD = getattr(model.get_output_embeddings(), "weight", None)
            fits = matrix_VD is not None and matrix_VD.shape[-1] == hidden_BTD.shape[-1] == model.config.hidden_size
            expected_BTV = hidden_BTD @ matrix_VD.T if matrix_VD is not None and fits else torch.full_like(logits_BTV, torch.nan)
    except (RuntimeError, ValueError) as error:  # what the library raises when sizes do not fit one another
        raise ValueError(f"a {kind} model cannot be built from its config.json: {' '.join(str(error).split())}") from error
    if not torch.allclose(hidden_BTD[:, :-1], changed_BTD[:, :-1], atol=1e-5):
        raise ValueError(
            f"a {kind} model with this config.json looks ahead: its states depend on later tokens, so that it learns nothing by "
            "predicting the next one: set is_decoder to true where the type has it, or use another type"
        )
    if not torch.allclose(logits_BTV, expected_BTV, rtol=1e-4, atol=1e-5 * float(logits_BTV.abs().max())):
        raise ValueError(
            f"the logits of a {kind} model with this config.json are not its hidden states times its output matrix (a bias, scale, cap "
            "or projection comes in between), and such a head is not supported: use another type, or switch that part off in the file"
        )


def _trial(architecture: Mapping[str, Any]) -> "PretrainedConfig":
    """The same model with two layers and a small vocabulary; the whole one where its lists of layers cannot be cut."""
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    whole = _config(architecture, "the architecture")
    layers = whole.num_hidden_layers
    values = dict(architecture)
    for key, value in whole.to_dict().items():
        if key.endswith("_token_id") and isinstance(value, int):
            values[key] = 0
        elif isinstance(value, list) and len(value) == layers > _TRIAL_LAYERS:
            values[key] = value[:_TRIAL_LAYERS]
    values |= {
        "vocab_size": _TRIAL_VOCABULARY,
        whole.attribute_map.get("num_hidden_layers", "num_hidden_layers"): min(layers, _TRIAL_LAYERS),
    }
    values["use_cache"] = False
    try:
        return AutoConfig.for_model(**values)
    except (StrictDataclassError, ValueError):
        whole.use_cache = False
        return whole


def _config(architecture: Mapping[str, Any], where: str) -> "PretrainedConfig":
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    if "auto_map" in architecture:
        raise ValueError(
            f"{where} names code that comes with the model (auto_map), and such code is never run: take auto_map out if the installed "
            f"library's own {architecture['model_type']} is meant"
        )
    try:
        config = AutoConfig.for_model(**architecture)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ValueError(f"{where}: the transformers library refuses it: {' '.join(str(error).split())}") from error
    for name, most in _MOST.items():
        if isinstance(value := getattr(config, name, 0), int) and value > most:
            raise ValueError(f"{where}: {name} is {value:,}, and the most that is built here is {most:,}")
    return config
