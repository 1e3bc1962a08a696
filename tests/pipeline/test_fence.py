"""Stages in one piece, fenced off: what outlives its artifact, or comes second, puts nothing in its place."""

import logging
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from upath import UPath

from bliss_ops.fence import ReplacedError
from bliss_ops.lake import Lake, write_bytes
from bliss_ops.launching import launch_here
from bliss_ops.manifest import Artifact, describe, find_manifest
from bliss_ops.training.checkpoints import CheckpointSeries, Policy
from bliss_ops.training.metrics import StepMetrics
from bliss_ops.training.state import TrainState, adamw
from bliss_ops.training.workers import Workers

Make = Callable[[UPath], tuple[list[str], dict[str, int]]]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake.open(tmp_path / "lake")


def artifact(lake: Lake, **settings: object) -> Artifact:
    return Artifact(lake, lake.root / "thing", stage="make", identity=settings)


def make(directory: UPath, content: bytes = b"theirs") -> tuple[list[str], dict[str, int]]:
    write_bytes(directory / "file", content)
    return ["file"], {}


def meanwhile(event: Callable[[], object]) -> None:
    """In a thread of its own: what is said to one thread's files is not said to another's."""
    other = threading.Thread(target=event)
    other.start()
    other.join()


def late(event: Callable[[], object]) -> Make:
    """A stage before whose only file something happens."""

    def make_late(directory: UPath) -> tuple[list[str], dict[str, int]]:
        meanwhile(event)
        return make(directory, b"late")

    return make_late


def begin_again(lake: Lake) -> None:
    shutil.rmtree((lake.root / "thing").path)
    artifact(lake, model="new").begin()


def assert_is_theirs(lake: Lake) -> None:
    directory = lake.root / "thing"
    manifest = find_manifest(directory)
    assert manifest is not None
    assert (directory / "file").read_bytes() == b"theirs"
    assert manifest.outputs == [describe(directory, "file")]
    assert sorted(path.name for path in directory.iterdir()) == ["begun.json", "file", "manifest.json"]


def test_the_second_of_two_drivers_leaves_what_the_first_has_finished(lake: Lake, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        manifest = artifact(lake).produce(late(lambda: artifact(lake).produce(make)))
    assert "was made by another process meanwhile" in caplog.text
    assert manifest == find_manifest(lake.root / "thing")
    assert_is_theirs(lake)


def test_a_manifest_is_not_written_over_another_drivers(lake: Lake) -> None:
    def make_early(directory: UPath) -> tuple[list[str], dict[str, int]]:
        made = make(directory, b"early")
        meanwhile(lambda: artifact(lake).produce(make))
        return made

    manifest = artifact(lake).produce(make_early)
    assert manifest == find_manifest(lake.root / "thing")
    assert_is_theirs(lake)


def test_of_two_that_make_a_lost_file_again_one_does(lake: Lake) -> None:
    artifact(lake).produce(make)
    (lake.root / "thing" / "file").unlink()
    artifact(lake).produce(late(lambda: artifact(lake).produce(make)))
    assert_is_theirs(lake)
    (lake.root / "thing" / "file").unlink()
    assert artifact(lake).produce(make).outputs, "and it can be made again as often as it is lost"


@pytest.mark.parametrize("event", ["begun again", "deleted"])
def test_a_stage_whose_artifact_is_another_one_now_writes_nothing(lake: Lake, event: str) -> None:
    directory = lake.root / "thing"
    happens = partial(begin_again, lake) if event == "begun again" else partial(shutil.rmtree, directory.path)
    with pytest.raises(ReplacedError, match=event if event == "deleted" else r"begun again with other settings .*thrown away"):
        artifact(lake, model="old").produce(late(happens))
    assert not (directory / "file").exists()
    assert not (directory / "_cost").exists()


def test_an_error_of_its_own_comes_out_as_it_is(lake: Lake) -> None:
    def fail(_: UPath) -> tuple[list[str], dict[str, int]]:
        raise ValueError("the loss is nan")

    for _ in range(2):
        with pytest.raises(ValueError, match="the loss is nan"):
            artifact(lake).produce(fail)


# ---- training --------------------------------------------------------------------------------------------------------


def test_no_checkpoint_of_a_former_job_appears_for_the_new_one_to_go_on_from(lake: Lake) -> None:
    """A process that was frozen writes one, from the thread that writes checkpoints, when it thaws."""
    directory = lake.root / "thing"

    def train(directory: UPath) -> tuple[list[str], dict[str, int]]:
        model = torch.nn.Linear(4, 3)
        state = TrainState(model, adamw(model, 1e-3, 0.0))
        metrics = StepMetrics(directory / "metrics.jsonl", "job", 9, 1)
        job = CheckpointSeries(directory / "state.safetensors", state, metrics, Policy(every_steps=1), last_step=9)
        job.after_step(1)
        job.wait()
        assert job.steps() == [1]
        meanwhile(partial(begin_again, lake))
        job.after_step(2)
        job.close()
        job.finish()
        return [], {}

    with pytest.raises(ReplacedError, match="begun again"):
        artifact(lake, model="old").produce(train)
    assert [path.name for path in Path(directory.path).rglob("*") if path.is_file()] == ["begun.json"]


def finish_and_write(root: str) -> None:
    """A training worker before whose file another driver finishes the artifact."""
    if Workers.current().writes:
        late(lambda: artifact(Lake.open(root)).produce(make))(Lake.open(root).root / "thing")


def test_workers_that_are_processes_of_their_own_are_fenced_too(lake: Lake) -> None:
    mine = artifact(lake)

    def launch(_: UPath) -> tuple[list[str], dict[str, int]]:
        mine.metered(launch_here)(partial(finish_and_write, str(lake.root)), 2)
        return ["file"], {}

    assert mine.produce(launch) == find_manifest(lake.root / "thing")
    assert_is_theirs(lake)
