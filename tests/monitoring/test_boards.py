"""The dashboard, the alarms and the compose override: complete, consistent with each other, and asking for what exists."""

import itertools
import os
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from bliss_ops import gauges
from bliss_ops.stack import deployment
from tests.monitoring.boards import DOCKER, alarms, dashboard, expressions, metric_names, panels
from tests.monitoring.otlp import prometheus_name

REPOSITORY = DOCKER.parent


def test_panels_are_made_for_people() -> None:
    board = dashboard()
    assert [panel["title"] for panel in board["panels"] if panel["type"] == "row"] == [
        "Pipeline", "Scoring and shards", "Training", "Cluster", "Store and disks",
    ]  # fmt: skip
    for panel in panels():
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"]["uid"] == "prometheus", panel["title"]
        assert all(target["expr"] for target in panel["targets"]), panel["title"]
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    titles = [panel["title"] for panel in board["panels"]]
    assert len(set(titles)) == len(titles)


def test_panels_do_not_overlap_and_fill_their_lines() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        cells = set(itertools.product(range(place["x"], place["x"] + place["w"]), range(place["y"], place["y"] + place["h"])))
        assert not cells & taken, panel["title"]
        taken |= cells
    width, height = max(x for x, _ in taken) + 1, max(y for _, y in taken) + 1
    assert (width, len(taken)) == (24, width * height)


def test_every_metric_is_one_of_ours_rays_or_airflows() -> None:
    """By what the installed versions declare; test_exported.py looks at what they really send."""
    if find_spec("ray") is None or find_spec("airflow") is None:
        pytest.skip("Ray and Airflow are not installed")
    wanted = {name for expression in expressions() for name in metric_names(expression)} - {"up"}
    ours = {f"ray_bliss_{name}_total" for name in gauges.COUNTERS} | {f"ray_bliss_{name}" for name in gauges.GAUGES}
    assert wanted - ours - _airflows() - _rays() == set()
    assert ours - wanted == set(), "what is exported is shown"


def _airflows() -> set[str]:
    import airflow

    declared = yaml.safe_load((Path(airflow.__file__).parent / "_shared/observability/metrics/metrics_template.yaml").read_text())
    suffixes = {"counter": ("", True), "gauge": ("", False), "timer": ("ms", False)}
    names = set()
    for metric in declared["metrics"]:
        unit, is_counter = suffixes[metric["type"]]
        names.add(prometheus_name(f"airflow.{metric['name']}", unit, is_counter=is_counter))
        if metric["name"] == "task_instances_without_heartbeats_killed":
            assert is_counter
    return names


def _rays() -> set[str]:
    """Of nodes, in the reporter's own table; of the rest, a few names that its C++ has and a scrape has shown."""
    ray = find_spec("ray")  # not imported: Ray would keep this process's settings, and other tests have others
    assert ray is not None
    assert ray.origin is not None
    reporter = (Path(ray.origin).parent / "dashboard/modules/reporter/reporter_agent.py").read_text()
    nodes = {f"ray_{name}" for name in re.findall(r'^    "(node_\w+)": Gauge\(', reporter, re.MULTILINE)}
    return nodes | {"ray_actors", "ray_resources", "ray_running_jobs"}


def test_every_alarm_says_how_bad_it_is_and_where_to_read_what_to_do() -> None:
    runbook = (REPOSITORY / "docs" / "monitoring.md").read_text()
    for rule in alarms():
        assert rule["labels"]["severity"] in ("page", "ticket")
        name = rule["alert"]
        assert rule["annotations"]["summary"].endswith(".")
        assert rule["annotations"]["runbook"] == f"docs/monitoring.md#{name.lower()}"
        assert f"### {name}\n" in runbook, name
    assert len(alarms()) < 10, "few, or nobody reads them"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed: Debian's package `prometheus` has it")
def test_alarms_fire_when_they_should_and_are_quiet_else(tmp_path: Path) -> None:
    for file in (DOCKER / "prometheus" / "alerts.yml", Path(__file__).parent / "alerts_test.yml"):
        shutil.copy(file, tmp_path)
    result = subprocess.run(["promtool", "test", "rules", "alerts_test.yml"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed: Debian's package `prometheus` has it")
def test_prometheus_takes_its_configuration(tmp_path: Path) -> None:
    config = (DOCKER / "prometheus" / "prometheus.yml").read_text().replace("/etc/prometheus/", f"{DOCKER / 'prometheus'}/")
    (tmp_path / "prometheus.yml").write_text(config)
    result = subprocess.run(["promtool", "check", "config", str(tmp_path / "prometheus.yml")], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


class TestCompose:
    override: dict[str, Any] = yaml.safe_load((DOCKER / "monitoring.yml").read_text())
    base: dict[str, Any] = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())

    def test_rays_commands_are_the_same_but_for_the_port(self) -> None:
        for name in ("ray-head", "ray-worker"):
            ours, theirs = (services["services"][name]["command"] for services in (self.override, self.base))
            assert ours == [*theirs, "--metrics-export-port=8090"]
            assert self.override["services"][name]["environment"] == {"BLISS_METRICS": "1"}

    def test_every_part_of_airflow_sends_under_a_name_of_its_own(self) -> None:
        parts = [
            name
            for name in self.base["services"]
            if name.startswith("airflow-") and self.base["services"][name]["restart"] == "unless-stopped"
        ]
        names = {
            name: service["environment"].get("OTEL_SERVICE_NAME") for name, service in self.override["services"].items() if name in parts
        }
        assert names == {name: name for name in ("airflow-api-server", "airflow-scheduler", "airflow-dag-processor", "airflow-triggerer")}

    def test_images_are_pinned_and_ports_are_loopback_only(self) -> None:
        for name in ("prometheus", "alertmanager", "grafana"):
            service = self.override["services"][name]
            assert re.search(r":v?\d+\.\d+\.\d+@sha256:[0-9a-f]{64}$", service["image"]), name
            assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name

    def test_servers_are_bounded_checked_and_wait_for_the_settings(self) -> None:
        """Grafana's password is one of those, by the code that checks the others."""
        hardened = self.base["services"]["s3"]
        for name in ("prometheus", "alertmanager", "grafana"):
            service = self.override["services"][name]
            assert {"mem_limit", "cpus", "pids_limit", "healthcheck"} <= service.keys(), name
            for setting in ("read_only", "cap_drop", "security_opt", "logging", "restart"):
                assert service[setting] == hardened[setting], (name, setting)
            assert service["depends_on"]["check-settings"] == {"condition": "service_completed_successfully"}
        assert self.override["services"]["check-settings"]["environment"].keys() == deployment.WHERE_USED.keys()

    def test_what_is_mounted_is_there_and_the_datasource_is_the_panels(self) -> None:
        for service in self.override["services"].values():
            for volume in service.get("volumes", ()):
                if volume.startswith("./"):
                    assert (REPOSITORY / volume.split(":")[0]).is_file(), volume
        datasources = yaml.safe_load((DOCKER / "grafana" / "datasources.yml").read_text())
        assert [source["uid"] for source in datasources["datasources"]] == ["prometheus"]

    @pytest.mark.skipif(shutil.which("docker-compose") is None, reason="docker-compose is not installed")
    def test_docker_compose_takes_both_files(self) -> None:
        text = (REPOSITORY / "docker-compose.yml").read_text() + (DOCKER / "monitoring.yml").read_text()
        environment = os.environ | dict.fromkeys(re.findall(r"\$\{(\w+):\?", text), "x")
        command = ["docker-compose", "-f", "docker-compose.yml", "-f", "docker/monitoring.yml", "config", "-q"]
        result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
