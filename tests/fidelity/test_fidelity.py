"""Measured influence against an independent computation, which model is probed, what is written, and where it can be asked for."""

import json
import shutil
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from upath import UPath

from bliss_ops import fidelity, pipeline, report, schemas, store
from bliss_ops.corpus import validation
from bliss_ops.corpus.reading import iter_shard
from bliss_ops.lake import Run, shard_file, write_json, write_parquet
from bliss_ops.models import language
from bliss_ops.rank_correlation import spearman
from bliss_ops.sharding import ROWS_PER_SHARD
from bliss_ops.sql import open_snapshot
from bliss_ops.training import influence, probing
from bliss_ops.training.influence import one_step_influences
from bliss_ops.training.state import PROXY, TARGET, TrainState, adamw
from tests.fidelity.conftest import SHAPE, VOCAB, read_influences
from tests.lakes import T, produce

MakeRun = Callable[..., Run]


def fresh(run: Run, name: str) -> tuple[torch.nn.Module, torch.optim.AdamW]:
    """Model and optimizer as they were written, put together by torch's own means."""
    tensors = language.read_tensors(run.warmup / name)
    model = language.build(SHAPE, vocab_size=VOCAB, sequence_length=T, seed=99)
    model.load_state_dict({key.removeprefix("model."): value for key, value in tensors.items() if key.startswith("model.")})
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    for key, parameter in model.named_parameters():
        optimizer.state[parameter] = {moment: tensors[f"{moment}.{key}"].clone() for moment in ("exp_avg", "exp_avg_sq", "step")}
    return model, optimizer


def plain_loss(model: torch.nn.Module, run: Run) -> float:
    """Mean over all counted tokens of the guide rows."""
    guide = validation.read(run.corpus.validation, "guide")
    with torch.no_grad():
        logits = model(input_ids=torch.from_numpy(guide.input_ids_NT)).logits.double()
    labels = torch.from_numpy(guide.labels_NT)[:, 1:]
    return float(torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels, ignore_index=-100))


def tokens_of(run: Run, sequence_id: int) -> torch.Tensor:
    ((_, rows),) = iter_shard(shard_file(run.corpus.sequences, sequence_id // ROWS_PER_SHARD), 100)
    return torch.from_numpy(rows[sequence_id % ROWS_PER_SHARD])[None]


def test_an_influence_is_the_loss_before_minus_after_one_adamw_step(make_tiny_run: MakeRun) -> None:
    run = make_tiny_run(fidelity={"validation_rows": 100})
    manifest = pipeline.fidelity(run, 1)
    found = read_influences(run)
    before = plain_loss(fresh(run, PROXY)[0], run)
    assert manifest.metrics["validation_loss"] == pytest.approx(before, rel=1e-6)
    for index in (0, 11, 23):
        model, optimizer = fresh(run, PROXY)
        tokens = tokens_of(run, found["sequence_id"][index])
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        assert found["influence"][index] == pytest.approx(before - plain_loss(model, run), abs=2e-6)
    assert np.std(found["influence"]) > 1e-4, "far above the tolerance"
    model, optimizer = fresh(run, PROXY)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    assert manifest.metrics["momentum_influence"] == pytest.approx(before - plain_loss(model, run), abs=2e-6)


def test_weights_and_moments_are_left_as_they_were_and_order_does_not_matter(make_tiny_run: MakeRun) -> None:
    run = make_tiny_run()
    model = language.build(SHAPE, vocab_size=VOCAB, sequence_length=T, seed=0)
    state = TrainState(model, adamw(model, 1e-3, 0.0))
    written = language.read_tensors(run.warmup / PROXY)
    state.restore(written)
    probes = np.random.default_rng(5).integers(0, VOCAB, (6, T))
    guide = validation.read(run.corpus.validation, "guide")
    forward = one_step_influences(state, probes, guide).influence_M
    after = state.tensors()
    assert after.keys() == written.keys()
    assert all(torch.equal(after[name], value) for name, value in written.items())
    assert forward.tolist() == one_step_influences(state, probes[::-1].copy(), guide).influence_M[::-1].tolist()


def test_a_model_without_moments_is_left_without(make_tiny_run: MakeRun) -> None:
    run = make_tiny_run()
    model = language.build(SHAPE, vocab_size=VOCAB, sequence_length=T, seed=0)
    state = TrainState(model, adamw(model, 1e-3, 0.0))
    probes = np.zeros((2, T), np.int64)
    first, second = one_step_influences(state, probes, validation.read(run.corpus.validation, "guide")).influence_M
    assert first == second != 0
    assert not state.optimizer.state


def test_scores_and_spearman_belong_to_the_probes(make_tiny_run: MakeRun) -> None:
    run = make_tiny_run()
    metrics = pipeline.fidelity(run, 1).metrics
    found = read_influences(run)
    assert len(set(found["sequence_id"])) == metrics["num_probes"] == 24
    scores = {}
    for shard in (0, 1):
        table = pq.read_table(str(shard_file(run.round(1) / "scores", shard))).to_pydict()
        scores |= dict(zip(table["sequence_id"], table["score"], strict=True))
    assert found["score"] == [scores[sequence_id] for sequence_id in found["sequence_id"]]
    assert metrics["spearman"] == pytest.approx(spearman(np.array(found["score"]), np.array(found["influence"])))
    assert 0 < metrics["spearman_standard_error"] < 0.5


def test_the_state_the_round_starts_from_is_probed(make_tiny_run: MakeRun) -> None:
    run = make_tiny_run(num_rounds=2)
    first, second = fidelity.probe_model(run, 1), fidelity.probe_model(run, 2)
    assert (first.path, second.path) == (run.warmup / PROXY, run.round(1) / "pretrain" / TARGET)
    warm = make_tiny_run(target={"warmup_steps": 4})
    assert fidelity.probe_model(warm, 1).path == warm.warmup / TARGET
    assert pipeline.fidelity(warm, 1).metrics["model"] == "warmed-up target"


def test_a_method_without_a_proxy_is_judged_on_that_of_the_warm_up_it_shares(make_tiny_run: MakeRun) -> None:
    owner, random = make_tiny_run(), make_tiny_run("random")
    config = json.loads((random.path / "config.json").read_text())
    write_json(random.path / "config.json", config | {"warmup_of": owner.name})
    metrics = pipeline.fidelity(random.lake.run(random.name), 1).metrics
    assert (metrics["measured"], metrics["model"]) == (True, "warmed-up proxy")


def test_probes_are_drawn_from_what_training_does_not_read() -> None:
    held_out = fidelity.probe_positions(1000, 100, 600, seed=0)
    assert len(set(held_out)) == 100
    assert held_out.min() >= 600
    assert held_out.max() < 1000
    assert held_out.min() < 650, "not the last ones only"
    assert fidelity.probe_positions(1000, 100, 950, seed=0).tolist() == list(range(900, 1000)), "half of them were read"
    assert fidelity.probe_positions(50, 100, 0, seed=0).tolist() == list(range(50))
    assert fidelity.probe_positions(10**8, 100, 0, seed=0).min() >= 10**8 - fidelity.MOST_POSITIONS


def test_probes_that_training_has_read_are_counted(make_tiny_run: MakeRun) -> None:
    assert pipeline.fidelity(make_tiny_run(), 1).metrics["num_seen"] == 0


def test_probes_that_training_could_not_avoid_are_counted(make_tiny_run: MakeRun) -> None:
    run = make_tiny_run(bilevel={"num_steps": 6})  # reads 48 of the 60 sequences: 12 are left for 24 probes
    assert pipeline.fidelity(run, 1).metrics["num_seen"] == 12


def test_a_run_that_starts_untrained_is_green_and_says_why(make_tiny_run: MakeRun) -> None:
    run = make_tiny_run("random")
    manifest = pipeline.fidelity(run, 1)
    assert manifest.metrics["measured"] is False
    assert "untrained model" in manifest.metrics["reason"]
    assert manifest.outputs == []
    store.sync(run)
    report.write(run, 1, run.report)
    page = (run.report / "index.html").read_text()
    assert "Not measured: round 1 starts from an untrained model" in page
    assert "fidelity not measured: round 1" in report.headline(run)


def test_a_diverging_step_is_a_clear_error(make_tiny_run: MakeRun) -> None:
    run = make_tiny_run()
    tensors = language.read_tensors(run.warmup / PROXY)
    broken = {name: value * float("inf") if name.startswith("exp_avg.") else value for name, value in tensors.items()}
    language.write_tensors(run.warmup / PROXY, broken)
    with pytest.raises(ValueError, match=r"lower fidelity\.learning_rate"):
        pipeline.fidelity(run, 1)
    assert not (run.round(1) / "fidelity" / "influences.parquet").exists()


def test_a_repeated_stage_does_no_work(make_tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_tiny_run()
    first = pipeline.fidelity(run, 1)
    monkeypatch.setattr(fidelity, "measure", lambda *_: pytest.fail("it was measured again"))
    assert pipeline.fidelity(run, 1) == first


def test_a_killed_stage_goes_on_with_the_probes_that_are_missing(make_tiny_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_tiny_run()
    undisturbed = pipeline.fidelity(run, 1)
    shutil.rmtree(str(run.round(1) / "fidelity"))
    monkeypatch.setattr(probing, "PROBES_PER_BLOCK", 16)
    steps, real = [], influence._step_on

    def dying(state: TrainState, input_ids_BT: torch.Tensor, max_gradient_norm: float | None) -> None:
        steps.append(1)
        if len(steps) == 16 + 3:
            raise KeyboardInterrupt
        real(state, input_ids_BT, max_gradient_norm)

    monkeypatch.setattr(influence, "_step_on", dying)
    with pytest.raises(KeyboardInterrupt):
        pipeline.fidelity(run, 1)
    manifest = pipeline.fidelity(run, 1)
    assert (manifest.outputs, manifest.metrics) == (undisturbed.outputs, undisturbed.metrics)
    assert len(steps) == 24 + 3, "the probes after the last whole block were lost, and no others"
    assert not (run.round(1) / "fidelity" / probing.MEASURED).exists()


def test_the_store_has_the_influences_and_the_fidelity_of_every_source(make_tiny_run: MakeRun) -> None:
    run = make_tiny_run()
    metrics = pipeline.fidelity(run, 1).metrics
    found = read_influences(run)
    first = store.sync(run)
    again = store.sync(run)
    assert first["published"]
    assert (again["num_loaded"], again["published"]) == (0, False)
    with open_snapshot(run.lake) as con:
        rows = con.execute("select sequence_id, influence, score from influences order by sequence_id").fetchall()
        view = con.execute("select source, num_probes, spearman, run, round from score_fidelity order by source").fetchall()
    assert rows == list(zip(*found.values(), strict=True))
    shard_M, score_M, influence_M = (np.array(values) for values in found.values())
    shard_M //= ROWS_PER_SHARD
    expected = [("all", 24, metrics["spearman"])]
    for source, shard in (("code", 1), ("prose", 0)):
        mine = shard_M == shard
        expected.append((source, int(mine.sum()), spearman(score_M[mine], influence_M[mine])))
    assert view == [(name, count, pytest.approx(value), run.name, 1) for name, count, value in expected]


def test_tied_scores_have_the_same_fidelity_in_sql(make_tiny_run: MakeRun) -> None:
    run = make_tiny_run()
    values = {"sequence_id": [0, 1, 2, 3], "influence": [1.0, 3.0, 2.0, 4.0], "score": [1.0, 2.0, 2.0, 3.0]}

    def make(directory: UPath) -> tuple[list[str], dict[str, bool]]:
        write_parquet(directory / "influences.parquet", pa.table(values, schema=schemas.INFLUENCES))
        return ["influences.parquet"], {"measured": True}

    produce(run.lake, run.round(1) / "fidelity", "fidelity", make)
    store.sync(run)
    with open_snapshot(run.lake) as con:
        assert con.execute("select spearman from score_fidelity where is_overall").fetchall() == [(pytest.approx(4.5 / (4.5 * 5) ** 0.5),)]


def test_the_report_shows_it(make_tiny_run: MakeRun) -> None:
    run = make_tiny_run()
    metrics = pipeline.fidelity(run, 1).metrics
    _, summary = report.write(run, 1, run.report)
    page = (run.report / "index.html").read_text()
    assert summary["fidelity"]["spearman"] == metrics["spearman"]
    assert set(summary["fidelity"]["by_source"]) <= {"code", "prose"}
    assert page.count('class="probe') == 24
    assert "the warmed-up proxy (tiny-neox-64) takes one optimizer step on each of 24 candidates" in page
    assert f"fidelity {metrics['spearman']:+.3f} +- {metrics['spearman_standard_error']:.3f}" in report.headline(run)
