"""The soak's own parts: its plan, its victims, its checks must be able to fail."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

pytest.importorskip("psutil")

from bliss_ops.lake import Lake, write_bytes
from tests.lakes import make_corpus, make_run
from tests.soak import chaos, dag_runs, invariants, patient, reference, summary
from tests.soak.chaos import KINDS
from tests.soak.patient import PatientApi
from tests.soak.timeline import Timeline

MINUTE = 60.0

# Command lines as they were seen, and the one kind each belongs to; None is never killed.
SEEN = {
    "airflow worker -- 019aa8cb-f8a4-7d37-9d6c-7b1e1b0b2a11": "task",
    "airflow worker -- LocalExecutor: <idle>": None,
    "airflow worker -- LocalExecutor: bliss_round.fit[smoke-bliss-s0-round-01]": "executor worker",
    "/env/bin/python3 /env/bin/bliss fit smoke-bliss-s0 --round 1": "job driver",
    "/bin/sh -c bliss fit smoke-bliss-s0 --round 1": None,
    "ray::IDLE": None,
    "ray::_ShardActor.work": "ray worker",
    "ray::JobSupervisor": "job supervisor",
    "ray::DashboardAgent": "ray dashboard",
    "/env/lib/ray/core/src/ray/raylet/raylet --raylet_socket_name=/tmp/x": "raylet",
    "/env/lib/ray/core/src/ray/gcs/gcs_server --log_dir=/tmp/x": "gcs server",
    "/env/bin/python3 /env/bin/ray start --head --block --port=6379": "ray head",
    "/env/bin/python3 /env/lib/ray/dashboard/dashboard.py --host=127.0.0.1": "ray dashboard",
    "/env/bin/python3 /env/bin/airflow scheduler --skip-serve-logs": "scheduler",
    "airflow api_server -- host:127.0.0.1 port:8080": "api-server",
    "/env/bin/python3 /env/bin/airflow triggerer --skip-serve-logs": "triggerer",
    "/env/bin/python3 /env/bin/airflow dag-processor": "dag-processor",
    "/env/bin/python -m bliss_ops.stack /tmp/state": None,
}


def test_the_seed_alone_decides_and_a_short_soak_is_the_beginning_of_a_long_one() -> None:
    hour = chaos.plan(3, 60 * MINUTE)
    assert hour == chaos.plan(3, 60 * MINUTE)
    assert hour != chaos.plan(4, 60 * MINUTE)
    short = chaos.plan(3, 5 * MINUTE)
    assert short == hour[: len(short)]
    assert 60 <= len(hour) <= 120
    assert {kill.kind for kill in hour} == {kind.name for kind in KINDS}, "an hour meets every kind"


@pytest.mark.parametrize("words", SEEN)
def test_each_command_line_is_of_one_kind(words: str) -> None:
    found = [kind.name for kind in KINDS if chaos.matches(kind, words)]
    assert found == ([SEEN[words]] if SEEN[words] else [])


def test_a_red_task_needs_a_kill_for_each_try() -> None:
    def at(second: int) -> str:
        return f"2026-01-01T00:{second // 60:02d}:{second % 60:02d}+00:00"

    tries = [{"start_date": at(100 + 10 * k), "end_date": at(105 + 10 * k)} for k in range(3)]
    kills = [{"victim": "raylet", "seconds": second, "at": at(second)} for second in (30, 50, 103, 135, 150)]
    assert dag_runs.kills_during(kills, tries) == ["raylet at 50s", "raylet at 103s", "raylet at 135s"]
    assert dag_runs.kills_during(kills, []) == []


def red(*, explained: bool) -> dict[str, Any]:
    return {"kind": "red", "dag": "d", "run": "r", "task": "t", "tries": [], "kills": [], "explained": explained}


def test_checks_of_the_timeline_can_fail() -> None:
    run = {"kind": "dag run", "dag": "d", "run": "r"}
    assert invariants.all_green([run | {"state": "failed"}, run | {"state": "success"}]).held
    assert not invariants.all_green([run | {"state": "success"}, run | {"state": "queued"}]).held
    assert not invariants.all_green([{"kind": "not quiet", "runs": ["r: running"]}]).held
    assert invariants.reds_are_explained([red(explained=True)]).held
    assert not invariants.reds_are_explained([red(explained=True), red(explained=False)]).held
    check = {"kind": "check", "problems": ["x: not in the snapshot as in Parquet (scores: 1): run `bliss load`"], "error": []}
    assert invariants.no_reader_error([check]).held
    assert not invariants.no_reader_error([check | {"problems": ["the rows in the table are not those of the file"]}]).held
    assert not invariants.no_reader_error([{"kind": "reader error", "reader": "sql", "what": "doubled", "error": "..."}]).held
    assert invariants.no_zombies([{"num_zombies": count} for count in (0, 3, 0, 2, 0, 0, 0)]).held
    assert not invariants.no_zombies([{"num_zombies": 1}] * 7).held


def samples(megabytes_per_hour: float, seconds: float = 1800.0) -> list[dict[str, Any]]:
    values = [(at, 100 + megabytes_per_hour * at / 3600) for at in range(0, int(seconds), 10)]
    return [{"seconds": at, "megabytes": size, "num_fds": 10, "each": [(1, "scheduler", size, 10)]} for at, size in values]


def test_growth_is_a_slope_per_life() -> None:
    ((kind, (life,)),) = invariants.lives(samples(50.0), 2).items()
    assert (kind, life.seconds) == ("scheduler", 1670.0)
    assert life.per_hour == pytest.approx(50.0)
    assert invariants.lives(samples(50.0, seconds=200.0), 2) == {}, "too short to say"
    assert invariants.memory(samples(50.0)).held
    assert not invariants.memory(samples(500.0)).held
    assert invariants.memory(samples(500.0, seconds=600.0)).held, "shown, not judged"
    assert invariants.file_descriptors(samples(500.0)).held


def test_a_byte_that_differs_is_found(tmp_path: Path) -> None:
    soaked, alone = (make_corpus(tmp_path / name) for name in ("soaked", "alone"))
    for lake in (soaked, alone):
        make_run(lake)
    assert list(reference.differences(soaked, alone)) == []
    assert reference.num_compared(soaked) > 5
    file = next(iter(sorted(soaked.root.rglob("scores/shard-00001.parquet"))))
    write_bytes(file, file.read_bytes()[:-1] + b"X")
    (found,) = reference.differences(soaked, alone)
    assert "shard-00001.parquet is not what was written" in found
    make_run(alone, seed=1)
    assert any("the soak has none" in line for line in reference.differences(soaked, alone))


def test_what_a_killed_writer_left_must_be_taken_by_gc(tmp_path: Path) -> None:
    lake = Lake.open(tmp_path)
    (tmp_path / ".scores.parquet.abc.tmp").write_text("half")
    check = invariants.temporary_files_end(lake)
    assert check.held
    assert check.figures["left_by_kills"] == 1
    (tmp_path / "scores.parquet.tmp").write_text("half")
    assert not invariants.temporary_files_end(lake).held


LOG = """\
12:00:01 all is well
Traceback (most recent call last):
  File "x.py", line 1, in f
    f()
ConnectionRefusedError: [Errno 111] Connection refused
12:00:02 again
"""


def test_a_traceback_is_explained_by_a_kill_and_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "scheduler.log").write_text(LOG)
    monkeypatch.setattr(invariants, "EXPLAINED", (invariants.Explained("ConnectionRefused", ("api-server",), "it was away"),))
    check = invariants.tracebacks(tmp_path, [{"kind": "kill", "victim": "api-server"}])
    assert check.held
    assert check.figures == {"it was away": 1}
    check = invariants.tracebacks(tmp_path, [{"kind": "kill", "victim": "raylet"}])
    assert check.findings == ["scheduler.log: ConnectionRefusedError: [Errno #] Connection refused (1 times)"]


class Recovering(BaseHTTPRequestHandler):
    """A server that fails a few times before it answers."""

    statuses: ClassVar[list[int]] = []

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        status = self.statuses.pop(0)
        body = json.dumps({"access_token": "t", "detail": "x"}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[PatientApi]:
    monkeypatch.setattr(patient, "RETRY_SECONDS", 0.0)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Recovering)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield PatientApi(f"http://127.0.0.1:{server.server_port}", "admin", "secret")
    server.shutdown()
    server.server_close()


def test_a_lost_answer_does_not_trigger_twice(api: PatientApi) -> None:
    """The token, a server error, then the conflict with the DAG run whose answer was lost."""
    Recovering.statuses = [201, 503, 503, 409]
    assert api.trigger_once("bliss_round", "r", {}) == "r"
    assert Recovering.statuses == []
    assert api.num_waits == 2


def test_the_summary_names_what_did_not_hold(tmp_path: Path) -> None:
    timeline = Timeline(tmp_path / "timeline.jsonl")
    for second in range(3):
        timeline.write("sample", megabytes=100.0 + second, by_kind={"scheduler": 10.0})
    timeline.write("kill", victim="raylet")
    checks = [invariants.Check("good", held=True, figures={"a": 1}), invariants.Check("bad", held=False, findings=["this <is> it"])]
    assert not summary.write(tmp_path, {"seed": 1, **summary.counted(timeline.path)}, checks)
    text = (tmp_path / "summary.md").read_text()
    assert "NOT everything held" in text
    assert "- this <is> it" in text
    assert json.loads((tmp_path / "summary.json").read_text())["kills"] == {"raylet": 1}
    assert 'class="kill"' in (tmp_path / "timeline.svg").read_text()
    assert summary.write(tmp_path, {}, checks[:1])
