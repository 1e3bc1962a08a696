"""The manifests are YAML that says the same as the compose file; whether a cluster takes them was not tried."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from bliss_ops.stack import deployment
from tests.stack import compose_file

REPOSITORY = Path(__file__).parents[2]
FILES = REPOSITORY / "docker" / "kubernetes"
FILLED = compose_file.dotenv(deployment.fill((REPOSITORY / ".env.example").read_text()))
MADE_BY_THE_CHART = {
    f"AIRFLOW__{name}"
    for name in (
        "CORE__EXECUTOR", "CORE__FERNET_KEY", "CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE", "CORE__EXECUTION_API_SERVER_URL",
        "DATABASE__SQL_ALCHEMY_CONN", "API__SECRET_KEY", "API__BASE_URL", "API_AUTH__JWT_SECRET", "LOGGING__BASE_LOG_FOLDER",
    )
}  # fmt: skip


@pytest.fixture(scope="module")
def ray() -> dict[str, Any]:
    return {document["kind"]: document for document in yaml.safe_load_all((FILES / "raycluster.yaml").read_text())}


@pytest.fixture(scope="module")
def airflow() -> dict[str, Any]:
    return yaml.safe_load((FILES / "airflow-values.yaml").read_text())


def pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    return [group["template"]["spec"] for group in groups]


def test_the_head_does_no_work_and_workers_have_what_commands_claim(ray: dict[str, Any], airflow: dict[str, Any]) -> None:
    spec = ray["RayCluster"]["spec"]
    head = spec["headGroupSpec"]["rayStartParams"]
    assert (head["num-cpus"], head["num-gpus"]) == ("0", "0")
    assert "resources" not in head
    assert [yaml.safe_load(yaml.safe_load(group["rayStartParams"]["resources"])) for group in spec["workerGroupSpecs"]] == [
        {"stage": 8}
    ] * 2
    variables = {variable["name"]: variable.get("value", "") for variable in airflow["env"]}
    connection = yaml.safe_load(variables["AIRFLOW_CONN_RAY_DEFAULT"])
    assert connection["extra"] == {"entrypoint_resources": {"stage": 1}}
    assert connection["host"] == f"{ray['RayCluster']['metadata']['name']}-head-svc"


def test_versions_are_those_that_are_installed(ray: dict[str, Any], airflow: dict[str, Any]) -> None:
    constraints = (REPOSITORY / "constraints.txt").read_text()
    assert f"\nray=={ray['RayCluster']['spec']['rayVersion']}" in constraints
    assert f"\napache-airflow=={airflow['airflowVersion']}" in constraints


def test_the_images_are_those_of_the_compose_file(ray: dict[str, Any], airflow: dict[str, Any]) -> None:
    compose = yaml.safe_load((REPOSITORY / "docker-compose.yml").read_text())["services"]
    gpu = yaml.safe_load((REPOSITORY / "docker" / "gpu.yml").read_text())["services"]
    ours = {service["image"] for service in [*compose.values(), gpu["ray-worker"]] if "build" in service}
    used = {container["image"].partition(":")[0] for pod in pods(ray["RayCluster"]) for container in pod["containers"]}
    assert used | {airflow["images"]["airflow"]["repository"]} == ours - {"bliss-ops-s3"}


def test_airflows_settings_are_those_of_the_compose_file(airflow: dict[str, Any]) -> None:
    """The rest the chart makes itself, from names of secrets, its own values, and what it installs."""
    variables = compose_file.read(FILLED)["airflow-scheduler"].environment
    ours = {name: value for name, value in variables.items() if name.startswith("AIRFLOW__")}
    theirs = {f"AIRFLOW__{section}__{key}".upper(): value for section, keys in airflow["config"].items() for key, value in keys.items()}
    assert theirs == {name: value for name, value in ours.items() if name not in MADE_BY_THE_CHART}
    assert ours.keys() >= MADE_BY_THE_CHART
    assert ours["AIRFLOW__CORE__EXECUTOR"] == airflow["executor"]
    claims = {variable["name"]: variable["value"] for variable in airflow["env"] if variable["name"].startswith("BLISS_")}
    assert claims == {name: variables[name] for name in ("BLISS_TRAINING_CPUS", "BLISS_TRAINING_GPUS")}


def test_the_secrets_that_are_made_are_those_that_are_read() -> None:
    text = (REPOSITORY / "docs" / "kubernetes.md").read_text()
    made = set(re.findall(r"kubectl create secret generic (\S+) --from-env-file=(\S+)", text))
    assert made == {("bliss", "bliss.env"), ("bliss-airflow", "bliss-airflow.env")}
    for name, file in made:
        assert f"| `{file}` |" in text
        assert any(re.search(rf"(secretRef|secretKeyRef|SecretName).*\b{name}\b", path.read_text()) for path in FILES.glob("*.yaml"))
    assert "kubectl create secret generic bliss --from-env-file=bliss.env" in (FILES / "raycluster.yaml").read_text()


def test_pods_may_do_little(ray: dict[str, Any], airflow: dict[str, Any]) -> None:
    for pod in pods(ray["RayCluster"]):
        assert pod["securityContext"]["runAsUser"] == 50000
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]
    assert airflow["securityContexts"]["pod"]["runAsNonRoot"] is True


def test_nothing_is_published_and_ray_asks_for_its_token(ray: dict[str, Any]) -> None:
    spec = ray["RayCluster"]["spec"]
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    tokens = [container["env"] for pod in pods(ray["RayCluster"]) for container in pod["containers"]] + [spec["autoscalerOptions"]["env"]]
    for variables in tokens:
        assert {"name": "RAY_AUTH_MODE", "value": "token"} in variables
        assert any(variable.get("valueFrom", {}).get("secretKeyRef", {}).get("key") == "RAY_AUTH_TOKEN" for variable in variables)
    assert ray["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"] == {"ray.io/cluster": ray["RayCluster"]["metadata"]["name"]}


@pytest.mark.parametrize("path", sorted(FILES.glob("*.yaml")), ids=lambda path: path.name)
def test_no_secret_is_written_down(path: Path) -> None:
    for line in path.read_text().splitlines():
        assert not re.search(r"(PASSWORD|SECRET|TOKEN|KEY)[A-Z_]*: *[\"']?\w", line), line
