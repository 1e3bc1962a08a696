"""Gradients of single sequences out of one backward pass against autograd, one sequence at a time."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from bliss_ops.models import language
from bliss_ops.models.gradient_similarity import projected
from bliss_ops.models.sequence_gradients import SequenceGradients, as_matrix

VOCABULARY, LENGTH = 150, 20


def built(name: str) -> Any:
    return language.build(name, vocab_size=VOCABULARY, sequence_length=LENGTH, seed=0).double()


def sequences(count: int = 5) -> torch.Tensor:
    """The second repeats tokens, the third is one token throughout."""
    input_ids_BT = torch.randint(0, VOCABULARY, (count, LENGTH), generator=torch.Generator().manual_seed(3))
    input_ids_BT[1, 7:14] = input_ids_BT[1, :7]
    input_ids_BT[2] = 9
    return input_ids_BT


def loss_of(model: Any, row_T: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(model(input_ids=row_T[None]).logits[0, :-1], row_T[1:])


def autograd(model: Any, input_ids_BT: torch.Tensor) -> dict[str, torch.Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    rows = [torch.autograd.grad(loss_of(model, row_T), parameters) for row_T in input_ids_BT]
    return {name: torch.stack([as_matrix(row[number]) for row in rows]) for number, name in enumerate(names)}


def whole(gradients: SequenceGradients, input_ids_BT: torch.Tensor) -> dict[str, torch.Tensor]:
    sizes = {name: len(as_matrix(parameter)) for parameter, name in gradients.names.items()}
    return {name: gradient.rows(0, sizes[name]) for name, gradient in gradients(input_ids_BT).items()}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], error: float = 1e-12) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=error, atol=error * float(value.abs().max()), msg=name)


@pytest.mark.parametrize("name", ["tiny-neox-64", "tiny-llama-96"])
def test_every_sequence_has_the_gradient_autograd_gives_it_alone(name: str) -> None:
    expected = autograd(built(name), sequences())
    gradients = SequenceGradients(built(name))
    assert gradients.is_batched
    assert_equal(whole(gradients, sequences()), expected)
    assert_equal(whole(gradients, sequences()[3:]), {name: value[3:] for name, value in expected.items()})  # a second pass, a smaller batch


def test_one_matrix_for_both_embeddings_has_the_sum_of_both_gradients() -> None:
    def tied() -> Any:
        from transformers import LlamaConfig, LlamaForCausalLM

        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
        return LlamaForCausalLM(LlamaConfig(vocab_size=VOCABULARY, tie_word_embeddings=True, attention_bias=True, **sizes)).double()

    gradients = SequenceGradients(tied())
    assert gradients.is_batched
    assert_equal(whole(gradients, sequences()), autograd(tied(), sequences()))


def test_a_model_with_other_layers_is_differentiated_one_sequence_at_a_time() -> None:
    def other() -> Any:
        from transformers import GPT2Config, GPT2LMHeadModel

        torch.manual_seed(0)
        return (
            GPT2LMHeadModel(
                GPT2Config(vocab_size=VOCABULARY, n_positions=LENGTH, n_embd=32, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
            )
            .double()
            .eval()
        )

    gradients = SequenceGradients(other())
    assert not gradients.is_batched
    with torch.no_grad():
        found = whole(gradients, sequences())
    assert_equal(found, autograd(other(), sequences()))


def test_pieces_of_a_gradient_are_the_gradient() -> None:
    gradients = SequenceGradients(built("tiny-llama-96"))
    complete = whole(gradients, sequences())
    for name, gradient in gradients(sequences()).items():
        count = complete[name].shape[1]
        pieces = [gradient.rows(begin, min(begin + 37, count)) for begin in range(0, count, 37)]
        torch.testing.assert_close(torch.cat(pieces, 1), complete[name], rtol=1e-12, atol=1e-15)


def test_the_inner_product_with_a_direction_is_the_directional_derivative() -> None:
    """<z, grad L_i> is the slope of L_i along z: two forward passes that know nothing of gradients."""
    generator = torch.Generator().manual_seed(1)
    model, step = built("tiny-neox-64"), 1e-6
    direction = {name: torch.randn(value.shape, generator=generator, dtype=torch.float64) for name, value in model.named_parameters()}
    losses = []
    for sign in (1, -1):
        moved = built("tiny-neox-64")
        with torch.no_grad():
            for name, parameter in moved.named_parameters():
                parameter += sign * step * direction[name]
            losses.append(torch.stack([loss_of(moved, row_T) for row_T in sequences()]))
    gradients = whole(SequenceGradients(model), sequences())
    z_P = projected(None, direction, model)
    gradient_BP = torch.cat([gradients[name].flatten(1) for name in direction], 1)
    torch.testing.assert_close(gradient_BP @ z_P, (losses[0] - losses[1]) / (2 * step), rtol=1e-6, atol=0)
