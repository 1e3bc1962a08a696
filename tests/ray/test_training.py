"""Bilevel training on real Ray Train workers: lost ones are replaced and nothing shows, errors come out as they were raised."""

import sys
import time
from functools import partial
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path

import pytest

from bliss_ops.launching import launch_here
from bliss_ops.models import language
from bliss_ops.ray.training import _signs_of_life, launch_on_ray
from tests.bilevel import drivers, jobs
from tests.ray import workers

pytestmark = pytest.mark.skipif(find_spec("pandas") is None, reason="ray.train needs pandas: pip install 'bliss-ops[ray]'")


def test_one_worker_needs_no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    launch_on_ray(partial(workers.note_worker, str(tmp_path)), 1)
    assert [path.name for path in tmp_path.iterdir()] == ["worker-0-of-1"]


def test_a_job_that_waits_for_room_does_not_look_frozen(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"), _signs_of_life(4, every_seconds=0.05):
        time.sleep(1.0)
    assert caplog.messages.count("up to 4 training workers: waiting for room or at work") > 1


def test_workers_form_a_group_that_listens_on_the_loopback_interface(inside_ray: None, tmp_path: Path) -> None:
    launch_on_ray(partial(workers.note_worker, str(tmp_path)), 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["worker-0-of-2", "worker-1-of-2"]
    listening = {ip_address(line) for path in tmp_path.iterdir() for line in path.read_text().split()}
    assert all((getattr(address, "ipv4_mapped", None) or address).is_loopback for address in listening), listening
    assert not sys.modules["ray"].is_initialized()


def test_a_workers_value_error_comes_out_as_it_is_and_is_not_tried_again(inside_ray: None, tmp_path: Path) -> None:
    message = "fit: at step 3 validation_loss not finite; lower bilevel.score_learning_rate"
    with pytest.raises(ValueError, match="not finite") as raised:
        launch_on_ray(partial(workers.refuse_on_worker_1, str(tmp_path), message), 2)
    assert str(raised.value) == message
    assert len(list(tmp_path.glob("attempt-*"))) == 1


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two workers make of it when nobody kills them; local processes and Ray's end with the same bytes."""
    root = tmp_path_factory.mktemp("undisturbed")
    jobs.write_candidates(root)
    launch_here(partial(jobs.train, str(root / "job"), drivers.SETTINGS), 2)
    return root / "job"


@pytest.mark.slow
def test_a_killed_worker_leaves_no_trace_in_the_score_model(inside_ray: None, tmp_path: Path, undisturbed: Path) -> None:
    jobs.write_candidates(tmp_path)
    marker = tmp_path / "killed"
    death = {"die_at": drivers.STEP_OF_DEATH, "only_once": str(marker)}
    launch_on_ray(partial(jobs.train, str(tmp_path / "job"), drivers.SETTINGS, **death), 2)
    assert marker.exists()
    drivers.assert_same_files(tmp_path / "job", undisturbed)
    trained = language.read_tensors(jobs.UPath(tmp_path / "job" / jobs.MODEL))
    assert all(tensor.isfinite().all() for tensor in trained.values())


@pytest.mark.slow
def test_a_killed_driver_takes_its_workers_along_and_the_next_one_goes_on(inside_ray: None, tmp_path: Path, undisturbed: Path) -> None:
    jobs.write_candidates(tmp_path)
    drivers.kill_driver(tmp_path / "job", launch_on_ray)
    launch_on_ray(partial(jobs.train, str(tmp_path / "job"), drivers.SETTINGS), 2)
    drivers.assert_same_files(tmp_path / "job", undisturbed)


@pytest.mark.slow
def test_more_workers_than_there_is_room_for_are_fewer_workers(inside_ray: None, tmp_path: Path) -> None:
    launch_on_ray(partial(workers.note_worker, str(tmp_path)), 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["worker-0-of-2", "worker-1-of-2"]
