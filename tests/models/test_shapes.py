"""Named shapes: the published numbers of parameters and facts, the table of docs/models.md, and the recipes of the paper's sizes."""

from pathlib import Path

import pytest

from bliss_ops.models import language
from bliss_ops.models.flops import model_flops
from bliss_ops.models.shapes import SHAPES, model_vocab_size, shape
from bliss_ops.recipes import load_recipe

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "models.md"
PUBLISHED = {  # parameters with embeddings, from the Pythia suite's model cards; 14M and 31M by the sizes of their config.json
    "pythia-14m": 14_067_712,
    "pythia-31m": 30_494_720,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
}
NON_EMBEDDING = {  # the same table's second column
    "pythia-70m": 18_915_328,
    "pythia-160m": 85_056_000,
    "pythia-410m": 302_311_424,
    "pythia-1b": 805_736_448,
    "pythia-1.4b": 1_208_602_624,
    "pythia-2.8b": 2_517_652_480,
}


@pytest.mark.parametrize(("name", "parameters"), PUBLISHED.items())
def test_pythia_has_the_published_number_of_parameters(name: str, parameters: int) -> None:
    assert language.num_parameters(name) == parameters
    embeddings = 2 * 50_304 * shape(name).hidden_size
    assert parameters - embeddings == NON_EMBEDDING.get(name, parameters - embeddings)


def test_llama_is_what_its_documentation_says() -> None:
    per_layer = 4 * 1024**2 + 3 * 1024 * 4096 + 2 * 1024  # attention, gated MLP, two norms
    assert language.num_parameters("llama-0.5b") == 2 * 50_304 * 1024 + 24 * per_layer + 1024 == 505_725_952


@pytest.mark.parametrize("name", PUBLISHED)
def test_pythia_is_gpt_neox_as_published(name: str) -> None:
    config = language.transformers_config(name, vocab_size=50_277, sequence_length=1024)
    assert (config.model_type, config.vocab_size, config.max_position_embeddings) == ("gpt_neox", 50_304, 2048)
    assert config.rope_parameters["partial_rotary_factor"] == 0.25
    assert config.rope_parameters["rope_theta"] == 10_000
    assert (config.use_parallel_residual, config.tie_word_embeddings, config.layer_norm_eps) == (True, False, 1e-5)
    assert (config.hidden_act, config.attention_bias, config.hidden_dropout, config.attention_dropout) == ("gelu", True, 0.0, 0.0)


def test_vocabularies_are_padded_or_refused() -> None:
    assert model_vocab_size("tiny-neox-64", 1000) == 1024
    assert model_vocab_size("pythia-410m", 50_277) == 50_304
    with pytest.raises(ValueError, match="has a vocabulary of 50,304"):
        model_vocab_size("pythia-410m", 50_305)


@pytest.mark.parametrize("name", SHAPES)
def test_the_table_of_the_documentation_is_true(name: str) -> None:
    """Layers, width, heads, MLP width, vocabulary, parameters with and without embeddings, FLOPs per token at T = 1024 (tiny: 128)."""
    sizes, vocab_size = shape(name), shape(name).vocab_size or 2048
    length = 128 if sizes.vocab_size is None else 1024
    parameters = language.num_parameters(name, vocab_size=vocab_size)
    flops = model_flops(name, vocab_size=vocab_size, sequence_length=length)
    cells = [
        f"`{name}`", sizes.num_layers, f"{sizes.hidden_size:,}", sizes.num_heads, f"{sizes.intermediate_size:,}",
        f"{sizes.vocab_size:,}" if sizes.vocab_size else "tokenizer's", f"{parameters:,}",
        f"{parameters - 2 * vocab_size * sizes.hidden_size:,}", f"{flops.training / 1e6:,.3g} M" if flops.training < 1e9
        else f"{flops.training / 1e9:.3g} G",
    ]  # fmt: skip
    assert "| " + " | ".join(str(cell) for cell in cells) + " |" in DOCUMENTATION.read_text()


@pytest.mark.parametrize("name", ["pythia-1b", "pythia-2.8b", "llama-0.5b"])
def test_recipes_of_the_papers_sizes_differ_in_the_target_alone(name: str) -> None:
    """One corpus, proxy and selection for all sizes; the micro-batch divides a step."""
    recipe, smaller = load_recipe(name), load_recipe("pythia-410m")
    assert recipe.target.shape == name
    changed = {field for field in type(recipe).model_fields if getattr(recipe, field) != getattr(smaller, field)}
    assert changed <= {"description", "num_rounds", "target", "pretraining"}
    assert recipe.pretraining.model_copy(update={"micro_batch_sequences": 32}) == smaller.pretraining
    assert recipe.pretraining.batch_sequences % recipe.pretraining.micro_batch_sequences == 0
