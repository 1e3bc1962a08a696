"""LESS against the formula worked out with autograd and torch's own AdamW, what a projection changes, and what it prefers."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from upath import UPath

from bliss_ops import schemas
from bliss_ops.config import LessConfig
from bliss_ops.corpus import validation
from bliss_ops.lake import write_parquet
from bliss_ops.models import language
from bliss_ops.models.gradient_similarity import AdamMoments
from bliss_ops.models.sequence_gradients import SequenceGradients
from bliss_ops.rank_correlation import area_under_curve
from bliss_ops.selectors import SelectorInputs, less
from bliss_ops.sharding import ROWS_PER_SHARD
from bliss_ops.training.state import TARGET, TrainState, adamw
from tests.selectors.windows import LENGTH, VOCABULARY, both_shards, counting


def with_settings(inputs: SelectorInputs, section: str, **changes: Any) -> SelectorInputs:
    settings = getattr(inputs.config, section).model_copy(update=changes)
    return replace(inputs, config=inputs.config.model_copy(update={section: settings}))


@pytest.fixture(scope="module")
def fitted(inputs: SelectorInputs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, UPath]:
    """Three fits that differ in the projection alone; 512 numbers out of 108,160."""
    directories = {}
    for projection in ("none", "sparse", "rademacher"):
        directories[projection] = UPath(tmp_path_factory.mktemp(projection))
        less.fit(with_settings(inputs, "less", projection=projection, projection_size=512), directories[projection])
    return directories


def different_sequences(count: int) -> np.ndarray:
    """Counting, with a tenth of the tokens replaced, so that no two are alike."""
    rng = np.random.default_rng(5)
    tokens = np.concatenate([counting(count // 2, half, rng) for half in (0, 1)])
    return np.where(rng.random(tokens.shape) < 0.1, rng.integers(0, VOCABULARY, tokens.shape), tokens)


def restored(directory: UPath, file: str) -> TrainState:
    model = language.build("tiny-neox-64", vocab_size=VOCABULARY, sequence_length=LENGTH, seed=1)
    state = TrainState(model, adamw(model, 1e-3, 0.0))
    state.restore(language.read_tensors(directory / file))
    return state


def mean_loss(model: Any, input_ids_BT: np.ndarray) -> torch.Tensor:
    rows_BT = torch.from_numpy(input_ids_BT)
    return F.cross_entropy(model(input_ids=rows_BT).logits[:, :-1].flatten(0, 1), rows_BT[:, 1:].flatten())


def flat(tensors: Any) -> torch.Tensor:
    return torch.cat([tensor.detach().flatten().double() for tensor in tensors])


# ---- the score -------------------------------------------------------------------------------------------------------


def test_preconditioning_is_the_formula_and_torchs_own_step() -> None:
    """The step AdamW takes, over its learning rate, after seven steps on other gradients."""
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(3, 4, generator=generator, dtype=torch.float64))
    optimizer = torch.optim.AdamW([parameter], lr=0.1, betas=(0.9, 0.95), eps=1e-3, weight_decay=0.0)
    gradients = [torch.randn(3, 4, generator=generator, dtype=torch.float64) for _ in range(8)]
    for gradient in gradients[:-1]:
        parameter.grad = gradient
        optimizer.step()
    m, v = (optimizer.state[parameter][moment].clone() for moment in ("exp_avg", "exp_avg_sq"))
    g, before = gradients[-1], parameter.detach().clone()
    found = AdamMoments.of(m, v, 7, betas=(0.9, 0.95), epsilon=1e-3).precondition(g[None], slice(None))[0]
    by_hand = ((0.9 * m + 0.1 * g) / (1 - 0.9**8)) / (((0.95 * v + 0.05 * g**2) / (1 - 0.95**8)).sqrt() + 1e-3)
    torch.testing.assert_close(found, by_hand, rtol=1e-12, atol=0)
    parameter.grad = g
    optimizer.step()
    torch.testing.assert_close(found, (before - parameter.detach()) / 0.1, rtol=1e-9, atol=0)


def test_a_score_is_the_weighted_mean_of_the_cosines_of_adams_step_and_the_validation_gradient(
    inputs: SelectorInputs, fitted: dict[str, UPath]
) -> None:
    tokens = different_sequences(6)
    guide = validation.read(inputs.validation, "guide")
    expected = np.zeros(6)
    settings = json.loads((fitted["none"] / less.SETTINGS).read_text())
    rates = [checkpoint["learning_rate"] for checkpoint in settings["checkpoints"]]
    assert rates == [1e-3, 1e-3]  # the proxy's, past the two steps it rises in: its warm-up had ten
    for checkpoint in settings["checkpoints"]:
        model = restored(fitted["none"], checkpoint["file"]).model
        z = flat(torch.autograd.grad(mean_loss(model, guide.input_ids_NT), list(model.parameters())))
        for row in range(6):
            state = restored(fitted["none"], checkpoint["file"])
            before = flat(state.model.parameters())
            mean_loss(state.model, tokens[row : row + 1]).backward()
            state.optimizer.step()
            gamma = before - flat(state.model.parameters())
            expected[row] += float(gamma @ z / gamma.norm() / z.norm()) / 2
    found = less.load_scorer(fitted["none"])(np.arange(6), tokens)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    assert expected.std() > 0.01


def test_checkpoints_follow_the_warm_up_and_keep_their_optimizer(fitted: dict[str, UPath]) -> None:
    steps = [int(language.read_tensors(fitted["none"] / f"checkpoint-{number}.safetensors")["num_steps"]) for number in (1, 2)]
    assert steps == [13, 16]  # ten of the proxy, and half of six each
    rows = [json.loads(line) for line in (fitted["none"] / less.METRICS).read_text().splitlines()]
    assert [row["step"] for row in rows] == [11, 12, 13, 14, 15, 16]
    moments = restored(fitted["none"], "checkpoint-2.safetensors").optimizer.state
    assert all(float(moment["step"]) == 16 for moment in moments.values())


# ---- projections -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("projection", ["sparse", "rademacher"])
def test_projected_scores_are_the_exact_ones_within_the_johnson_lindenstrauss_error(fitted: dict[str, UPath], projection: str) -> None:
    """1/sqrt(512) = 0.044 for one checkpoint; the two share the projection, so their mean has hardly less."""
    tokens = different_sequences(128)
    exact = less.load_scorer(fitted["none"])(np.arange(128), tokens)
    found = less.load_scorer(fitted[projection])(np.arange(128), tokens)
    error = float(np.sqrt(np.mean((found - exact) ** 2)))
    assert 1e-4 < error < 1.5 / 512**0.5


@pytest.mark.parametrize("projection", ["none", "sparse", "rademacher"])
def test_the_ranking_knows_neither_batches_nor_shards(fitted: dict[str, UPath], projection: str) -> None:
    tokens = different_sequences(20)
    ids = np.arange(20)
    score = less.load_scorer(fitted[projection])
    together = score(ids, tokens)
    for size in (7,) if projection == "rademacher" else (1, 7):  # signs are made anew for every pass
        score.batch_sequences = size  # type: ignore[attr-defined]
        found = score(ids, tokens)
        np.testing.assert_allclose(found, together, rtol=0, atol=1e-6)
        assert (np.argsort(found) == np.argsort(together)).all()
    parts = [less.load_scorer(fitted[projection])(ids[part], tokens[part]) for part in (slice(0, 5), slice(5, 20))]
    np.testing.assert_allclose(np.concatenate(parts), together, rtol=0, atol=1e-6)


def test_a_pass_that_does_not_fit_is_done_in_halves(fitted: dict[str, UPath], monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory ends in the middle of a pass, when part of its gradients have been made."""
    score = less.load_scorer(fitted["none"])
    expected = score(np.arange(20), different_sequences(20))
    whole, calls = SequenceGradients._add_gradients, 0

    def add(self: SequenceGradients, found: Any, module: Any, given: torch.Tensor, slope_BTO: torch.Tensor) -> None:
        nonlocal calls
        calls += 1
        if len(given) > 5 and calls > 3:
            raise torch.OutOfMemoryError("full")
        whole(self, found, module, given, slope_BTO)

    monkeypatch.setattr(SequenceGradients, "_add_gradients", add)
    np.testing.assert_allclose(score(np.arange(20), different_sequences(20)), expected, rtol=0, atol=1e-6)
    assert score.batch_sequences == 5  # type: ignore[attr-defined]


# ---- what it prefers, what it starts from ------------------------------------------------------------------------------


@pytest.mark.parametrize("projection", ["none", "sparse", "rademacher"])
def test_less_finds_the_half_that_looks_like_the_validation_set(inputs: SelectorInputs, fitted: dict[str, UPath], projection: str) -> None:
    ids, tokens = (column[:128] for column in both_shards(inputs))
    scores = less.load_scorer(fitted[projection])(ids, tokens)
    useful = ids < ROWS_PER_SHARD
    assert area_under_curve(scores[useful], scores[~useful]) > 0.95


def test_a_set_of_more_weight_pulls_less_to_its_side(inputs: SelectorInputs, tmp_path: Path) -> None:
    rows = counting(64, 0, np.random.default_rng(0)), counting(64, 1, np.random.default_rng(1))
    column = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(rows).astype(np.int32).ravel()), LENGTH)
    ids, tokens = (values[:128] for values in both_shards(inputs))
    for heavy in (0, 1):
        weight_N = np.repeat([1.9, 0.1] if heavy == 0 else [0.1, 1.9], 64)
        table = pa.table([column, column, weight_N, np.repeat([0, 1], 64)], schema=schemas.validation(LENGTH, several_sets=True))
        write_parquet(UPath(tmp_path) / f"{heavy}" / "guide.parquet", table)
        directory = UPath(tmp_path / f"less-{heavy}")
        less.fit(replace(inputs, validation=UPath(tmp_path) / f"{heavy}"), directory)
        scores = less.load_scorer(directory)(ids, tokens)
        wanted = ids // ROWS_PER_SHARD == heavy
        assert area_under_curve(scores[wanted], scores[~wanted]) > 0.9, heavy


def test_it_starts_from_the_target_where_that_has_been_trained(inputs: SelectorInputs, tmp_path: Path) -> None:
    chosen = with_settings(inputs, "target", shape="tiny-llama-96")
    state = TrainState(
        model := language.build("tiny-llama-96", vocab_size=VOCABULARY, sequence_length=LENGTH, seed=0), adamw(model, 1e-3, 0.1)
    )
    state.step = 40
    language.write_tensors(UPath(tmp_path) / "pretrain" / TARGET, state.tensors())
    second = replace(chosen, round_number=2, reference=UPath(tmp_path) / "pretrain")
    _, metrics = less.fit(second, UPath(tmp_path / "second"))
    assert (metrics["model"], metrics["shape"]) == ("target of round 1", "tiny-llama-96")
    settings = json.loads((tmp_path / "second" / less.SETTINGS).read_text())
    assert settings["checkpoints"][0]["learning_rate"] == chosen.config.pretraining.learning_rate
    assert np.isfinite(less.load_scorer(UPath(tmp_path / "second"))(np.arange(8), different_sequences(8))).all()


def test_without_any_warm_up_its_own_is_the_first(inputs: SelectorInputs, tmp_path: Path) -> None:
    """The learning rate rises over the first two steps of a model's life; checkpoints count by the mean rate before them."""
    _, metrics = less.fit(with_settings(inputs, "proxy", warmup_steps=0), UPath(tmp_path))
    assert metrics["model"] == "untrained target"
    rates = [checkpoint["learning_rate"] for checkpoint in json.loads((tmp_path / less.SETTINGS).read_text())["checkpoints"]]
    assert rates == pytest.approx([1e-3 * (0.5 + 1 + 1) / 3, 1e-3])


# ---- resuming, settings ----------------------------------------------------------------------------------------------


class Dying:
    """A candidate stream that is interrupted at its n-th batch."""

    def __init__(self, batch: Callable[..., Any], at: int) -> None:
        self.of, self.at, self.calls = batch, at, 0

    def batch(self, *arguments: Any) -> Any:
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return self.of(*arguments)


@pytest.mark.parametrize("at", [2, 5, 6])
def test_a_killed_fit_goes_on_to_the_same_bytes(inputs: SelectorInputs, tmp_path: Path, at: int) -> None:
    """Killed before the first save, after one in the middle of the second stretch, and at its end; saves are at steps 12, 13, 14, 16."""
    files, _ = less.fit(inputs, UPath(tmp_path / "undisturbed"))
    dying = Dying(inputs.candidates.batch, at)
    with pytest.raises(KeyboardInterrupt):
        less.fit(replace(inputs, candidates=dying), UPath(tmp_path / "killed"))
    again = Dying(inputs.candidates.batch, -1)
    less.fit(replace(inputs, candidates=again), UPath(tmp_path / "killed"))
    for file in files:
        assert (tmp_path / "killed" / file).read_bytes() == (tmp_path / "undisturbed" / file).read_bytes(), file
    assert again.calls == {2: 6, 5: 2, 6: 2}[at]


def test_settings_that_cannot_work_are_errors_that_say_so() -> None:
    with pytest.raises(ValidationError, match=r"set it to less\.num_checkpoints or more"):
        LessConfig(num_checkpoints=5, num_warmup_steps=4)
    with pytest.raises(ValidationError, match=r"multiple of less\.sketch_entries"):
        LessConfig(projection_size=100, sketch_entries=3)


def test_flops_count_the_passes_of_every_checkpoint_and_the_projection(inputs: SelectorInputs) -> None:
    def score(**changes: Any) -> float:
        return less.flops(with_settings(inputs, "less", **changes).config, vocab_size=VOCABULARY, num_sequences=1000).score

    num_parameters = language.num_parameters("tiny-neox-64", vocab_size=VOCABULARY)
    assert score(num_checkpoints=4) == 2 * score(num_checkpoints=2)
    dense, sparse = score(num_checkpoints=1, projection="rademacher"), score(num_checkpoints=1)
    assert dense - sparse == pytest.approx(1000 * 2 * num_parameters * (8192 - 1))
    matrices = 2 * 12 * 64**2 + 64 * VOCABULARY
    assert sparse == pytest.approx(1000 * (6 * matrices * LENGTH + 2 * num_parameters), rel=0.15)  # and attention
