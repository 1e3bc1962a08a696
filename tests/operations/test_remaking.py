"""`bliss remake` where other bytes come out: killed at any step, a file is the true one or missing, and `bliss gc` keeps the true ones."""

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from upath import UPath

from bliss_ops import pipeline
from bliss_ops.collected import ASIDE, find_collected, write_collected
from bliss_ops.lake import Lake
from bliss_ops.manifest import Artifact, OtherBytesError, find_manifest
from bliss_ops.operations import collecting, remaking
from bliss_ops.operations.remaking import remake
from bliss_ops.operations.retention import Policy, plan
from bliss_ops.training.state import TARGET
from tests.operations.lakes import RUN

MODEL = "model/model.safetensors"


@pytest.fixture
def directory(lake: Lake) -> UPath:
    """A round's training as it was on another machine, in the same sizes; its state was taken out."""
    directory = lake.run(RUN).round(1) / "pretrain"
    outputs = {}
    for name in (MODEL, TARGET):
        file = Path(directory.path) / name
        file.write_bytes(file.read_bytes()[:-1] + b"\x7f")
        outputs[name] = sha256(directory, name)
    manifest = json.loads((directory / "manifest.json").read_text())
    for output in manifest["outputs"]:
        output["sha256"] = outputs.get(output["path"], output["sha256"])
    (directory / "manifest.json").write_text(json.dumps(manifest))
    gc(lake)
    assert not (directory / TARGET).exists()
    return directory


def gc(lake: Lake) -> None:
    assert collecting.collect(lake, plan(lake, Policy(kinds=("states", "checkpoints"), older_than_seconds=0)).items).problems == []


def sha256(directory: UPath, name: str) -> str:
    return hashlib.sha256((directory / name).read_bytes()).hexdigest()


def is_true_or_missing(directory: UPath) -> bool:
    return not (directory / MODEL).exists() or sha256(directory, MODEL) == true_one(directory)


def true_one(directory: UPath) -> str:
    manifest = find_manifest(directory)
    assert manifest is not None
    (sha256,) = [output.sha256 for output in manifest.outputs if output.path == MODEL]
    return sha256


def is_whole_but_for_what_was_taken(directory: UPath) -> bool:
    record, names = find_collected(directory), {str(path.relative_to(directory)) for path in directory.rglob("*")}
    is_as_before = record is not None and record.wanted_since is None and not names & {TARGET, ASIDE}
    return is_as_before and MODEL in names and is_true_or_missing(directory)


def killed_in(work: Callable[[], object], owner: object, name: str) -> None:
    """Do `work()` in a process that is killed when it calls `owner.name` for a round's training."""
    function = getattr(owner, name)

    def die(first: object, *others: object) -> None:
        if getattr(first, "directory", first).name == "pretrain":  # type: ignore[attr-defined]
            os._exit(9)
        function(first, *others)

    def child() -> None:
        setattr(owner, name, die)
        work()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()
    assert process.exitcode == 9


def test_what_was_not_taken_is_put_back(lake: Lake, directory: UPath) -> None:
    with pytest.raises(OtherBytesError, match=r"model.safetensors, state.safetensors came out with other bytes"):
        remake(lake, lake.relative(directory))
    assert is_whole_but_for_what_was_taken(directory)


@pytest.mark.parametrize(
    ("owner", "name"),
    [(Artifact, "_check_same_bytes"), (remaking, "_put_back"), (remaking, "write_collected"), (remaking, "_remove_aside")],
)
def test_a_kill_leaves_no_other_bytes_that_count_as_done(lake: Lake, directory: UPath, owner: object, name: str) -> None:
    address = lake.relative(directory)
    record = find_collected(directory)
    assert record is not None
    write_collected(directory, record.model_copy(update={"wanted_since": "2026-01-02T03:04:05+00:00"}))
    killed_in(lambda: remake(lake, address), owner, name)
    gc(lake)
    assert sha256(directory / ASIDE, MODEL) == true_one(directory), "nobody has deleted it"
    if name == "_check_same_bytes":
        assert not is_true_or_missing(directory), "nothing has looked at it yet: nobody may read it"
    else:
        assert is_true_or_missing(directory)
    evaluation = lake.run(RUN).round(1) / "evaluation"
    evaluation.fs.rm(evaluation.path, recursive=True)
    if name != "_remove_aside":
        with pytest.raises(ValueError, match=f"run `bliss remake {address}`"):
            pipeline.evaluate(lake.run(RUN), 1)
    with pytest.raises(OtherBytesError):
        remake(lake, address)
    assert is_whole_but_for_what_was_taken(directory)


def test_a_model_that_was_lost_is_not_replaced_by_another(lake: Lake, directory: UPath) -> None:
    (directory / MODEL).unlink()
    for _ in range(2):
        with pytest.raises(OtherBytesError):
            pipeline.pretrain(lake.run(RUN), 1)
        assert not (directory / MODEL).exists()
    with pytest.raises(OtherBytesError):
        remake(lake, lake.relative(directory))
    assert not (directory / MODEL).exists()


def test_what_was_lost_comes_back_as_well(lake: Lake) -> None:
    gc(lake)
    directory = lake.run(RUN).round(1) / "pretrain"
    (directory / MODEL).unlink()
    assert remake(lake, lake.relative(directory))[-1] == lake.relative(directory)
    assert (directory / MODEL).exists()
    assert is_true_or_missing(directory)
    assert find_collected(directory) is None


def test_a_kill_before_the_last_step_leaves_nothing_for_long(lake: Lake) -> None:
    gc(lake)
    directory = lake.run(RUN).round(1) / "pretrain"
    killed_in(lambda: remake(lake, lake.relative(directory)), remaking, "_remove_aside")
    assert find_collected(directory) is None
    assert (directory / ASIDE).exists()
    remake(lake, lake.relative(directory))
    assert not (directory / ASIDE).exists()
