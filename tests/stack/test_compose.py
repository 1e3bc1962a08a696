"""The compose file and the images: readable by old and new compose, closed to the network, hardened, pinned, without secrets."""

import contextlib
import http.server
import os
import re
import shutil
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bliss_ops.stack import deployment

yaml = pytest.importorskip("yaml")

REPOSITORY = Path(__file__).parents[2]
DOCKERFILES = sorted((REPOSITORY / "docker").glob("*.Dockerfile"))
JOBS = {"check-settings", "s3-bucket", "airflow-migrate", "airflow-setup"}
DATABASE = {"postgres", "airflow-migrate", "airflow-setup"} | {
    f"airflow-{part}" for part in ("api-server", "scheduler", "dag-processor", "triggerer")
}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())


def test_it_has_every_part(compose: dict[str, Any]) -> None:
    assert set(compose["services"]) == JOBS | DATABASE | {"s3", "ray-head", "ray-worker"}


def test_only_loopback_is_published_unless_airflow_is_told_otherwise(compose: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert published == {
        "airflow-api-server": ["${BIND_ADDRESS:-127.0.0.1}:${AIRFLOW_PORT:-8080}:8080"],
        "ray-head": ["127.0.0.1:${RAY_DASHBOARD_PORT:-8265}:8265"],
    }


def test_every_server_has_a_health_check_and_is_restarted_and_jobs_are_not(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert {name for name, service in services.items() if "healthcheck" not in service} == JOBS
    assert {name for name, service in services.items() if service["restart"] == "no"} == JOBS
    assert {service["restart"] for name, service in services.items() if name not in JOBS} == {"unless-stopped"}


def test_nothing_starts_before_the_settings_are_checked(compose: dict[str, Any]) -> None:
    services = compose["services"]

    def waits_for(name: str) -> set[str]:
        others = services[name].get("depends_on", {})
        return set(others) | {further for other in others for further in waits_for(other)}

    assert [name for name in services if name != "check-settings" and "check-settings" not in waits_for(name)] == []
    assert services["check-settings"]["environment"].keys() == deployment.SECRETS.keys() | {"BIND_ADDRESS", "S3_ACCESS_KEY"}


def test_a_workers_health_is_that_of_its_own_node(compose: dict[str, Any]) -> None:
    """The page that Kubernetes asks, too; a node that is given up, frozen or gone is not healthy."""
    command = compose["services"]["ray-worker"]["healthcheck"]["test"][1:]
    assert "http://127.0.0.1:52365/api/local_raylet_healthz" in command[-1]
    answers = {200: True, 503: False, None: False}
    for status, is_healthy in answers.items():
        with agent(status) as port:
            script = command[-1].replace(":52365/", f":{port}/").replace("timeout=10", "timeout=1")
            done = subprocess.run([sys.executable, *command[1:-1], script], capture_output=True, text=True, check=False)
        assert (done.returncode == 0) == is_healthy, (status, done.stderr)


@contextlib.contextmanager
def agent(status: int | None) -> Iterator[int]:
    """A page of that status, or none that ever answers; yields its port."""
    with socketserver.TCPServer(("127.0.0.1", 0), _Agent) as server:
        server.status = status  # type: ignore[attr-defined]
        if status is not None:  # a listening socket takes connections by itself
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server.server_address[1]
        if status is not None:
            server.shutdown()


class _Agent(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(self.server.status)  # type: ignore[attr-defined]
        self.end_headers()


@pytest.mark.parametrize("listing", [".gitignore", ".dockerignore"])
def test_the_file_with_the_secrets_is_neither_committed_nor_sent_to_docker(listing: str) -> None:
    assert ".env" in (REPOSITORY / listing).read_text().splitlines()


def test_containers_may_do_little(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert {"mem_limit", "cpus", "pids_limit"} <= service.keys(), name
        assert service["logging"]["options"] == {"max-size": "10m", "max-file": "5"}, name
        assert not {"privileged", "cap_add", "network_mode"} & service.keys() or service.get("network_mode") == "none", name
        assert service.get("user") != "root", name
        assert not any(volume.startswith((".", "/var/run")) for volume in service.get("volumes", ())), name


def test_rays_jobs_cannot_reach_airflows_database(compose: dict[str, Any]) -> None:
    on_metadata = {name for name, service in compose["services"].items() if "metadata" in service.get("networks", ())}
    assert on_metadata == DATABASE
    assert compose["networks"]["metadata"] == {"internal": True}
    assert "cluster" not in compose["services"]["postgres"]["networks"]


def test_the_head_does_no_work_and_stages_ask_for_what_only_workers_have(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert {"--num-cpus=0", "--num-gpus=0"} <= set(services["ray-head"]["command"])
    assert '--resources={"stage": 8}' in services["ray-worker"]["command"]
    assert '"entrypoint_resources": {"stage": 1}' in services["airflow-setup"]["command"][-1]


def test_images_are_pinned(compose: dict[str, Any]) -> None:
    taken = [line.split()[1] for path in DOCKERFILES for line in path.read_text().splitlines() if line.startswith("FROM")]
    taken += [service["image"] for service in compose["services"].values() if "build" not in service]
    assert len(taken) == 4
    for image in taken:
        assert re.fullmatch(r"[a-z/]+:[\w.-]*\d+\.\d+[\w.-]*@sha256:[0-9a-f]{64}", image), image


def test_no_secret_is_written_down(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for variable, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD$|SECRET|TOKEN|_KEY", variable):
                assert re.fullmatch(r"\$\{[A-Z_0-9]+:(-|\?set it in \.env)\}", value), (name, variable)
    for line in (REPOSITORY / ".env.example").read_text().splitlines():
        if re.match(r"[A-Z_0-9]*(PASSWORD|SECRET|TOKEN|_KEY)", line):
            assert line.endswith("="), line


def test_images_are_built_anew_when_something_in_them_changes() -> None:
    copied = {
        word for path in DOCKERFILES for line in path.read_text().splitlines() if line.startswith("COPY") for word in line.split()[1:-1]
    }
    assert copied > {"bliss_ops", "dags", "pyproject.toml", "constraints.txt"}
    text = (REPOSITORY / ".github" / "workflows" / "images.yml").read_text()
    triggers = yaml.safe_load(text)[True]  # `on`, to YAML 1.1
    for event in ("push", "pull_request"):
        paths = {path.removesuffix("/**") for path in triggers[event]["paths"]}
        assert copied - paths == {"README.md", "LICENSE"}, "texts change no behaviour"
    for path in (REPOSITORY / "docker").glob("*.yml"):
        assert f"docker compose --file docker-compose.yml --file docker/{path.name} config" in text


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_do_not_run_as_root(path: Path) -> None:
    users = [line for line in path.read_text().splitlines() if line.startswith("USER")]
    assert users == ["USER 50000"]


def test_only_rays_image_has_torch_and_ray() -> None:
    extras = {path.stem: re.search(r'"\.\[(.*)\]"', path.read_text()) for path in DOCKERFILES}
    assert extras["airflow"] is not None
    assert extras["ray"] is not None
    assert set(extras["airflow"][1].split(",")) == {"airflow", "postgres", "explore"}
    assert set(extras["ray"][1].split(",")) == {"ray", "train", "evaluate"}


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    hadolint = shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    result = subprocess.run([hadolint, str(path)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("files", [["docker-compose.yml"], ["docker-compose.yml", "docker/gpu.yml"]], ids=["cpu", "gpu"])
def test_docker_compose_accepts_it(files: list[str], tmp_path: Path) -> None:
    if shutil.which("docker-compose") is None:
        pytest.skip("docker-compose is not installed")
    filled = tmp_path / "env"
    assert deployment.main(["fill", str(filled)]) == 0
    named = [argument for file in files for argument in ("--file", str(REPOSITORY / file))]
    command = ["docker-compose", "--env-file", str(filled), *named, "config"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    services = yaml.safe_load(result.stdout)["services"]
    assert services["airflow-scheduler"]["environment"]["BLISS_TRAINING_GPUS"] == ("0" if len(files) == 1 else "1")
    assert ("deploy" in services["ray-worker"]) == (len(files) == 2)


def test_docker_compose_refuses_a_missing_secret(tmp_path: Path) -> None:
    if shutil.which("docker-compose") is None:
        pytest.skip("docker-compose is not installed")
    command = ["docker-compose", "--env-file", str(REPOSITORY / ".env.example"), "--file", str(REPOSITORY / "docker-compose.yml"), "config"]
    environment = {name: value for name, value in os.environ.items() if name not in deployment.SECRETS}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode != 0
    assert "set it in .env" in result.stderr
