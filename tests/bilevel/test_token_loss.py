"""The blockwise cross-entropy and KL term against plain autograd through full logits (float64), and that no full logits exist."""

import pytest
import torch
import torch.nn.functional as F

from bliss_ops.models import language, token_loss
from bliss_ops.models.token_loss import Divergence, hidden_states, loss_sums, weighted_loss
from tests.bilevel.problems import LENGTH, language_model, relative_error, tokens

IGNORED = -100


@pytest.fixture(params=["tiny-neox-64", "tiny-llama-96"])
def model(request: pytest.FixtureRequest) -> torch.nn.Module:
    return language_model(request.param)


@pytest.fixture(name="labels_BT")
def _labels() -> torch.Tensor:
    """Rows with every position counted, a few, the first label only (which nothing predicts), none, and one in the middle."""
    labels_BT = tokens(6).clone()
    labels_BT[1, 5:] = IGNORED
    labels_BT[2, 1:] = IGNORED
    labels_BT[3] = IGNORED
    labels_BT[4, :7] = IGNORED
    labels_BT[4, 8:] = IGNORED
    return labels_BT


def plainly(
    model: torch.nn.Module, labels_BT: torch.Tensor, weight_B: torch.Tensor, divergence: Divergence | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The definition, row by row."""
    logits_BTV = model(input_ids=tokens(6)).logits
    total, sums, counts = logits_BTV.new_zeros(()), [], []
    reference_BTV = divergence.reference(input_ids=tokens(6)).logits.detach() if divergence is not None else None
    for row, labels_T in enumerate(labels_BT):
        positions = [t for t in range(LENGTH - 1) if labels_T[t + 1] != IGNORED]
        counts.append(len(positions))
        log_p = F.log_softmax(logits_BTV[row, positions], -1)
        losses = -log_p[range(len(positions)), labels_T[[t + 1 for t in positions]]]
        sums.append(losses.sum())
        if not positions:
            continue
        total = total + weight_B[row] * losses.mean()
        if divergence is not None and reference_BTV is not None:
            log_r = F.log_softmax(reference_BTV[row, positions], -1)
            first, second = (log_p, log_r) if divergence.direction == "proxy_reference" else (log_r, log_p)
            total = total + divergence.weight * (first.exp() * (first - second)).sum(-1).mean()
    return total, torch.stack(sums), torch.tensor(counts)


@pytest.mark.parametrize("direction", [None, "proxy_reference", "reference_proxy"])
@pytest.mark.parametrize("block", [1, 7, 128])
def test_values_and_gradients_are_those_of_full_logits(
    model: torch.nn.Module, labels_BT: torch.Tensor, direction: str | None, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(token_loss.ROWS_PER_BLOCK, "cpu", block)
    reference = language_model("tiny-neox-96", seed=4)
    divergence = None if direction is None else Divergence(reference, direction, 0.3, hidden_states(reference, tokens(6)))  # type: ignore[arg-type]
    weight_B = torch.rand(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    parameters = list(model.parameters())
    total, sums_B, counts_B = plainly(model, labels_BT, weight_B, divergence)
    expected = torch.autograd.grad(total, parameters)
    found, found_sums_B, found_counts_B = weighted_loss(model, tokens(6), labels_BT, weight_B, divergence=divergence)
    torch.testing.assert_close(found, total, rtol=1e-12, atol=0)
    torch.testing.assert_close(found_sums_B, sums_B.detach(), rtol=1e-12, atol=0)
    assert torch.equal(found_counts_B, counts_B)
    assert found_counts_B.tolist() == [11, 4, 0, 0, 1, 11]
    assert relative_error(torch.autograd.grad(3 * found, parameters), [3 * part for part in expected]) < 1e-10
    assert all(parameter.grad is None for parameter in reference.parameters())


def test_there_is_no_graph_where_none_is_wanted(model: torch.nn.Module, labels_BT: torch.Tensor) -> None:
    sums_B, counts_B = loss_sums(model, tokens(6), labels_BT)
    _, expected_B, expected_counts_B = plainly(model, labels_BT, torch.zeros(6), None)
    torch.testing.assert_close(sums_B, expected_B.detach(), rtol=1e-12, atol=0)
    assert torch.equal(counts_B, expected_counts_B)
    assert not sums_B.requires_grad
    with torch.no_grad():
        total, _, _ = weighted_loss(model, tokens(6), labels_BT, torch.ones(6, dtype=torch.float64))
    assert not total.requires_grad


def test_a_batch_in_which_nothing_counts_has_loss_and_gradient_zero(model: torch.nn.Module) -> None:
    total, sums_B, counts_B = weighted_loss(model, tokens(6), torch.full((6, LENGTH), IGNORED), torch.ones(6, dtype=torch.float64))
    assert total.item() == 0
    assert not sums_B.any()
    assert not counts_B.any()
    assert not any(part.any() for part in torch.autograd.grad(total, list(model.parameters())))


def test_a_second_derivative_is_refused_not_wrong(model: torch.nn.Module) -> None:
    total, _, _ = weighted_loss(model, tokens(6), tokens(6), torch.ones(6, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="differentiated once"):
        torch.autograd.grad(total, list(model.parameters()), create_graph=True)


def test_logits_exist_one_block_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """In everything the pass computes with, nothing has both the vocabulary and all positions in its shape."""
    monkeypatch.setitem(token_loss.ROWS_PER_BLOCK, "cpu", 8)
    vocabulary, num_sequences, num_positions = 320, 40, 40 * (LENGTH - 1)
    model, reference = (
        language.build(shape, vocab_size=vocabulary, sequence_length=LENGTH, seed=0) for shape in ("tiny-neox-64", "tiny-neox-96")
    )
    input_ids_BT = tokens(num_sequences)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile:
        divergence = Divergence(reference, "proxy_reference", 0.3, hidden_states(reference, input_ids_BT))
        total, _, _ = weighted_loss(model, input_ids_BT, input_ids_BT, torch.ones(num_sequences), divergence=divergence)
        total.backward()
    shapes = [shape for event in profile.events() for shape in event.input_shapes if vocabulary in shape]
    assert [8, vocabulary] in shapes, "the blocks themselves must be seen, or this test sees nothing"
    others = {size for shape in shapes for size in shape if size != vocabulary}
    assert not others & {num_sequences, num_positions, num_sequences * LENGTH}


def test_saying_that_every_token_counts_changes_nothing(model: torch.nn.Module) -> None:
    """The tokens themselves as labels take another way through the code than equal labels, to the same bits."""
    input_ids_BT, weight_B = tokens(6), torch.rand(6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = []
    for labels_BT in (input_ids_BT, input_ids_BT.clone()):
        total, sums_B, counts_B = weighted_loss(model, input_ids_BT, labels_BT, weight_B)
        found.append([total, sums_B, counts_B, *torch.autograd.grad(total, list(model.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("is_compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_loss_for_a_compiler_is_the_same(is_compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU: products in bfloat16, the last block shorter than the others. Rounded once instead of several times."""
    model, input_ids_BT, weight_B = (
        language_model("tiny-neox-64").float(),
        tokens(6),
        torch.rand(6, generator=torch.Generator().manual_seed(0)),
    )
    monkeypatch.setitem(token_loss.ROWS_PER_BLOCK, "cpu", 32)
    used = []

    def fused(*arguments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        used.append(len(arguments[0]))
        return function(*arguments)

    found = []
    function = torch.compile(token_loss._loss_and_slope) if is_compiled else token_loss._loss_and_slope
    for one in (None, fused):
        monkeypatch.setattr(token_loss, "_fused", one)
        with torch.autocast("cpu", torch.bfloat16):
            total, sums_B, _ = weighted_loss(model, input_ids_BT, input_ids_BT, weight_B)
        found.append([total.detach(), sums_B, *torch.autograd.grad(total, list(model.parameters()))])
    assert set(used) == {32, 6 * (LENGTH - 1) % 32}
    for eager, other in zip(*found, strict=True):
        assert relative_error([other], [eager]) < 5e-3


def test_the_loss_for_a_compiler_in_double_precision() -> None:
    logits_nV = torch.randn(5, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    target_n, weight_n = torch.tensor([0, 3, 10, 3, 7]), torch.rand(5, dtype=torch.float64)
    loss_n, slope_nV = token_loss._loss_and_slope(logits_nV, target_n, weight_n, torch.float64)
    expected_n = F.cross_entropy(logits_nV, target_n, reduction="none")
    torch.testing.assert_close(loss_n, expected_n)
    torch.testing.assert_close(slope_nV, torch.autograd.grad((weight_n * expected_n).sum(), logits_nV)[0])
