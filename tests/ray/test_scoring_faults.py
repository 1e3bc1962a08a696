"""Scoring on real Ray actors while things die: in the end the files of an undisturbed run, bit for bit, each shard once."""

import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from bliss_ops import pipeline
from bliss_ops.lake import Lake, Run
from bliss_ops.ray.shards import map_on_ray
from tests.bilevel.drivers import REPOSITORY, is_running, wait_until
from tests.ray import scored


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = scored.make_run(tmp_path_factory.mktemp("undisturbed"))
    pipeline.score(run, 1)
    return run


@pytest.fixture
def run(undisturbed: Run, tmp_path: Path) -> Run:
    """The same run before it is scored."""
    shutil.copytree(undisturbed.lake.root.path, tmp_path / "lake", ignore=shutil.ignore_patterns("scores"))
    return Lake.open(tmp_path / "lake").run(scored.NAME)


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    (tmp_path / "watched").mkdir()
    return tmp_path / "watched"


def pids(watched: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("pid-")) for path in watched.glob("pid-*"))


def test_a_pool_with_shards_in_flight_gives_the_files_of_one_process(inside_ray: None, undisturbed: Run, run: Run, watched: Path) -> None:
    pipeline.score(run, 1, pipeline.Work(mapper=scored.on_ray(watched)))
    assert len(pids(watched)) == 2
    assert scored.hashes(run) == scored.hashes(undisturbed)


@pytest.mark.slow
def test_a_killed_actor_costs_the_shards_it_had_in_work(
    inside_ray: None, undisturbed: Run, run: Run, watched: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (watched / "pause-0").touch()

    def kill() -> None:
        wait_until(lambda: any(watched.glob("paused-0-*")))
        os.kill(int(next(watched.glob("paused-0-*")).name.rpartition("-")[2]), signal.SIGKILL)
        (watched / "pause-0").unlink()

    killer = threading.Thread(target=kill)
    killer.start()
    pipeline.score(run, 1, pipeline.Work(mapper=scored.on_ray(watched)))
    killer.join()
    assert len(pids(watched)) >= 2  # its shards are taken by its successor, or by the other actor where that is free first
    assert "the actor of shard 0 died (attempt 1 of 3)" in caplog.text
    assert scored.hashes(run) == scored.hashes(undisturbed)


@pytest.mark.slow
def test_a_killed_driver_takes_its_actors_along_and_the_next_one_goes_on(
    inside_ray: None, undisturbed: Run, run: Run, watched: Path
) -> None:
    scores = run.round(1) / "scores"
    for shard in (4, 5):
        (watched / f"pause-{shard}").touch()
    driver = subprocess.Popen(
        [sys.executable, "-m", "tests.ray.scored", str(run.lake.root), str(watched)],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        cwd=REPOSITORY,
    )
    try:
        wait_until(lambda: len(list(scores.glob("_shards/*.json"))) == 4 or driver.poll() is not None)
        assert driver.poll() is None, "the driver ended by itself"
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    wait_until(lambda: not any(map(is_running, pids(watched))))
    for pause in watched.glob("pause-*"):
        pause.unlink()
    assert not (scores / "manifest.json").exists()
    stamps = {path.name: path.stat().st_mtime_ns for path in scores.glob("*.parquet")}
    assert len(stamps) == 4
    pipeline.score(run, 1, pipeline.Work(mapper=map_on_ray))
    assert stamps.items() <= {path.name: path.stat().st_mtime_ns for path in scores.glob("*.parquet")}.items()
    assert scored.hashes(run) == scored.hashes(undisturbed)


def test_two_drivers_at_once_make_one_set_of_scores(inside_ray: None, undisturbed: Run, run: Run, watched: Path) -> None:
    """The actors stop in the middle of every shard until another driver has scored all of them."""
    for shard in scored.SHARDS:
        (watched / f"pause-{shard}").touch()
    first = threading.Thread(target=pipeline.score, args=(run, 1, pipeline.Work(mapper=scored.on_ray(watched))))
    first.start()
    wait_until(lambda: len(list(watched.glob("paused-*"))) == 2)
    pipeline.score(Lake.open(run.lake.root.path).run(scored.NAME), 1)
    scores = run.round(1) / "scores"
    stamps = {path.name: path.stat().st_mtime_ns for path in scores.glob("*.parquet")}
    for pause in watched.glob("pause-*"):
        pause.unlink()
    first.join()
    assert {path.name: path.stat().st_mtime_ns for path in scores.glob("*.parquet")} == stamps, "a late worker replaced a finished shard"
    assert scored.hashes(run) == scored.hashes(undisturbed)
