"""The pretraining stage: what it leaves, decay branches, and kills at any moment, after which the same command ends as if undisturbed."""

import json
import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

from bliss_ops import pipeline
from bliss_ops.lake import Run, write_json
from bliss_ops.manifest import read_manifest
from bliss_ops.models import language
from tests.training import jobs

BRANCHES: dict[str, Any] = {"decay_at_steps": [2, 5]}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Run]:
    """Settings -> a run that is pretrained; made when first asked for."""

    @cache
    def finished(settings: str) -> Run:
        run = jobs.make_run(tmp_path_factory.mktemp("undisturbed"), **json.loads(settings))
        pipeline.pretrain(run, 1)
        return run

    return lambda **settings: finished(json.dumps(settings))


def rows_of(run: Run) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run.round(1) / "pretrain" / "metrics.jsonl").read_text().splitlines()]


def test_the_artifact_lists_its_models_with_steps_and_tokens(undisturbed: Callable[..., Run]) -> None:
    from transformers import AutoModelForCausalLM

    run = undisturbed(**BRANCHES)
    here = run.round(1) / "pretrain"
    manifest = read_manifest(here, made_by="the test")
    tokens = 6 * jobs.T  # of a step; the warm-up took 2 steps, and a branch takes 2
    assert manifest.metrics["models"] == [
        {"path": "branches/step-000002/model", "step": 6, "num_tokens": 6 * tokens},
        {"path": "branches/step-000005/model", "step": 9, "num_tokens": 9 * tokens},
        {"path": "model", "step": 10, "num_tokens": 10 * tokens},
    ]
    assert (manifest.metrics["num_steps"], manifest.metrics["num_tokens"]) == (6, 6 * tokens)
    for model in manifest.metrics["models"]:
        loaded = AutoModelForCausalLM.from_pretrained(here.path + "/" + model["path"])
        assert sum(parameter.numel() for parameter in loaded.parameters()) == manifest.metrics["parameters"]
    main = [row["step"] for row in rows_of(run) if "branch" not in row and "loss" in row]
    assert main == list(range(3, 11))
    assert [row["step"] for row in rows_of(run) if row.get("branch") == 5 and "loss" in row] == [8, 9]
    assert [row["step"] for row in rows_of(run) if "branch" in row and "validation_loss" in row] == [6, 8, 9]


def test_extra_branches_leave_the_main_one_as_it_is(undisturbed: Callable[..., Run]) -> None:
    without, with_branches = jobs.files_of(undisturbed()), jobs.files_of(undisturbed(**BRANCHES))
    for name in ("state.safetensors", "model/model.safetensors"):
        assert without[name] == with_branches[name]
    main = [row for row in rows_of(undisturbed(**BRANCHES)) if "branch" not in row]
    assert main == rows_of(undisturbed())


def test_a_branch_is_the_final_one_of_a_shorter_run(undisturbed: Callable[..., Run]) -> None:
    branch, final = undisturbed(**BRANCHES), undisturbed(num_steps=5)
    assert jobs.files_of(branch)["branches/step-000005/model/model.safetensors"] == jobs.files_of(final)["model/model.safetensors"]


def test_settings_that_are_off_leave_finished_artifacts_valid(undisturbed: Callable[..., Run]) -> None:
    identity = read_manifest(undisturbed().round(1) / "pretrain", made_by="the test").identity
    assert not {"decay_at_steps", "sharding", "keep_checkpoints", "tensorboard"} & identity["pretraining"].keys()


@pytest.mark.parametrize("steps", [[0], [6], [3, 2], [2, 2]])
def test_branches_that_cannot_be(tmp_path: Path, steps: list[int]) -> None:
    with pytest.raises(ValueError, match="ascending steps of the round from 1 to num_steps - 1"):
        jobs.make_run(tmp_path, decay_at_steps=steps)


KILLS: dict[str, dict[str, Any]] = {
    "before the first checkpoint": {"after_step": 3},
    "while the first checkpoint is written": {"while_writing": "state-step-000004.safetensors"},
    "between two checkpoints": {"after_step": 7},
    "while the state after the last step is written": {"while_writing": "state.safetensors"},
    "in a branch": {"after_step": 8, "branch": 5},
    "while a branch is exported": {"while_writing": "model.safetensors"},
    "in the final branch": {"after_step": 10},
}
QUICK = ("while the first checkpoint is written", "in a branch")


@pytest.mark.parametrize("moment", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in KILLS])
def test_a_killed_job_ends_like_an_undisturbed_one(tmp_path: Path, undisturbed: Callable[..., Run], moment: str) -> None:
    run = jobs.make_run(tmp_path, **BRANCHES)
    jobs.die(partial(jobs.pretrain, str(tmp_path)), **KILLS[moment])
    assert not (run.round(1) / "pretrain" / "manifest.json").exists()
    pipeline.pretrain(run, 1)
    expected, found = jobs.files_of(undisturbed(**BRANCHES)), jobs.files_of(run)
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


@pytest.mark.slow
def test_killed_after_every_single_step(tmp_path: Path, undisturbed: Callable[..., Run]) -> None:
    run = jobs.make_run(tmp_path, **BRANCHES, checkpoint_every_steps=1)
    for step in range(4, 11):  # a checkpoint is written after the step that kills, so each life does one step more
        jobs.die(partial(jobs.pretrain, str(tmp_path)), after_step=step)
    pipeline.pretrain(run, 1)
    assert jobs.files_of(run) == jobs.files_of(undisturbed(**BRANCHES))


def test_checkpoints_are_kept_by_policy_and_gone_when_they_have_served(tmp_path: Path) -> None:
    run = jobs.make_run(tmp_path, num_steps=9, checkpoint_every_steps=1, keep_checkpoints=3, keep_every_steps=4, decay_at_steps=[1, 2])
    folder = run.round(1) / "pretrain" / "checkpoints"
    jobs.die(partial(jobs.pretrain, str(tmp_path)), while_writing="state-step-000010.safetensors")
    # step 3 and 4 for the branches at steps 1 and 2 of the round (it begins after step 2), 4 and 8 as multiples of 4, and the last three
    assert sorted(path.name for path in folder.glob("state-*")) == [f"state-step-{step:06d}.safetensors" for step in (3, 4, 6, 7, 8, 9)]
    pipeline.pretrain(run, 1)
    assert sorted(path.name for path in folder.glob("state-*")) == [f"state-step-{step:06d}.safetensors" for step in (4, 8)]
    assert not any("checkpoints" in name or "tensorboard" in name for name in jobs.files_of(run))


def test_a_subset_of_another_tokenizer_or_corpus_is_refused_before_training(tmp_path: Path) -> None:
    run = jobs.make_run(tmp_path)
    subset = run.round(1) / "subset" / "manifest.json"
    as_it_was = json.loads(subset.read_text())
    write_json(run.round(1) / "subset" / "manifest.json", as_it_was | {"inputs": {"corpora/tiny/sequences-bpe512-16": "0" * 64}})
    with pytest.raises(ValueError, match=r"made from other sequences .*another tokenizer or sequence length.*bliss fit"):
        pipeline.pretrain(run, 1)
    write_json(run.round(1) / "subset" / "manifest.json", as_it_was | {"inputs": {"corpora/tiny/sequences-other-32": "0" * 64}})
    with pytest.raises(ValueError, match="sequences-other-32"):
        pipeline.pretrain(run, 1)
    write_json(run.round(1) / "subset" / "manifest.json", as_it_was)
    tokenizer = run.corpus.tokenizer / "manifest.json"
    made = json.loads(tokenizer.read_text())
    write_json(tokenizer, made | {"outputs": [{"path": "tokenizer.json", "bytes": 1, "sha256": "0" * 64}]})
    with pytest.raises(ValueError, match="packed with another tokenizer"):
        pipeline.pretrain(run, 1)
    write_json(tokenizer, made | {"metrics": {"vocab_size": 32}})  # the same content: only its tokens can tell
    with pytest.raises(ValueError, match=r"holds the token \d+, but the corpus's tokenizer has 32 tokens"):
        pipeline.pretrain(run, 1)
    assert not list((run.round(1) / "pretrain").glob("**/*.safetensors"))


def test_a_former_state_that_is_cut_or_of_another_model_is_named(tmp_path: Path) -> None:
    run = jobs.make_run(tmp_path)
    before = run.warmup / "state.safetensors"
    whole = before.read_bytes()
    before.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"warmup/state\.safetensors is not a whole safetensors file"):
        pipeline.pretrain(run, 1)
    other = language.build("tiny-neox-96", vocab_size=jobs.VOCAB, sequence_length=jobs.T, seed=0)
    language.write_tensors(before, {f"model.{name}": value for name, value in other.state_dict().items()} | {"num_steps": torch.tensor(2)})
    with pytest.raises(
        ValueError, match=r"warmup/state\.safetensors belongs to a model of another shape: .*\(64, 96\) there and of shape \(64, 64\)"
    ):
        pipeline.pretrain(run, 1)
    before.write_bytes(whole)
    config = json.loads((run.path / "config.json").read_text())
    config["target"]["warmup_steps"] = 1
    write_json(run.path / "config.json", config)
    (run.round(1) / "pretrain" / "begun.json").unlink()
    with pytest.raises(ValueError, match="has done 2 steps, but round 1 begins after 1"):
        pipeline.pretrain(run.lake.run(run.name), 1)


def test_a_warm_up_of_no_steps_starts_no_workers(tmp_path: Path) -> None:
    run = jobs.make_run(tmp_path)
    config = json.loads((run.path / "config.json").read_text())
    config["target"]["warmup_steps"] = 0
    write_json(run.path / "config.json", config)
    shutil.rmtree(run.path / "warmup")

    def nobody(*_: object) -> None:
        raise AssertionError

    pipeline.warm_up(run.lake.run(run.name), pipeline.Work(launch=nobody))
    expected = language.build(jobs.SHAPE, vocab_size=jobs.VOCAB, sequence_length=jobs.T, seed=0).state_dict()
    found = language.read_tensors(run.path / "warmup" / "state.safetensors")
    assert all(torch.equal(found[f"model.{name}"], value) for name, value in expected.items())
    assert int(found["num_steps"]) == 0
