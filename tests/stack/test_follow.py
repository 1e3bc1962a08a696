"""What `bliss run --airflow` prints, and how it goes from round to round, against a small HTTP server that answers as Airflow does."""

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs

import pytest

from bliss_ops.stack import follow as follow_module
from bliss_ops.stack.airflow_api import AirflowApi, AirflowError, TaskInstance
from bliss_ops.stack.follow import follow

FAILURE = {"event": "Task failed", "error_detail": [{"exc_type": "StageFailed", "exc_value": "`bliss score` failed:\n  no such run"}]}


class Airflow(BaseHTTPRequestHandler):
    """Plays a script: each DAG run's states, one per time it is asked for."""

    runs: ClassVar[dict[str, list[tuple[str, list[dict[str, Any]]]]]] = {}
    asked: ClassVar[dict[str, int]] = {}
    triggered: ClassVar[list[dict[str, Any]]] = []
    taken: ClassVar[set[str]] = set()
    tokens: ClassVar[int] = 0

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/auth/token":
            type(self).tokens += 1
            self.answer(201, {"access_token": f"token-{self.tokens}"})
        elif body["conf"].get("bad"):
            self.answer(400, {"detail": "bilevel.num_steps: 0 is less than the minimum of 1"})
        elif body["dag_run_id"] in self.taken:
            self.answer(409, {"detail": "exists"})
        else:
            self.triggered.append(body)
            self.answer(200, {})

    def do_GET(self) -> None:
        if self.headers["Authorization"] == "Bearer token-1":  # the first token has expired
            return self.answer(401, {"detail": "expired"})
        *_, run_id = self.path.split("/dagRuns/")[0:2]
        run_id, _, rest = run_id.partition("/")
        if run_id not in self.runs:
            return self.answer(404, {"detail": "not found"})
        script = self.runs[run_id]
        state, tasks = script[min(self.asked.get(run_id, 0), len(script) - 1)]
        if rest.startswith("taskInstances?"):
            query = parse_qs(rest.partition("?")[2])
            offset, limit = int(query["offset"][0]), min(int(query["limit"][0]), 100)  # as Airflow's maximum_page_limit
            if offset + limit > len(tasks):  # the last page
                self.asked[run_id] = self.asked.get(run_id, 0) + 1
            return self.answer(200, {"task_instances": tasks[offset : offset + limit]})
        if "/logs/" in rest:
            return self.answer(200, {"content": [{"event": "::group::Pre"}, *({"event": f"line {i}"} for i in range(40)), FAILURE]})
        return self.answer(200, {"state": state})

    def answer(self, status: int, body: Any) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def task(task_id: str, state: str | None, map_index: int = -1) -> dict[str, Any]:
    started = "2026-01-01T00:00:00+00:00" if state else None
    return {
        "task_id": task_id,
        "map_index": map_index,
        "rendered_map_index": None,
        "state": state,
        "try_number": 1,
        "duration": 3.0,
        "start_date": started,
        "end_date": None,
    }


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[AirflowApi]:
    monkeypatch.setattr(follow_module, "POLL_SECONDS", 0.01)
    for name, empty in (("runs", {}), ("asked", {}), ("triggered", []), ("taken", set()), ("tokens", 0)):
        monkeypatch.setattr(Airflow, name, empty)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Airflow)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield AirflowApi(f"http://127.0.0.1:{server.server_port}", "admin", "secret")
    server.shutdown()
    server.server_close()


def test_rounds_are_followed_to_the_end_with_one_line_per_change(api: AirflowApi) -> None:
    Airflow.runs = {
        "demo-round-01": [
            ("running", [task("fit", "running")]),
            ("running", [task("fit", "success")]),
            ("success", [task("next_round", "success")]),
        ],
        "demo-round-02": [("running", [task("fit", None)]), ("success", [task("fit", "success"), task("next_round", "skipped")])],
    }
    output = io.StringIO()
    assert follow(api, [("bliss_round", "demo-round-01")], output=output)
    lines = [line.lstrip().split("s  ", 1)[1] for line in output.getvalue().splitlines()]
    assert lines.count("demo-round-01  fit: running") == 1
    assert "demo-round-01  fit: success (3 s)" in lines
    assert lines[-1] == "demo-round-02: success"


def test_a_round_that_was_asked_for_twice_is_followed(api: AirflowApi) -> None:
    """The second request finds the DAG run of the first, and Airflow calls the task skipped."""
    Airflow.runs = {
        "demo-round-01": [("success", [task("next_round", "skipped")])],
        "demo-round-02": [("running", [task("fit", "running")]), ("failed", [task("fit", "failed")])],
    }
    assert not follow(api, [("bliss_round", "demo-round-01")], output=io.StringIO())


def test_a_failure_shows_the_end_of_the_failing_tasks_log(api: AirflowApi) -> None:
    Airflow.runs = {
        "good-round-01": [("success", [task("fit", "success"), task("next_round", "skipped")])],
        "bad-round-01": [("failed", [task("score", "failed", map_index=3), task("load", "upstream_failed")])],
    }
    output = io.StringIO()
    assert not follow(api, [("bliss_round", "good-round-01"), ("bliss_round", "bad-round-01")], output=output)
    text = output.getvalue()
    assert "bad-round-01 failed in score [3]" in text
    assert text.count("  line ") == 27
    assert text.endswith("  Task failed\n  StageFailed: `bliss score` failed:\n    no such run\n")


def test_a_taken_run_id_gets_a_number(api: AirflowApi) -> None:
    Airflow.taken = {"demo-round-01", "demo-round-01.2"}
    assert api.trigger("bliss_round", "demo-round-01", {"seed": 1}) == "demo-round-01.3"
    assert Airflow.triggered == [{"dag_run_id": "demo-round-01.3", "logical_date": None, "conf": {"seed": 1}}]


def test_a_refused_form_names_the_field(api: AirflowApi) -> None:
    with pytest.raises(AirflowError, match=r"HTTP 400: bilevel\.num_steps"):
        api.trigger("bliss_round", "demo-round-01", {"bad": True})


def test_more_tasks_than_a_page_are_all_seen(api: AirflowApi) -> None:
    """A comparison of many runs: Airflow gives a hundred tasks at a time, whatever is asked for."""
    Airflow.runs = {"compare-a": [("success", [task("run.fit", "success", map_index=i) for i in range(250)])]}
    assert [found.map_index for found in api.task_instances("bliss_compare", "compare-a")] == list(range(250))
    Airflow.runs = {"compare-a": [("success", [task("run.fit", "success", map_index=i) for i in range(200)])]}
    assert len(api.task_instances("bliss_compare", "compare-a")) == 200


def test_of_very_many_tasks_the_table_shows_those_that_run_or_have_failed() -> None:
    states = ["success"] * 40 + ["running", "failed", "scheduled", "queued"]
    tasks = [TaskInstance(f"t{i}", -1, f"t{i}", state, 1, 1.0, "2026-01-01T00:00:00+00:00", None) for i, state in enumerate(states)]
    shown = follow_module._shown(follow_module.DagRun("bliss_compare", "compare-a", "running", tasks))
    assert [one.state for one in shown] == ["running", "failed", "queued"]
    assert follow_module._shown(follow_module.DagRun("bliss_compare", "compare-a", "running", tasks[:20])) == tasks[:20]
    assert follow_module._shown(follow_module.DagRun("bliss_compare", "compare-a", "success", tasks)) == []
