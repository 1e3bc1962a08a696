"""`bliss doctor`: what it finds, that it always ends, and that no secret leaves it."""

import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bliss_ops.cli import main
from bliss_ops.lake import Lake, write_bytes, write_json
from bliss_ops.operations import checks_lake, checks_machine, checks_servers
from bliss_ops.operations.doctor import Places, checks, examine
from bliss_ops.operations.findings import Finding, error, ok, run_checks, without_secrets
from tests.lakes import make_corpus, make_run


@pytest.fixture(autouse=True)
def _no_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "AIRFLOW_CONN_RAY_DEFAULT", "RAY_AUTH_TOKEN", "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def small(tmp_path: Path) -> Lake:
    lake = make_corpus(tmp_path / "small")
    make_run(lake, "random")
    return lake


@contextmanager
def server(answers: dict[str, tuple[int, Any]], *, token: str = "") -> Iterator[str]:
    """Answers by path; with a token, 401 to whoever has not got it."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, value = answers.get(self.path, (404, {}))
            if token and self.headers.get("Authorization") != f"Bearer {token}":
                status, value = 401, {}
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(value).encode())

        def log_message(self, *arguments: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http_server:
        thread = threading.Thread(target=http_server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{http_server.server_port}"
        finally:
            http_server.shutdown()
            thread.join()


def found(*all_of: Finding) -> list[tuple[str, str]]:
    return [(finding.level, finding.found) for finding in all_of]


def test_the_whole_of_it_on_a_lake_that_is_well(small: Lake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["store", "rebuild", "--lake", str(small.root)])
    capsys.readouterr()
    code = main(["doctor", "--lake", str(small.root), "--state", str(tmp_path / "none"), "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert {finding["check"] for finding in answer["findings"]} == set(checks(Places()))
    assert code == (1 if answer["counts"]["error"] else 0)
    assert all(finding["fix"] for finding in answer["findings"] if finding["level"] != "ok")
    of_lake = [finding for finding in answer["findings"] if finding["check"] in ("lake", "duckdb", "s3")]
    assert {finding["level"] for finding in of_lake} == {"ok"}
    assert any("DuckDB" in finding["found"] and "1 score runs" in finding["found"] for finding in of_lake)


def test_the_table_is_for_people_and_errors_are_exit_code_1(small: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    write_bytes(small.run("demo-random-s0").round(1) / "scores" / "manifest.json", b"{half")
    assert main(["doctor", "--lake", str(small.root), "--only", "lake"]) == 1
    text = capsys.readouterr().out
    assert "demo-random-s0/round-01/scores/manifest.json" in text.replace("\n", "").replace(" ", "")
    assert "1 errors" in text
    assert main(["doctor", "--only", "weather"]) == 1


def test_a_check_that_hangs_or_breaks_is_a_finding_and_the_others_answer() -> None:
    def hangs() -> Iterator[Finding]:
        time.sleep(30)
        yield ok("hangs", "never")

    def breaks() -> Iterator[Finding]:
        yield ok("breaks", "begun")
        raise RuntimeError("out of order")

    begun = time.monotonic()
    answers = list(run_checks({"hangs": hangs, "breaks": breaks, "fine": lambda: [ok("fine", "yes")]}, seconds=0.5))
    assert time.monotonic() - begun < 5
    assert [(finding.check, finding.level) for finding in answers] == [("hangs", "error"), ("breaks", "error"), ("fine", "ok")]
    assert "no answer within 0.5 s" in answers[0].found
    assert "out of order" in answers[1].found


def test_no_secret_leaves() -> None:
    environment = {"AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI", "RAY_AUTH_TOKEN_PATH": "/run/token-file", "HOME": "/home/somebody"}
    told = without_secrets(
        error("s3", "wJalrXUtnFEMI of postgresql://airflow:hunter2@db/x", "see /run/token-file, /home/somebody"), environment
    )
    assert told == error("s3", "*** of postgresql://***@db/x", "see /run/token-file, /home/somebody")


def test_versions_are_held_against_bounds_and_constraints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pins = tmp_path / "constraints.txt"
    pins.write_text("duckdb==0.0.1\npyarrow==26.0.1 ; python_version > '3'\n")
    monkeypatch.setattr(checks_machine, "requires", lambda name: ["pydantic>=99", "duckdb>=1", "no-such-thing>=1; extra == 'train'"])
    answers = list(checks_machine.versions(pins))
    assert ("error", f"pydantic {checks_machine._version('pydantic')}, but >=99 is needed") in found(*answers)
    assert any(level == "warning" and "tested with 0.0.1" in text for level, text in found(*answers))
    assert any(finding.found == "no-such-thing is not installed" and "[train]" in finding.fix for finding in answers)


def test_versions_here_are_those_that_are_needed() -> None:
    assert "error" not in {finding.level for finding in checks_machine.versions(None)}


def test_a_port_in_use_says_whose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bliss_ops.stack import services

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        monkeypatch.setattr(services, "DEFAULT_PORTS", {"airflow": listener.getsockname()[1]})
        (answer,) = checks_machine.ports(tmp_path)
    assert answer.level == "warning"
    assert f"(pid {os.getpid()})" in answer.found


def test_little_disk_and_memory(small: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks_machine, "VERY_FEW_BYTES", 1e18)
    assert {finding.level for finding in checks_machine.disk(str(small.root), tmp_path / "none", None)} == {"error"}
    monkeypatch.setattr(checks_machine, "VERY_LITTLE_MEMORY", 1e18)
    assert next(iter(checks_machine.memory())).level == "error"


def test_a_run_is_held_against_the_disk(lake: Lake, tmp_path: Path) -> None:
    answers = list(checks_machine.disk(str(lake.root), tmp_path / "none", "smoke-bliss-s0"))
    assert any("run smoke-bliss-s0" in text and "planned" in text for _, text in found(*answers))


def test_a_gpu_that_torch_does_not_go_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA H100, 570.1, 81559, 1000'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(checks_machine, "_torch", lambda: ("2.13.0", "13.0", False, 0))
    monkeypatch.setattr(checks_machine, "_devices", lambda: [Path("/dev/nvidia0")])
    answers = list(checks_machine.gpu())
    assert found(*answers) == [
        ("warning", "NVIDIA H100, driver 570.1, 1.0 of 79.6 GiB free"),
        ("error", "torch 2.13.0 is built for CUDA 13.0 and sees no GPU (driver 570.1)"),
    ]


def test_ray_is_reached_with_its_token_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = {"data": {"summary": [{"raylet": {"state": "ALIVE"}}, {"raylet": {"state": "DEAD"}}]}}
    ray_version = checks_servers._version("ray")
    answers = {"/api/version": (200, {"ray_version": ray_version}), "/nodes?view=summary": (200, nodes), "/api/jobs/": (200, [])}
    with server(answers, token="the-secret-token") as url:
        (refused,) = checks_servers.ray(tmp_path, url)
        assert (refused.level, "401: it asks for a token" in refused.found) == ("error", True)
        monkeypatch.setenv("RAY_AUTH_TOKEN", "the-secret-token")
        told = list(examine(Places(state_dir=tmp_path, ray=url), only=["ray"]))
    assert [finding.level for finding in told] == ["ok", "ok", "warning"]
    assert "1 of 2 nodes are alive" in told[2].found
    assert not any("the-secret-token" in finding.found + finding.fix for finding in told)


def test_an_open_jobs_api_and_another_version_are_said(tmp_path: Path) -> None:
    nodes = {"data": {"summary": []}}
    answers = {"/api/version": (200, {"ray_version": "1.0"}), "/nodes?view=summary": (200, nodes), "/api/jobs/": (200, [])}
    with server(answers) as url:
        told = list(checks_servers.ray(tmp_path, url))
    assert [finding.level for finding in told] == ["error", "warning", "error"]
    assert "the cluster has Ray 1.0" in told[0].found
    assert "asks for no token" in told[1].found


def test_nobody_answers(tmp_path: Path) -> None:
    for answers in (checks_servers.ray(tmp_path, "http://127.0.0.1:1"), checks_servers.airflow(tmp_path, "http://127.0.0.1:1")):
        (answer,) = answers
        assert answer.level == "error"
        assert answer.fix


def test_airflow_parts_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    health = {"scheduler": {"status": "unhealthy"}, "metadatabase": {"status": "healthy"}, "triggerer": {"status": None}}
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "sqlite:////x/airflow.db")
    monkeypatch.setenv("AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE", "True")
    with server({"/api/v2/monitor/health": (200, health)}) as url:
        told = list(checks_servers.airflow(tmp_path, url))
    levels = {finding.found.split(":")[0]: finding.level for finding in told}
    assert levels["scheduler is unhealthy"] == "error"
    assert levels["triggerer has never reported"] == "warning"
    assert levels["SQLite without a timeout"] == levels["deferrable tasks on SQLite"] == "warning"


def test_what_was_left_in_a_lake(small: Lake) -> None:
    old = time.time() - 5 * 86400
    begun = small.run("demo-random-s0").round(2) / "selector" / "begun.json"
    write_json(begun, {"fingerprint": ""})
    os.utime(begun.path, (old, old))
    killed = Path(small.root.path) / "runs" / ".state.safetensors.x.tmp"
    killed.write_bytes(b"half")
    os.utime(killed, (old, old))
    write_bytes(small.root / "runs" / "broken" / "config.json", b"{}")
    told = {finding.found.split(":")[0]: finding for finding in checks_lake.records(str(small.root))}
    assert told["begun and not touched for 3 days"].level == "warning"
    assert "--only temporary --delete" in told["1 files of killed writes, 0.0 MB"].fix
    assert told["run broken"].level == "error"


def test_a_store_that_cannot_be_read(small: Lake) -> None:
    write_bytes(small.score_store, b"no database")
    (answer,) = [finding for finding in checks_lake.duckdb(str(small.root)) if finding.level != "ok"]
    assert answer.fix.startswith("`bliss store rebuild`")


def test_an_object_store_is_written_read_and_left_as_it_was(s3: Any) -> None:
    s3.mkdir("doctor")
    told = list(checks_lake.object_store("s3://doctor/lake"))
    assert [finding.level for finding in told] == ["ok", "ok"]
    assert "write" in told[0].found
    assert s3.find("doctor") == []


def test_an_object_store_without_its_bucket(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-that-must-not-be-seen")
    told = list(examine(Places(lake="s3://no-such-bucket/lake"), only=["s3"], seconds=30))
    assert told[0].level == "error"
    assert "docs/s3.md" in told[0].fix
    assert "must-not-be-seen" not in str(told)


def test_it_ends_although_a_check_does_not(tmp_path: Path) -> None:
    code = (
        "import time, sys\nfrom bliss_ops.operations import checks_machine\n"
        "def hangs():\n    time.sleep(100)\n    yield\n"
        "checks_machine.memory = hangs\nfrom bliss_ops.cli import main\n"
        "sys.exit(main(['doctor', '--only', 'memory', '--seconds', '0.5']))"
    )
    begun = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=90, check=False)
    assert (result.returncode, time.monotonic() - begun < 60) == (1, True)
    assert "no answer" in result.stdout


def test_a_fresh_process_imports_nothing_twice_at_the_same_time(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bliss_ops.cli", "doctor", "--json", "--state", str(tmp_path), "--lake", str(tmp_path / "lake")]
    result = subprocess.run(
        [*command, "--only", "ports", "--only", "ray", "--only", "airflow"], capture_output=True, text=True, check=False
    )
    assert {finding["level"] for finding in json.loads(result.stdout)["findings"]} <= {"ok", "warning"}
