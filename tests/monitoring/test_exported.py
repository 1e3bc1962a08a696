"""What Ray and Airflow really export in a small round, held against every panel and alarm; and who is told when a task is killed."""

import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("airflow")

from bliss_ops.lake import Lake
from bliss_ops.stack import demo, local, services
from tests.monitoring.boards import expressions, metric_names
from tests.monitoring.otlp import OtlpReceiver
from tests.monitoring.receiver import Receiver
from tests.stack import titles

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")]

ROUND = {"num_rounds": 1, "pretraining.num_steps": 1500, "pretraining.evaluate_every_steps": 300, "ingest.embedded_megabytes": 0.5}
OF_GPUS = {"ray_node_gpus_utilization", "ray_node_gram_used", "ray_node_gram_available", "ray_bliss_mfu"}
ONLY_WHEN_IT_HAPPENS = {"airflow_task_instances_without_heartbeats_killed_total", "airflow_dagrun_duration_failed_milliseconds"}


@dataclass
class Seen:
    """Everything that was exported in the course of a round, and what was told."""

    ray: dict[str, set[str]] = field(default_factory=dict)  # metric -> its sample lines without values
    airflow: dict[str, dict[str, str]] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)  # expression -> what Prometheus made of it while the round ran
    messages: list[dict[str, Any]] = field(default_factory=list)
    is_green: bool = False

    def scrape(self, url: str) -> None:
        with urllib.request.urlopen(url, timeout=10) as answer:
            for line in answer.read().decode().splitlines():
                if not line.startswith("#") and line:
                    name, _, rest = line.partition("{")
                    self.ray.setdefault(name.split(" ")[0], set()).add(rest.rpartition("}")[0])


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """The embedded stack with both exports on, one round through it, then two DAG runs that fail."""
    seen, directory = Seen(), tmp_path_factory.mktemp("exported")
    lake, port = Lake.open(directory / "lake"), services.free_port()
    with pytest.MonkeyPatch.context() as patch, OtlpReceiver() as otlp, Receiver() as told:
        plain_environment, plain_command = services.airflow_environment, services.ray_command
        metrics = {
            "AIRFLOW__METRICS__OTEL_ON": "True", "AIRFLOW__METRICS__LEGACY_NAMES_ON": "False",
            "AIRFLOW__METRICS__OTEL_INTERVAL_MILLISECONDS": "2000", "OTEL_METRIC_EXPORT_INTERVAL": "2000",
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": otlp.endpoint, "OTEL_SERVICE_NAME": "airflow",
        }  # fmt: skip
        patch.setattr(services, "airflow_environment", lambda layout: plain_environment(layout) | metrics)
        patch.setattr(services, "ray_command", lambda layout: [*plain_command(layout), f"--metrics-export-port={port}"])
        patch.setenv("BLISS_METRICS", "1")
        patch.setenv("BLISS_WEBHOOK_URL", told.url)
        state = local.up(lake, directory / "state")
        try:
            with prometheus(directory, port) as ask:
                watcher = Watcher(seen, f"http://127.0.0.1:{port}/metrics", ask)
                with watcher:
                    seen.is_green = demo.run_in_airflow("smoke", ["random"], 0, ROUND, lake, directory / "state") == 0
            fail_for_good(state)
            kill_every_try(state)
            deadline = time.monotonic() + 60
            while len(told.requests) < 2 and time.monotonic() < deadline:
                time.sleep(1)
            seen.airflow, seen.messages = dict(otlp.series), told.messages
            if "BLISS_MONITORING_SEEN" in os.environ:
                Path(os.environ["BLISS_MONITORING_SEEN"]).write_text(repr(seen))
        finally:
            local.down(directory / "state")
    return seen


class Watcher:
    """Scrapes, and asks Prometheus every question of the dashboard, again and again while a round runs."""

    def __init__(self, seen: Seen, url: str, ask: Any) -> None:
        self.seen, self.url, self.ask = seen, url, ask
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.ended.wait(3):
            self.seen.scrape(self.url)
            if self.ask is None:
                continue
            for expression in expressions():
                if answer := self.ask(expression):
                    self.seen.answers[expression] = answer


class prometheus:  # noqa: N801 - used like a function
    """A real Prometheus over Ray's endpoint, where there is one; yields a function that asks it, or None."""

    def __init__(self, directory: Path, port: int) -> None:
        self.program, self.directory, self.port = shutil.which("prometheus"), directory, port
        self.own_port = services.free_port()
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Any:
        if self.program is None:
            return None
        config = self.directory / "prometheus.yml"
        targets = json.dumps([f"127.0.0.1:{self.port}"])
        config.write_text(f"scrape_configs:\n  - job_name: ray\n    scrape_interval: 2s\n    static_configs: [targets: {targets}]\n")
        command = [
            self.program, f"--config.file={config}", f"--storage.tsdb.path={self.directory / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{self.own_port}", "--enable-feature=native-histograms",
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=(self.directory / "prometheus.log").open("wb"))
        return self.ask

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()

    def ask(self, expression: str) -> list[Any]:
        query = urllib.parse.urlencode({"query": expression.replace("$__range", "10m").replace("[2m]", "[30s]").replace("[5m]", "[30s]")})
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.own_port}/api/v1/query?{query}", timeout=10) as answer:
                return json.load(answer)["data"]["result"]  # type: ignore[no-any-return]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{expression}: {error.read().decode()}") from error
        except OSError:
            return []  # it is still beginning


def fail_for_good(state: local.State) -> None:
    state.api.trigger("bliss_ingest", "a-failure", {"recipe": "smoke", "ingest.corpus": "nothing", "ingest.source": "/nowhere/*.gz"})
    wait_for(state, "a-failure", "failed")


def kill_every_try(state: local.State) -> None:
    """-9 to whatever works for the DAG run, until Airflow gives up."""
    state.api.trigger("bliss_ingest", "a-murder", {"recipe": "smoke", "ingest.corpus": "murdered"})
    scheduler = state.find("scheduler")
    assert scheduler is not None
    deadline = time.monotonic() + 150
    while state.api.dag_run_state("bliss_ingest", "a-murder") not in ("failed", "success"):
        assert time.monotonic() < deadline, "no end to it"
        for process in psutil.Process(scheduler.pid).children(recursive=True):
            try:
                if re.match(titles.TASK, " ".join(process.cmdline())):  # an idle worker of the executor would take the scheduler along
                    process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.1)


def wait_for(state: local.State, run_id: str, wanted: str) -> None:
    deadline = time.monotonic() + 150
    while state.api.dag_run_state("bliss_ingest", run_id) != wanted:
        assert time.monotonic() < deadline, state.api.dag_run_state("bliss_ingest", run_id)
        time.sleep(1)


def test_every_metric_of_a_panel_or_alarm_is_exported(seen: Seen) -> None:
    assert seen.is_green
    wanted = {name for expression in expressions() for name in metric_names(expression)} - {"up"}
    exported = {*seen.ray, *seen.airflow}
    assert wanted - exported - OF_GPUS - ONLY_WHEN_IT_HAPPENS == set()


def test_the_numbers_of_work_say_whose_they_are(seen: Seen) -> None:
    tags = re.compile(r'(run|round|corpus|stage)="([^"]*)"')
    found = {name: {frozenset((k, v) for k, v in tags.findall(labels) if v) for labels in lines} for name, lines in seen.ray.items()}
    trained = frozenset({("run", "smoke-random-s0"), ("round", "1"), ("stage", "pretrain")})
    assert trained in found["ray_bliss_loss"]
    assert trained in found["ray_bliss_tokens_total"]
    stages = {dict(one).get("stage") for one in found["ray_bliss_rows_total"]}
    assert {"extract", "pack", "score", "materialize"} <= stages


def test_prometheus_answers_what_the_dashboard_asks_of_ray(seen: Seen) -> None:
    if shutil.which("prometheus") is None:
        pytest.skip("no prometheus on PATH: Debian's package has one")
    of_ray = [one for one in expressions(alarms=False) if not metric_names(one) & {*OF_GPUS, *seen.airflow}]
    assert [one for one in of_ray if "airflow_" not in one and one not in seen.answers] == []


def test_a_failed_task_and_one_whose_every_try_was_killed_are_told_of_once_each(seen: Seen) -> None:
    of_ingest = [message for message in seen.messages if message["dag_id"] == "bliss_ingest"]
    told = {message["run_id"]: message for message in of_ingest}
    assert [message["run_id"] for message in of_ingest] == ["a-failure", "a-murder"]
    failure, murder = told["a-failure"], told["a-murder"]
    assert (failure["event"], failure["task_id"], failure["try_number"], failure["subject"]) == ("task_failed", "discover", 3, "nothing")
    assert "matches no file" in "\n".join(failure["error"])
    assert failure["ray_job_id"].startswith("a-failure.discover.")
    assert murder["event"] in ("task_failed", "run_failed")
