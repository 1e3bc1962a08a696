"""The compose file: readable by old and new compose, closed to the network, without secrets."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    return yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())


def test_it_has_every_part(compose: dict[str, Any]) -> None:
    assert {"postgres", "s3", "ray-head", "ray-worker", "airflow-init", "airflow-api-server", "airflow-scheduler"} <= set(
        compose["services"]
    )


def test_only_loopback_is_published(compose: dict[str, Any]) -> None:
    published = [port for service in compose["services"].values() for port in service.get("ports", ())]
    assert published
    assert all(port.startswith("127.0.0.1:") for port in published)


def test_every_server_has_a_health_check(compose: dict[str, Any]) -> None:
    assert [name for name, service in compose["services"].items() if "healthcheck" not in service] == ["airflow-init"]


def test_no_secret_is_written_down(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        for variable, value in service.get("environment", {}).items():
            if re.search(r"PASSWORD$|SECRET|TOKEN|_KEY", variable):
                assert re.fullmatch(r"\$\{[A-Z_0-9]+:\?set it in \.env\}", value), (name, variable)
    for line in (REPOSITORY / ".env.example").read_text().splitlines():
        if re.match(r"[A-Z_0-9]*(PASSWORD|SECRET|TOKEN|_KEY)", line):
            assert line.endswith("="), line


def test_the_example_names_every_variable_used() -> None:
    text = (REPOSITORY / "docker-compose.yml").read_text()
    example = (REPOSITORY / ".env.example").read_text()
    missing = {name for name in re.findall(r"\$\{([A-Z_0-9]+):\?", text) if f"\n{name}=" not in example}
    assert missing == set()


@pytest.mark.parametrize("name", ["airflow", "ray"])
def test_images_do_not_run_as_root(name: str) -> None:
    lines = (REPOSITORY / "docker" / f"{name}.Dockerfile").read_text().splitlines()
    users = [line for line in lines if line.startswith("USER")]
    assert users == ["USER 50000"]
    assert lines.index(users[0]) < next(i for i, line in enumerate(lines) if line.startswith("ENTRYPOINT"))
    assert (",train]" in "".join(line for line in lines if "pip install" in line)) == (name == "ray")


def test_docker_compose_accepts_it() -> None:
    if shutil.which("docker-compose") is None:
        pytest.skip("docker-compose is not installed")
    example = (REPOSITORY / ".env.example").read_text()
    secrets = dict.fromkeys(re.findall(r"^([A-Z_0-9]+)=$", example, flags=re.MULTILINE), "x")
    result = subprocess.run(
        ["docker-compose", "--file", str(REPOSITORY / "docker-compose.yml"), "config", "--quiet"],
        env=os.environ | secrets,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
