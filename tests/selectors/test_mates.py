"""MATES against independent computations: a probe's influence, the regressor, the sampling; what is inherited; what a kill leaves."""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import torch.nn.functional as F
from upath import UPath

from bliss_ops import fidelity
from bliss_ops.corpus import validation
from bliss_ops.models import language
from bliss_ops.rank_correlation import area_under_curve, spearman
from bliss_ops.selectors import SelectorInputs, mates, random
from bliss_ops.sharding import ROWS_PER_SHARD
from bliss_ops.training import influence, regression
from bliss_ops.training.probing import measured_influences
from bliss_ops.training.starting import restored, starting_model
from bliss_ops.training.state import PROXY
from bliss_ops.training.workers import Workers
from tests.selectors.windows import LENGTH, ROWS, VOCABULARY, both_shards


def with_mates(inputs: SelectorInputs, **changes: Any) -> SelectorInputs:
    settings = inputs.config.mates.model_copy(update=changes)
    return replace(inputs, config=inputs.config.model_copy(update={"mates": settings}))


class Dying:
    """A function that is interrupted at its n-th call."""

    def __init__(self, function: Callable[..., Any], at: int) -> None:
        self.function, self.at, self.calls = function, at, 0

    def __call__(self, *arguments: Any) -> Any:
        self.calls += 1
        if self.calls == self.at:
            raise KeyboardInterrupt
        return self.function(*arguments)


def plain_loss(model: torch.nn.Module, rows: validation.ValidationRows) -> float:
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(rows.input_ids_NT)).logits.double()
    return float(F.cross_entropy(logits[:, :-1].transpose(1, 2), torch.from_numpy(rows.labels_NT)[:, 1:], ignore_index=-100))


@pytest.fixture(scope="module")
def fitted(inputs: SelectorInputs, tmp_path_factory: pytest.TempPathFactory) -> tuple[UPath, dict[str, Any]]:
    directory = UPath(tmp_path_factory.mktemp("mates"))
    whole = with_mates(inputs, validation_rows=10**6)
    return directory, mates.fit(whole, directory)[1]


def test_an_influence_is_the_loss_difference_of_one_adamw_step_on_a_plain_copy(
    inputs: SelectorInputs, fitted: tuple[UPath, dict[str, Any]]
) -> None:
    """torch's own AdamW on the checkpoint's weights and moments; decay of matrices alone and clipping as in pretraining."""
    directory, metrics = fitted
    found = pq.read_table(str(directory / mates.PROBES)).to_pydict()
    written = language.read_tensors(inputs.warmup / PROXY)
    guide = validation.read(inputs.validation, "guide")
    ids, tokens = both_shards(inputs)
    token_of = dict(zip(ids.tolist(), tokens, strict=True))

    def plain() -> tuple[torch.nn.Module, torch.optim.AdamW]:
        model = language.build("tiny-neox-64", vocab_size=VOCABULARY, sequence_length=LENGTH, seed=99)
        model.load_state_dict({key.removeprefix("model."): value for key, value in written.items() if key.startswith("model.")})
        matrices, vectors = ([p for p in model.parameters() if (p.ndim >= 2) == wanted] for wanted in (True, False))
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95))
        for key, parameter in model.named_parameters():
            optimizer.state[parameter] = {moment: written[f"{moment}.{key}"].clone() for moment in ("exp_avg", "exp_avg_sq", "step")}
        return model, optimizer

    before = plain_loss(plain()[0], guide)
    assert metrics["validation_loss"] == pytest.approx(before, rel=1e-6)
    for index in (0, 40, 95):
        model, optimizer = plain()
        row = torch.from_numpy(token_of[found["sequence_id"][index]])[None]
        model(input_ids=row, labels=row).loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        assert norm > 1, "clipping has something to do"
        optimizer.step()
        assert found["influence"][index] == pytest.approx(before - plain_loss(model, guide), abs=2e-6)
    assert np.std(found["influence"]) > 1e-4, "far above the tolerance"


def test_the_regressor_ranks_probes_it_has_not_learned_from(inputs: SelectorInputs, fitted: tuple[UPath, dict[str, Any]]) -> None:
    """The reported Spearman, computed again from the files: the predictions of the written model on the held-out probes."""
    directory, metrics = fitted
    settings = inputs.config.mates
    sequence_ids_M, probes_MT = (
        np.concatenate(column) for column in zip(*inputs.candidates.sample(settings.num_probes, inputs.config.seed), strict=True)
    )
    found = pq.read_table(str(directory / mates.PROBES))
    influence_of = dict(zip(found["sequence_id"].to_pylist(), found["influence"].to_pylist(), strict=True))
    influence_M = np.array([influence_of[number] for number in sequence_ids_M.tolist()])
    labelled = regression.Labelled.split(probes_MT, influence_M, 10, inputs.config.seed)
    held = labelled.is_heldout_M
    assert held.sum() == metrics["num_heldout"] == 10
    assert labelled.label_M[~held].mean() == pytest.approx(0, abs=1e-9)
    assert labelled.label_M[~held].std() == pytest.approx(1)
    settings_file = json.loads((directory / "score_model.json").read_text())
    (directory / "score_model.json").write_text(json.dumps(settings_file | {"sampling": "top_k"}))
    predicted = mates.load_scorer(directory)(sequence_ids_M[held], probes_MT[held])
    (directory / "score_model.json").write_text(json.dumps(settings_file))
    assert metrics["spearman"] == pytest.approx(spearman(predicted, influence_M[held]))
    rows = [json.loads(line) for line in (directory / mates.METRICS).read_text().splitlines()]
    looks = {row["step"]: row["heldout_spearman"] for row in rows if "heldout_spearman" in row}
    assert looks[metrics["best_step"]] == max(looks.values()) == pytest.approx(metrics["spearman"], abs=1e-5)
    assert 0 < metrics["spearman_standard_error"] < 0.5


def test_text_like_the_validation_set_is_predicted_to_help_more(inputs: SelectorInputs, tmp_path: Path) -> None:
    mates.fit(with_mates(inputs, sampling="top_k"), UPath(tmp_path))
    ids, tokens = both_shards(inputs)
    scores = mates.load_scorer(UPath(tmp_path))(ids, tokens)
    assert area_under_curve(scores[ids < ROWS_PER_SHARD], scores[ids >= ROWS_PER_SHARD]) > 0.95


def test_gumbel_sampling_adds_each_sequences_own_draw_to_the_tempered_prediction(
    inputs: SelectorInputs, fitted: tuple[UPath, dict[str, Any]], tmp_path: Path
) -> None:
    ids, tokens = both_shards(inputs)
    sampled = mates.load_scorer(fitted[0])(ids, tokens)
    mates.fit(with_mates(inputs, validation_rows=10**6, sampling="top_k"), UPath(tmp_path))
    predicted = mates.load_scorer(UPath(tmp_path))(ids, tokens)
    draws = random.gumbel(ids, inputs.config.seed, 1, stream=mates._STREAM)
    np.testing.assert_allclose(sampled, predicted / 0.5 + draws, atol=1e-5)


def test_gumbel_top_one_is_a_draw_in_proportion_to_the_tempered_weights() -> None:
    """Why the sum is a sample: over many seeds, the largest of five is each of them as often as exp(prediction / temperature) says."""
    prediction = np.array([0.5, 0.0, -0.5, 0.25, -1.0]) / 0.5
    ids, num_seeds = np.arange(5), 20_000
    wins = np.bincount([np.argmax(prediction + random.gumbel(ids, seed, 1, stream=1)) for seed in range(num_seeds)], minlength=5)
    expected = np.exp(prediction) / np.exp(prediction).sum() * num_seeds
    assert (np.square(wins - expected) / expected).sum() < 18.5  # chi-square, 4 degrees of freedom, p = 0.001


def test_fidelity_probes_what_mates_has_not_learned_from(inputs: SelectorInputs) -> None:
    config = inputs.config.model_copy(update={"method": "mates"})
    assert fidelity.num_positions_read(config, 10 * config.mates.num_probes) == config.mates.num_probes
    assert fidelity.num_positions_read(config, config.mates.num_probes - 1) == config.mates.num_probes - 1


# ---- rounds, kills, workers ------------------------------------------------------------------------------------------


def test_from_round_two_on_the_regressor_goes_on_and_the_target_is_probed(inputs: SelectorInputs, tmp_path: Path) -> None:
    first, second, anew = (UPath(tmp_path / name) for name in ("first", "second", "anew"))
    mates.fit(inputs, first)
    later = replace(inputs, round_number=2, previous=first, reference=inputs.warmup)
    settings = {"num_epochs": 1, "regressor_learning_rate": 1e-9, "regressor_batch_sequences": 96}  # one step that changes nothing
    metrics = mates.fit(with_mates(later, **settings), second)[1]
    mates.fit(with_mates(later, **settings, regressor_start="reset"), anew)
    assert metrics["model"] == "target of round 1"
    weights = [language.read_tensors(path / "score_model.safetensors")["head.weight"] for path in (first, second, anew)]
    assert torch.allclose(weights[0], weights[1], atol=1e-6)
    assert weights[2].abs().max() < 1e-6, "the head of a new regressor is zero"


def test_a_killed_fit_goes_on_where_it_was(
    inputs: SelectorInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Killed twice, among the probes and in the regression: nothing is measured twice, and the files are those of an undisturbed fit."""
    undisturbed, killed = UPath(tmp_path / "undisturbed"), UPath(tmp_path / "killed")
    files, metrics = mates.fit(inputs, undisturbed)
    step_on = Dying(influence._step_on, at=50)
    monkeypatch.setattr(influence, "_step_on", step_on)
    with pytest.raises(KeyboardInterrupt):
        mates.fit(inputs, killed)
    measured = list(killed.glob("probed-*"))
    assert len(measured) == 1, "one block of 32 of the 49 that were probed"
    monkeypatch.setattr(regression, "predictions", Dying(regression.predictions, at=5))
    with pytest.raises(KeyboardInterrupt):
        mates.fit(inputs, killed)
    assert step_on.calls == 50 + 96 - 32
    monkeypatch.undo()
    with caplog.at_level(logging.INFO):
        assert mates.fit(inputs, killed) == (files, metrics)
    assert "going on after step 15" in caplog.text
    for file in files:
        assert (killed / file).read_bytes() == (undisturbed / file).read_bytes(), file


def test_influences_do_not_depend_on_how_probes_are_divided_over_workers(inputs: SelectorInputs, tmp_path: Path) -> None:
    """Two workers one after the other, and one alone: blocks that one has left out are the other's."""
    model = starting_model(inputs.config, 1, warmup=inputs.warmup, reference=inputs.reference, has_proxy=True)
    state = restored(model, inputs.config, VOCABULARY, learning_rate=1e-3)
    guide = validation.read(inputs.validation, "guide").take(slice(0, 4))
    _, probes_MT = both_shards(inputs)

    class Second(Workers):
        def barrier(self) -> None:
            """The other one is not there to be waited for."""

        def agreed(self, _: object) -> Any:
            """It would have found no block."""
            return [0, 1, 2]

    alone = measured_influences(state, probes_MT[:70], guide, directory=UPath(tmp_path / "alone"), title="t", section="mates")
    shared = UPath(tmp_path / "shared")
    with pytest.raises(FileNotFoundError):  # what the first worker measures is not there yet
        measured_influences(state, probes_MT[:70], guide, directory=shared, title="t", section="mates", workers=Second(1, 2))
    assert sorted(path.name for path in shared.glob("probed-*")) == ["probed-00001.f64", "probed-00002.f64"]
    together = measured_influences(state, probes_MT[:70], guide, directory=shared, title="t", section="mates")
    assert together.influence_M.tolist() == alone.influence_M.tolist()
    assert (together.loss, together.momentum) == (alone.loss, alone.momentum)
    assert not list(shared.glob("probed-*"))


# ---- bad input -------------------------------------------------------------------------------------------------------


def test_an_untrained_model_is_not_probed(inputs: SelectorInputs, tmp_path: Path) -> None:
    config = inputs.config.model_copy(update={"proxy": inputs.config.proxy.model_copy(update={"warmup_steps": 0})})
    with pytest.raises(ValueError, match=r"untrained model .*: set target\.warmup_steps or proxy\.warmup_steps"):
        mates.fit(replace(inputs, config=config), UPath(tmp_path))


def test_a_step_that_diverges_names_the_setting(inputs: SelectorInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(influence, "_mean_loss", lambda *_: float("nan"))
    with pytest.raises(ValueError, match=r"^mates: .* lower mates\.learning_rate"):
        mates.fit(inputs, UPath(tmp_path))


def test_influences_that_are_all_equal_teach_nothing(inputs: SelectorInputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(influence, "_mean_loss", lambda *_: 1.0)
    with pytest.raises(ValueError, match=r"raise mates\.learning_rate"):
        mates.fit(inputs, UPath(tmp_path))


def test_more_probes_than_there_are_candidates_takes_them_all(inputs: SelectorInputs, caplog: pytest.LogCaptureFixture) -> None:
    ids, probes = mates._probes(with_mates(inputs, num_probes=10**6))
    assert len(set(ids.tolist())) == len(probes) == 2 * ROWS
    assert "1000000 probes are asked for and the window has 512" in caplog.text
