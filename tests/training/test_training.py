"""The training loop against an independent plain loop, exact resume, export and learning rates."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from upath import UPath

from bliss_ops.corpus.reading import SequenceReader
from bliss_ops.corpus.validation import ValidationRows
from bliss_ops.lake import shard_file
from bliss_ops.models import language
from bliss_ops.training import parallel
from bliss_ops.training.device import explained_out_of_memory
from bliss_ops.training.jobs import batch_description
from bliss_ops.training.loop import mean_token_loss, train, train_resumably
from bliss_ops.training.metrics import StepMetrics
from bliss_ops.training.schedules import linear_decay, warmup_stable
from bliss_ops.training.state import TrainState, adamw
from tests.training import jobs


def new_state(seed: int = 0) -> TrainState:
    model = language.build("tiny-neox-64", vocab_size=128, sequence_length=16, seed=seed)
    return TrainState(model, adamw(model, 1e-3, 0.1))


def batch_of(step: int) -> np.ndarray:
    return np.random.default_rng(step).integers(0, 128, (6, 16))


def run(state: TrainState, directory: Path, last_step: int, micro_batch: int = 6, **settings: Any) -> StepMetrics:
    metrics = StepMetrics(UPath(directory / "metrics.jsonl"), "test", last_step, 96)
    train_resumably(
        state,
        batch_of,
        last_step,
        UPath(directory / "state.safetensors"),
        checkpoint_every_steps=2,
        learning_rate=lambda step: warmup_stable(step, peak=3e-3, warmup_steps=3),
        micro_batch_sequences=micro_batch,
        max_gradient_norm=1.0,
        metrics=metrics,
        **settings,
    )
    return metrics


def test_fifty_steps_equal_an_independent_plain_loop_step_by_step(tmp_path: Path) -> None:
    """Warm-up, stable, decay; two micro-batches per step; the gradient is clipped in every step."""

    def learning_rate(step: int) -> float:
        stable = warmup_stable(step, peak=3e-3, warmup_steps=5)
        return stable if step < 40 else linear_decay(step - 40, peak=3e-3, decay_steps=10)

    state, metrics = new_state(), StepMetrics(UPath(tmp_path / "metrics.jsonl"), "test", 50, 96)
    train(
        state,
        batch_of,
        50,
        learning_rate=learning_rate,
        micro_batch_sequences=4,
        max_gradient_norm=0.3,
        metrics=metrics,
        num_batches_ahead=2,
    )

    model = language.build("tiny-neox-64", vocab_size=128, sequence_length=16, seed=0)
    decay = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW([{"params": decay, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}], betas=(0.9, 0.95))
    expected, norms = [], []
    for step in range(50):
        tokens = torch.from_numpy(batch_of(step))
        total = 0.0
        for part in (tokens[:4], tokens[4:]):
            loss = model(input_ids=part, labels=part).loss * len(part) / len(tokens)  # the library's own shifted mean loss
            loss.backward()
            total += loss.item()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)))
        rate = 3e-3 * min(1, (step + 1) / 5) if step < 40 else 3e-3 * (50 - step) / 11
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        expected.append(total)
    assert min(norms) > 0.3
    np.testing.assert_allclose([row["loss"] for row in metrics.rows], expected, rtol=2e-5)
    for ours, theirs in zip(state.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("stop", [1, 2, 5])
def test_a_stopped_job_goes_on_to_bit_identical_weights(tmp_path: Path, stop: int) -> None:
    straight = new_state()
    run(straight, tmp_path / "straight", 8)
    run(new_state(), tmp_path / "stopped", stop)
    resumed = new_state(seed=99)  # its own weights must not matter
    metrics = run(resumed, tmp_path / "stopped", 8)
    assert [row["step"] for row in metrics.rows] == list(range(1, 9))
    for name, value in straight.tensors().items():
        assert torch.equal(value, resumed.tensors()[name]), name


def test_micro_batches_change_rounding_only(tmp_path: Path) -> None:
    whole, parts = new_state(), new_state()
    run(whole, tmp_path / "whole", 3)
    run(parts, tmp_path / "parts", 3, micro_batch=4)  # 4 + 2: an uneven last part
    for a, b in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_a_diverging_job_stops_says_where_and_keeps_its_checkpoint(tmp_path: Path) -> None:
    state = new_state()

    def poison(step: int) -> None:  # of the fifth step the loss is not finite any more
        if step == 4:
            with torch.no_grad():
                next(state.model.parameters()).fill_(float("inf"))

    message = r"the loss is nan at step 5 \(batch 4\): lower the learning rate .*the last checkpoint is as it was"
    with pytest.raises(ValueError, match=message):
        run(state, tmp_path, 8, after_step=poison, describe_batch=lambda step: f"batch {step}")
    kept = language.read_tensors(UPath(tmp_path / "checkpoints" / "state-step-000002.safetensors"))
    assert all(tensor.isfinite().all() for tensor in kept.values())
    assert int(kept["num_steps"]) == 2
    assert not (tmp_path / "state.safetensors").exists()


def test_a_gradient_that_is_not_finite_never_reaches_the_weights(tmp_path: Path) -> None:
    state = new_state()
    state.model.get_parameter("gpt_neox.final_layer_norm.weight").register_hook(lambda gradient: gradient * float("inf"))  # type: ignore[no-untyped-call]
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    with pytest.raises(ValueError, match=r"the gradient's norm is (nan|inf) \(loss 4\.\d+\) at step 1"):
        run(state, tmp_path, 3)
    assert all(torch.equal(value, before[name]) for name, value in state.model.state_dict().items())


def test_a_full_gpu_is_told_what_to_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    state = new_state()
    monkeypatch.setattr(parallel.Objective, "forward", full)
    message = (
        r"test: the GPU is out of memory: lower pretraining.micro_batch_sequences \(it is 6\), or set pretraining.activation_checkpointing"
    )
    with pytest.raises(ValueError, match=message):
        run(state, tmp_path, 2)
    with (
        pytest.raises(ValueError, match=r"bilevel.micro_batch_sequences is 1 already\. \(CUDA out of memory\)"),
        explained_out_of_memory("fit x", "bilevel.micro_batch_sequences", 1),
    ):
        full()


def test_the_description_of_a_batch_names_its_sequences(tmp_path: Path) -> None:
    tiny = jobs.make_run(tmp_path)
    files = [shard_file(tiny.round(1) / "subset", shard) for shard in (0, 1)]
    ids = SequenceReader(files).batch(1, 12, 0)[0]
    said = batch_description(files, 2, 12, 0)(3)
    assert "positions 12 to 23 of the stream of" in said
    assert said.endswith(f"sequence ids {', '.join(map(str, ids[:8]))} and 4 more")


def test_mean_token_loss_counts_only_labelled_tokens() -> None:
    model = new_state().model
    tokens = batch_of(0)
    labels = tokens.copy()
    labels[2:, 8:] = -100
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(tokens)).logits
    losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), torch.from_numpy(labels[:, 1:]), ignore_index=-100)
    for batch in (1, 4, 64):
        assert mean_token_loss(model, ValidationRows.unweighted(tokens, labels), batch)[0] == pytest.approx(float(losses), rel=1e-5)


def test_mean_token_loss_of_several_sets_is_the_weighted_mean_of_their_losses() -> None:
    model = new_state().model
    tokens = batch_of(0)
    labels = tokens.copy()
    labels[2:, 5:] = -100
    set_N = (np.arange(len(tokens)) >= 2).astype(np.int64)
    rows = ValidationRows.unweighted(tokens, labels)
    losses = [mean_token_loss(model, rows.take(set_N == number))[0] for number in (0, 1)]
    num_tokens = (labels[:, 1:] != -100).sum(1)
    weights = 1 / np.array([num_tokens[set_N == number].sum() for number in (0, 1)])  # equal weight to each set
    both, sums, counts = mean_token_loss(model, ValidationRows(tokens, labels, weights[set_N], set_N))
    assert both == pytest.approx(sum(losses) / 2, rel=1e-6)
    assert both != pytest.approx(sums.sum() / counts.sum(), rel=1e-4)  # which the plain mean is not


@pytest.mark.parametrize("shape", ["tiny-neox-64", "tiny-llama-96"])
def test_exports_load_with_the_transformers_library(tmp_path: Path, shape: str) -> None:
    from transformers import AutoModelForCausalLM

    model = language.build(shape, vocab_size=128, sequence_length=16, seed=3).eval()
    language.save(model, UPath(tmp_path), "model")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    tokens = torch.from_numpy(batch_of(0))
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=tokens).logits, model(input_ids=tokens).logits)
        torch.testing.assert_close(language.load(UPath(tmp_path), "model")(input_ids=tokens).logits, model(input_ids=tokens).logits)


def test_equal_seeds_give_equal_weights_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    a, b, other = (language.build("tiny-neox-64", vocab_size=64, sequence_length=16, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    assert any(not torch.equal(x, y) for x, y in zip(a.parameters(), other.parameters(), strict=True))


def test_learning_rates() -> None:
    assert [warmup_stable(step, peak=1.0, warmup_steps=4) for step in (0, 1, 3, 4, 100)] == [0.25, 0.5, 1.0, 1.0, 1.0]
    assert [linear_decay(step, peak=1.0, decay_steps=3) for step in range(3)] == [0.75, 0.5, 0.25]
