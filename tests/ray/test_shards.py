"""Shards over real Ray actors: each once, whatever dies, and errors as the worker raised them."""

import sys
import time
from functools import partial
from pathlib import Path

import psutil
import pytest

from bliss_ops.ray.shards import MAX_ATTEMPTS, map_on_ray
from tests.ray import workers


def test_no_shards_need_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert list(map_on_ray(partial(workers.count_workers, "/nowhere"), [], description="score")) == []


def test_every_shard_is_made_once_by_a_pool(inside_ray: None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        records = list(map_on_ray(partial(workers.count_workers, str(tmp_path)), range(7), description="score"))
    assert sorted(record.shard for record in records) == list(range(7))
    assert sum(record.metrics["num_rows"] for record in records) == 210
    assert len(list(tmp_path.glob("shard-*"))) == 7
    assert len(list(tmp_path.glob("worker-*"))) == 2  # two CPUs, two actors, one worker each
    assert "score: 7/7 shards (100%)" in caplog.text
    assert not sys.modules["ray"].is_initialized()


def test_actors_without_room_hold_no_shard_up(
    inside_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Asked for as an autoscaler wants it: more than the cluster has CPUs; where none come, those that run do it all."""
    monkeypatch.setenv("BLISS_MAX_ACTORS", "5")
    with caplog.at_level("INFO"):
        records = list(map_on_ray(partial(workers.count_workers, str(tmp_path)), range(7), description="score", in_flight=2))
    assert "7 shards on 5 actors" in caplog.text
    assert sorted(record.shard for record in records) == list(range(7))
    assert len(list(tmp_path.glob("worker-*"))) == 2


def test_a_shard_whose_actor_dies_is_made_by_another(inside_ray: None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = list(map_on_ray(partial(workers.die_on_shard_2, str(tmp_path), 1), range(4), description="score"))
    assert sorted(record.shard for record in records) == [0, 1, 2, 3]
    assert f"the actor of shard 2 died (attempt 1 of {MAX_ATTEMPTS})" in caplog.text


def test_a_shard_whose_actor_freezes_is_made_by_another(
    inside_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("BLISS_STALL_SECONDS", "8")
    records = list(map_on_ray(partial(workers.freeze_on_shard_2, str(tmp_path)), range(4), description="score"))
    assert sorted(record.shard for record in records) == [0, 1, 2, 3]
    assert "an actor has not answered for 8 s" in caplog.text
    deadline = time.monotonic() + 30  # Ray asks first, and kills some seconds later
    while is_there := psutil.pid_exists(int((tmp_path / "frozen").read_text())):
        if time.monotonic() > deadline:
            break
        time.sleep(0.5)
    assert not is_there


def test_a_shard_that_does_not_move_is_silent(inside_ray: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A line every few seconds would look like work, and the operator stops what has been silent for long."""
    monkeypatch.setattr("bliss_ops.ray.shards.SECONDS_BETWEEN_LINES", 0.5)
    monkeypatch.setattr("bliss_ops.sharding.SECONDS_BETWEEN_LINES", 0.5)
    with caplog.at_level("INFO"):
        list(map_on_ray(partial(workers.sleep, 5.0), [0], description="score"))
    assert [line for line in caplog.messages if "shards (" in line] == ["score: 1/1 shards (100%) eta 0s"]


def test_a_shard_that_always_ends_its_actor_is_given_up(inside_ray: None, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="shard 2 ended 3 actors"):
        list(map_on_ray(partial(workers.die_on_shard_2, str(tmp_path), 99), range(4), description="score"))
    assert len(list(tmp_path.glob("death-*"))) == MAX_ATTEMPTS


@pytest.mark.parametrize("make_worker", [workers.refuse_shard_1, workers.refuse_to_start])
def test_a_workers_value_error_comes_out_as_it_is(inside_ray: None, make_worker: object) -> None:
    message = "shard-00001.parquet has no column 'text'"
    with pytest.raises(ValueError, match="no column") as raised:
        list(map_on_ray(partial(make_worker, message), range(2), description="extract"))  # type: ignore[arg-type]
    assert str(raised.value) == message


def test_our_own_mistakes_keep_their_traceback(inside_ray: None) -> None:
    with pytest.raises(KeyError, match="no such key") as raised:
        list(map_on_ray(partial(workers.break_inside, ""), [0], description="score"))
    assert "workers.py" in str(raised.value)
