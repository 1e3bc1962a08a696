"""The manifests are YAML that says the same as the compose file; whether a cluster takes them was not tried."""

import re
from pathlib import Path
from typing import Any

import pytest

yaml = pytest.importorskip("yaml")

REPOSITORY = Path(__file__).parents[2]
FILES = REPOSITORY / "docker" / "kubernetes"


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
