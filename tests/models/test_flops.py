"""Model FLOPs against torch's own counter of what is multiplied, for named shapes and architectures by file."""

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bliss_ops.models import language
from bliss_ops.models.flops import model_flops
from bliss_ops.models.shapes import SHAPES, Definition, shape

LENGTH, VOCABULARY = 32, 256
SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 96, "vocab_size": VOCABULARY}
EXPERTS = {"num_experts_per_tok": 2, "num_key_value_heads": 2}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": VOCABULARY},  # learned positions, tied embeddings
    "gpt_neox": SIZES,
    "llama": SIZES | {"num_key_value_heads": 2},  # grouped queries
    "qwen3": SIZES | {"num_key_value_heads": 2, "head_dim": 32},  # heads wider than the model
    "opt": {"hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 3, "num_attention_heads": 4, "word_embed_proj_dim": 64},
    "mixtral": SIZES | EXPERTS | {"num_local_experts": 8},
    "qwen3_moe": SIZES | EXPERTS | {"num_experts": 8, "moe_intermediate_size": 32, "head_dim": 16},
}


def counted(definition: Definition) -> tuple[float, float]:
    """FLOPs per token that torch sees in a forward and a backward pass, with attention over all T positions as eager attention does it."""
    model = language.build(definition, vocab_size=VOCABULARY, sequence_length=LENGTH, seed=0)
    model.set_attn_implementation("eager")
    model.config._experts_implementation = "eager"  # grouped products are not counted
    tokens = torch.randint(VOCABULARY, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as forward:
        loss = model(input_ids=tokens, labels=tokens).loss
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    return forward.get_total_flops() / tokens.numel(), backward.get_total_flops() / tokens.numel()


def check(definition: Definition, attention_width: int, num_layers: int) -> None:
    ours = model_flops(definition, vocab_size=VOCABULARY, sequence_length=LENGTH)
    other_half = num_layers * 2 * LENGTH * attention_width  # of attention, which looks ahead and is not needed
    forward, backward = counted(definition)
    assert forward == pytest.approx(ours.forward + other_half, rel=1e-9)
    assert backward == pytest.approx(2 * (ours.forward + other_half), rel=0.02)
    assert ours.training == 3 * ours.forward


@pytest.mark.parametrize("name", ["tiny-neox-64", "tiny-neox-128", "tiny-llama-96", "pythia-14m"])
def test_named_shapes(name: str) -> None:
    check(name, shape(name).hidden_size, shape(name).num_layers)


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_architectures(kind: str) -> None:
    definition = {"model_type": kind, "vocab_size": VOCABULARY} | ARCHITECTURES[kind]
    check(definition, 4 * ARCHITECTURES[kind].get("head_dim", 16), 3)


@pytest.mark.parametrize("name", SHAPES)
def test_both_ways_of_counting_agree(name: str) -> None:
    """Named shapes are counted from their sizes, without a model; the matrices of the model say the same."""
    config = language.transformers_config(name, vocab_size=VOCABULARY, sequence_length=1024).to_dict()
    by_name, by_matrices = (model_flops(one, vocab_size=VOCABULARY, sequence_length=1024) for one in (name, config))
    assert by_matrices == by_name


def test_pythia_410m_by_hand() -> None:
    """24 layers of 12 x 1024^2 weights, twice; attention 2 x 1024 x 1024 a layer; the output matrix of 50,304 rows."""
    flops = model_flops("pythia-410m", vocab_size=50_277, sequence_length=1024)
    assert flops.backbone_forward == 2 * 24 * 12 * 1024**2 + 24 * 2 * 1024 * 1024
    assert flops.head_forward == 2 * 1024 * 50_304
    assert flops.training == pytest.approx(2.272e9, rel=1e-3)
