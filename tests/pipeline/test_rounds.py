"""Rounds: what each inherits, windows that never overlap, more rounds later, and too little data said before work begins."""

import json
import re
from pathlib import Path

import pytest
import torch

from bliss_ops import pipeline, rounds, selectors
from bliss_ops.cli import main
from bliss_ops.config import RunConfig
from bliss_ops.lake import Lake, Run
from bliss_ops.launching import launch_here
from bliss_ops.manifest import find_manifest
from bliss_ops.models import language
from bliss_ops.selectors import SelectorInputs, bliss
from bliss_ops.training import pretraining
from bliss_ops.training.state import PROXY, TARGET
from bliss_ops.training.workers import Workers

RUN = "smoke-bliss-s0"
SMALL = {"pretraining.num_steps": 2, "pretraining.decay_steps": 1, "pretraining.batch_sequences": 4, "fidelity.num_probes": 16}


def arguments(settings: dict[str, object]) -> list[str]:
    return [f"--set={name}={json.dumps(value)}" for name, value in settings.items()]


def configure(lake: Lake, name: str, method: str = "random", **settings: object) -> int:
    values = {key.replace("__", "."): value for key, value in settings.items()}
    return main(["configure", "smoke", "--method", method, "--run-name", name, "--lake", str(lake.root), *arguments(values)])


def refused(capsys: pytest.CaptureFixture[str], code: int) -> str:
    assert code == 1
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


# ---- what a round inherits -------------------------------------------------------------------------------------------


def inputs_of(run: Run, round_number: int, monkeypatch: pytest.MonkeyPatch, scratch: Path) -> SelectorInputs:
    """What the run's selector is given in that round."""
    taken: list[SelectorInputs] = []
    monkeypatch.setattr(bliss, "fit", lambda inputs, _: (taken.append(inputs), ([], {}))[1])
    selectors.fit(run, round_number, launch_here, run.lake.root / str(scratch))
    return taken[0]


def assert_equal(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def test_the_target_goes_on_from_the_main_branch_with_its_optimizer(finished: Lake) -> None:
    run = finished.run(RUN)
    job = pretraining._Target.begin(run, 2, run.round(2) / "pretrain", Workers.current())
    job.start()
    before = language.read_tensors(run.round(1) / "pretrain" / TARGET)
    assert any("exp_avg" in name for name in before)
    assert_equal(job.state.tensors(), before)
    settings = run.config.pretraining
    assert job.state.step == settings.num_steps  # before the decay branch of round 1, whose model is another one
    after = language.read_tensors(run.round(2) / "pretrain" / TARGET)
    assert after["num_steps"] == after["step.lm_head.weight"] == 2 * settings.num_steps  # AdamW's own count went on too


def test_the_score_model_is_inherited_and_the_proxy_reset(finished: Lake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = finished.run(RUN)
    second = bliss._new_state(inputs_of(run, 2, monkeypatch, tmp_path))
    warm = language.read_tensors(run.warmup / PROXY)
    assert_equal(second.proxy.tensors(), warm)
    weights = language.read_tensors(run.round(1) / "selector" / "score_model.safetensors")
    inherited = {name: tensor for name, tensor in second.score.model.state_dict().items() if name in weights}
    assert len(inherited) == len(weights)
    assert_equal(inherited, weights)
    first = bliss._new_state(inputs_of(run, 1, monkeypatch, tmp_path))
    assert_equal(first.proxy.tensors(), warm)
    assert any(not torch.equal(first.score.model.state_dict()[name], weights[name]) for name in weights)


def test_windows_are_disjoint_and_do_not_move_with_more_rounds() -> None:
    shards = list(range(100))
    configs = [RunConfig.model_validate(run_settings(window_shards=7, num_rounds=number)) for number in (3, 14)]
    short, long = ([selectors.window_of(config, shards, number) for number in range(1, config.num_rounds + 1)] for config in configs)
    assert short == long[:3]
    everything = [shard for window in long for shard in window]
    assert len(everything) == len(set(everything)) == 98
    divided = RunConfig.model_validate(run_settings(window_shards=None, num_rounds=3))
    assert [len(selectors.window_of(divided, shards, number)) for number in (1, 2, 3)] == [33, 33, 33]


def run_settings(**settings: object) -> dict[str, object]:
    return {"name": "r", "recipe": "smoke", "method": "random", **settings}


# ---- more rounds later -----------------------------------------------------------------------------------------------


def test_a_run_is_extended_and_nothing_finished_is_made_again(copied: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        configure(copied, "long", **{name.replace(".", "__"): value for name, value in SMALL.items()}, num_rounds=1, window_shards=2) == 0
    )
    pipeline.run_round(copied, "long", 1)
    run = copied.run("long")
    before = {path: path.stat().st_mtime_ns for path in Path(run.round(1).path).rglob("*") if path.is_file()}
    capsys.readouterr()
    assert main(["extend", "long", "--rounds", "2", "--run", "--lake", str(copied.root)]) == 0
    assert "long: 2 rounds (it had 1)" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert Lake.open(copied.root).run("long").config.num_rounds == 2
    assert find_manifest(run.round(2) / "evaluation")
    assert find_manifest(run.report)
    assert {path.name for path in Path(run.report.path).glob("*.html")} == {"round-01.html", "round-02.html", "index.html"}
    # fewer than begun, and more than there is data for
    assert "round 2 is begun already" in refused(capsys, main(["extend", "long", "--rounds", "1", "--lake", str(copied.root)]))
    assert "6 disjoint candidate windows of 2 shards (12 shards)" in refused(
        capsys, main(["extend", "long", "--rounds", "6", "--lake", str(copied.root)])
    )
    assert Lake.open(copied.root).run("long").config.num_rounds == 2


def test_configuring_with_more_rounds_extends_and_with_fewer_changes_nothing(copied: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    """What the first task of `bliss_round` does."""

    for wanted, expected, said in (
        (2, 2, "long: rounds 1 to 2"),
        (4, 4, "long: extended from 2 to 4 rounds"),
        (3, 4, "has 4 rounds already, asked for 3: left as it is"),
    ):
        assert configure(copied, "long", num_rounds=wanted, window_shards=2) == 0
        assert said in capsys.readouterr().err
        assert Lake.open(copied.root).run("long").config.num_rounds == expected


def test_a_run_whose_windows_would_move_is_not_extended(copied: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    before = (copied.run(RUN).path / "config.json").read_text()
    message = refused(capsys, main(["extend", RUN, "--rounds", "3", "--lake", str(copied.root)]))
    assert "window_shards is empty" in message
    assert "move the window of every round" in message
    assert main(["extend", RUN, "--rounds", "2", "--lake", str(copied.root)]) == 0
    assert (copied.run(RUN).path / "config.json").read_text() == before
    message = refused(capsys, main(["configure", "smoke", "--set", "num_rounds=3", "--lake", str(copied.root)]))
    assert "num_rounds: was 2, now 3" in message


def test_extending_with_another_setting_is_refused_with_the_difference(copied: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    assert configure(copied, "long", num_rounds=1, window_shards=2) == 0
    message = refused(capsys, configure(copied, "long", num_rounds=2, window_shards=2, selection__fraction=0.5))
    assert "selection.fraction: was 0.2, now 0.5" in message
    assert Lake.open(copied.root).run("long").config.num_rounds == 1


# ---- too little data -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "settings", "expected"),
    [
        (
            "random",
            {"num_rounds": 3, "window_shards": 4},
            "wants 3 disjoint candidate windows of 4 shards (12 shards), but corpus 'smoke' has 10",
        ),
        ("random", {"num_rounds": 11}, "wants 11 disjoint candidate windows of 1 shards (11 shards)"),
        (
            "random",
            {"selection.fraction": None, "selection.token_budget": 10_000_000},
            "selection.token_budget wants 10,000,000 tokens (156,250 sequences): lower it, lower num_rounds, or ingest more text",
        ),
        ("bliss", {"num_rounds": 10, "bilevel.batch_sequences": 4096}, "fewer than one batch of 4,096: lower bilevel.batch_sequences"),
        ("random", {"pretraining.max_epochs": 0.1}, "pretraining.max_epochs is 0.1: lower pretraining.num_steps"),
    ],
)
def test_a_window_that_runs_out_is_refused_as_the_run_is_configured(
    copied: Lake, capsys: pytest.CaptureFixture[str], method: str, settings: dict[str, object], expected: str
) -> None:
    named = ["configure", "smoke", "--method", method, "--run-name", "short", "--lake", str(copied.root)]
    assert expected in refused(capsys, main([*named, *arguments(settings)]))
    assert not (copied.root / "runs" / "short").exists()


def test_it_is_refused_by_the_first_stage_where_the_corpus_came_later(copied: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = copied.run(RUN).corpus.sequences / "manifest.json"
    packed = manifest.read_bytes()
    manifest.unlink()
    assert configure(copied, "short", num_rounds=3, window_shards=4) == 0
    manifest.write_bytes(packed)
    assert "wants 3 disjoint candidate windows" in refused(capsys, main(["warm-up", "short", "--lake", str(copied.root)]))
    assert not (copied.root / "runs" / "short" / "warmup").exists()


def test_a_bound_that_holds_and_a_finished_run_are_let_through(copied: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    assert configure(copied, "enough", pretraining__max_epochs=0.2) == 0
    said = re.search(r"sequences, ([\d, to]+) kept; the pretraining goes over them ([\d. to]+) times", capsys.readouterr().err)
    assert said is not None
    settings = copied.run("enough").config.pretraining
    num_trained = (settings.num_steps + settings.decay_steps) * settings.batch_sequences
    epochs = {
        f"{num_trained / int(kept.replace(',', '')):.2f}" for kept in said[1].split(" to ")
    }  # how much is kept depends on the machine's text
    assert said[2] == " to ".join(sorted(epochs))
    run = copied.run(RUN)
    tight = run.config.model_copy(update={"pretraining": run.config.pretraining.model_copy(update={"max_epochs": 0.001})})
    rounds.check(tight, run)  # every round has its selection: there is nothing to be told in time any more
