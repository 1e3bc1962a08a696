"""Initial weights: the published standard deviation of every kind of matrix, seeded, and what the tiny shapes always had."""

import pytest
import torch

from bliss_ops.models import language
from bliss_ops.models.shapes import SHAPES, shape

NEOX_INPUTS = ("embed_in", "query_key_value", "dense_h_to_4h", "lm_head")
NEOX_OUTPUTS = ("attention.dense", "dense_4h_to_h")
LLAMA_INPUTS = ("embed_tokens", "q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "lm_head")
LLAMA_OUTPUTS = ("o_proj", "down_proj")


def build(name: str, seed: int = 0) -> torch.nn.Module:
    return language.build(name, vocab_size=256, sequence_length=16, seed=seed)


def check_deviation(model: torch.nn.Module, kinds: tuple[str, ...], expected: float) -> None:
    """Every matrix of that kind alone: its mean within 5 standard errors of 0, its deviation within 5 of the expected one."""
    for kind in kinds:
        matrices = [value.detach() for name, value in model.named_parameters() if name.endswith(f"{kind}.weight")]
        assert matrices, kind
        for matrix in matrices:
            standard_error = expected / matrix.numel() ** 0.5
            assert abs(float(matrix.mean())) < 5 * standard_error, kind
            assert float(matrix.std()) == pytest.approx(expected, abs=5 * standard_error / 2**0.5), kind
            assert float(matrix.abs().max()) > 3.2 * expected, kind  # a normal distribution, not a uniform one


def check_vectors(model: torch.nn.Module) -> None:
    vectors = {name: value for name, value in model.named_parameters() if value.ndim == 1}
    assert vectors
    for name, value in vectors.items():
        assert torch.equal(value, torch.full_like(value, 1.0 if name.endswith("weight") else 0.0)), name


@pytest.mark.parametrize("name", ["pythia-14m", "pythia-70m"])
def test_pythia_begins_as_gpt_neox_began_it(name: str) -> None:
    model, sizes = build(name), shape(name)
    check_deviation(model, NEOX_INPUTS, (2 / (5 * sizes.hidden_size)) ** 0.5)
    check_deviation(model, NEOX_OUTPUTS, 2 / (sizes.num_layers * sizes.hidden_size**0.5))
    check_vectors(model)
    kinds = NEOX_INPUTS + NEOX_OUTPUTS
    assert all(name.removesuffix(".weight").endswith(kinds) for name, value in model.named_parameters() if value.ndim > 1)


def test_llama_begins_with_002_and_scaled_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    small = SHAPES["llama-0.5b"].__class__("llama", 6, 128, 4, 512, 2048, SHAPES["llama-0.5b"].initialisation)
    monkeypatch.setitem(SHAPES, "llama-0.5b", small)
    model = build("llama-0.5b")
    check_deviation(model, LLAMA_INPUTS, 0.02)
    check_deviation(model, LLAMA_OUTPUTS, 0.02 / 12**0.5)
    check_vectors(model)


def test_the_loss_of_a_new_model_is_that_of_guessing() -> None:
    """Small weights say nothing yet: the loss is close to log V, and activations are of a size to train on."""
    model = build("pythia-14m")
    tokens = torch.randint(50_000, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output = model(input_ids=tokens, labels=tokens, output_hidden_states=True)
    assert float(output.loss) == pytest.approx(torch.tensor(50_304.0).log(), abs=0.5)
    assert 0.5 < float(output.hidden_states[-1].std()) < 2


def test_equal_seeds_give_equal_weights_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    a, b, other = (build("pythia-14m", seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert all(not torch.equal(x, y) for x, y in zip(a.parameters(), other.parameters(), strict=True) if x.ndim > 1)


def test_no_two_matrices_begin_alike() -> None:
    matrices = [value.flatten()[:64] for value in build("pythia-14m").parameters() if value.ndim > 1]
    assert len({tuple(row.tolist()) for row in matrices}) == len(matrices)


@pytest.mark.parametrize("name", [name for name in SHAPES if name.startswith("tiny-")])
def test_tiny_shapes_keep_the_weights_that_the_library_draws(name: str) -> None:
    """Experiments with them are in docs/experiments.md and in people's lakes."""
    from transformers import AutoModelForCausalLM

    assert shape(name).initialisation == "transformers"
    model = build(name, seed=3)
    torch.manual_seed(3)
    drawn = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
    assert all(torch.equal(x, y) for x, y in zip(model.parameters(), drawn.parameters(), strict=True))
    check_deviation(model, ("attention.dense",) if "neox" in name else ("o_proj",), 0.02)


def test_positions_are_those_of_the_library() -> None:
    """Weights are drawn without the library's own initialisation, which also fills tables that are no parameters."""
    from transformers import AutoModelForCausalLM

    model = build("pythia-14m")
    reference = AutoModelForCausalLM.from_config(model.config, dtype=torch.float32)
    assert dict(reference.named_buffers()).keys() == dict(model.named_buffers()).keys() != set()
    for (_, a), (_, b) in zip(model.named_buffers(), reference.named_buffers(), strict=True):
        assert torch.equal(a, b)
    reference.load_state_dict(model.state_dict())
    tokens = torch.arange(32)[None]
    with torch.no_grad():
        assert torch.equal(model.eval()(input_ids=tokens).logits, reference.eval()(input_ids=tokens).logits)
