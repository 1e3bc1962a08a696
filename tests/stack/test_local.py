"""The real thing, minutes long: up, the smoke recipe through the DAGs, a killed task, a failing DAG run, down, nothing left."""

import os
import socket
import stat
import time
from pathlib import Path
from urllib.error import URLError

import psutil
import pytest

from bliss_ops.cli import main
from bliss_ops.configure import configure_corpus
from bliss_ops.lake import Lake
from bliss_ops.manifest import read_manifest
from bliss_ops.recipes import load_recipe
from bliss_ops.stack import local, processes, run_in_airflow
from bliss_ops.stack.follow import follow
from bliss_ops.stack.state import State, read_state

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_it_listens_on_loopback_only(state: State) -> None:
    listening = [
        connection.laddr.ip
        for process in processes.living(state.services, state.layout.marker)
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(listening) >= 5
    assert set(listening) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def test_secrets_are_the_owners_alone(state: State) -> None:
    for path in (state.layout.passwords, state.layout.ray_token):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_second_up_changes_nothing(state: State, lake: Lake, tmp_path: Path) -> None:
    again = local.up(lake, state.layout.state_dir)
    assert again.services == state.services
    with pytest.raises(ValueError, match="already up over the lake"):
        local.up(Lake.open(tmp_path), state.layout.state_dir)


def test_the_smoke_recipe_goes_through_although_a_task_is_killed(state: State, lake: Lake) -> None:
    api = state.api
    ingest = api.trigger("bliss_ingest", "ingest-smoke", {"recipe": "smoke"})
    _kill_first_task(state)
    assert follow(api, [("bliss_ingest", ingest)])
    assert any(task.try_number > 1 for task in api.task_instances("bliss_ingest", ingest))
    assert run_in_airflow("smoke", ["random", "bliss"], 0, {}, lake, state.layout.state_dir) == 0
    for name in ("smoke-random-s0", "smoke-bliss-s0"):
        run = lake.run(name)
        assert read_manifest(run.round(2) / "evaluation", made_by="evaluate").stage == "evaluate"
        assert (run.report / "index.html").exists()


def test_airflow_and_one_process_write_the_same_files(lake: Lake, tmp_path: Path) -> None:
    """Needs the run of the test before: Ray actors and jobs there, plain loops in this process here."""
    assert main(["run", "smoke", "--lake", str(tmp_path / "alone")]) == 0
    alone = Lake.open(tmp_path / "alone")
    for manifest_file in sorted((alone.root / "runs").glob("**/manifest.json")) + sorted((alone.root / "corpora").glob("**/manifest.json")):
        here = read_manifest(manifest_file.parent, made_by="")
        there = read_manifest(lake.root / here.artifact, made_by="")
        if here.stage != "report":
            assert there.fingerprint == here.fingerprint, here.artifact
            assert there.outputs == here.outputs, here.artifact


def test_a_changed_setting_fails_and_shows_the_difference(state: State, lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    configure_corpus(lake, load_recipe("smoke"))
    assert run_in_airflow("smoke", ["random"], 0, {"ingest.sequence_length": 128}, lake, state.layout.state_dir) == 1
    output = capsys.readouterr().out
    assert "failed in configure" in output
    assert "sequence_length: was 64, now 128" in output


def test_down_leaves_nothing(state: State) -> None:
    members = processes.living(state.services, state.layout.marker)
    assert len(members) > 10
    local.down(state.layout.state_dir)
    assert processes.living(state.services, state.layout.marker) == []
    assert not state.layout.ray_temp.exists()
    assert not state.layout.ray_token.exists()
    assert local.status(state.layout.state_dir) == {}
    with pytest.raises((URLError, ConnectionError)):
        state.api.health()


def test_a_failed_start_leaves_nothing(lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = {"api-server": ["/bin/sh", "-c", "echo cannot start >&2; exit 3"]}
    monkeypatch.setattr("bliss_ops.stack.services.airflow_commands", lambda layout: broken)
    with pytest.raises(RuntimeError, match="cannot start"):
        local.up(lake, tmp_path)
    assert read_state(tmp_path) is None


def test_taken_ports_are_stepped_around(lake: Lake, tmp_path: Path) -> None:
    from bliss_ops.stack import services

    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind((services.HOST, services.DEFAULT_PORTS["airflow"]))
        squatter.listen()
        ports = services.choose_ports()
    assert ports["airflow"] != services.DEFAULT_PORTS["airflow"]
    assert len(set(ports.values())) == len(ports)


def _kill_first_task(state: State) -> None:
    """SIGKILL the first process that runs a task: what Airflow's worker forks for it."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for process in processes.living(state.services, state.layout.marker):
            title = process.cmdline()[0] if process.cmdline() else ""
            if title.startswith("airflow worker -- ") and "LocalExecutor" not in title and process.pid != os.getpid():
                process.kill()
                return
        time.sleep(0.05)
    raise AssertionError("no task was started within a minute")
