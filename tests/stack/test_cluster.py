"""The whole path through what the compose file wires: Postgres, Swift, Ray's head and two nodes, Airflow's four parts.

A quarter of an hour. Everything is asked for through Airflow's REST API; the lake is on S3; tasks wait for their Ray jobs in the
triggerer. In the end every artifact must be, byte for byte, what one process writes into a directory from the same seed.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bliss_ops.cli import main
from bliss_ops.lake import Lake
from bliss_ops.stack.follow import follow
from tests.artifacts import manifests, stored_scores
from tests.stack import cluster as cluster_module
from tests.stack.cluster import CONTAINER_USER, Cluster

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(bool(cluster_module.missing()), reason=cluster_module.missing() or "everything is installed"),
]

RUN = "smoke-bliss-s0"
METHODS = ["random", "bliss"]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    """The same work by one process on a local directory: no Airflow, no Ray, no object store."""
    root = str(tmp_path_factory.mktemp("alone"))
    assert main(["run", "smoke", "--methods", "bliss", "--lake", root]) == 0
    assert main(["rescore", RUN, "--round", "1", "--corpus", "smoke", "--lake", root]) == 0
    assert main(["compare", "--recipe", "smoke", "--methods", ",".join(METHODS), "--seeds", "0", "--lake", root]) == 0
    assert main(["store", "rebuild", "--lake", root]) == 0  # loads all of it
    return Lake.open(root)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with Cluster() as running:
        yield running


@pytest.fixture(scope="module")
def starts(cluster: Cluster) -> dict[str, int]:
    """How often each container was started until all were healthy: a node whose agent is too slow, on a busy machine, is begun anew."""
    return {name: cluster.num_starts(name) for name in cluster.names}


@pytest.fixture(scope="module")
def lake(cluster: Cluster) -> Iterator[Lake]:
    """The cluster's lake, as the test reads it: through the same environment variables as everybody."""
    import s3fs

    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.environment.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        yield Lake.open(cluster.lake)
    s3fs.S3FileSystem.clear_instance_cache()


def trigger(cluster: Cluster, dag_id: str, run_id: str, conf: dict[str, Any]) -> bool:
    """Trigger a DAG and follow it, and the rounds it triggers, to the end; whether all were green."""
    api = cluster.api
    return follow(api, [(dag_id, api.trigger(dag_id, run_id, conf))])


def test_it_is_wired_as_the_compose_file_says(cluster: Cluster, starts: dict[str, int]) -> None:
    nodes = sorted((node["raylet"]["resourcesTotal"] for node in cluster.ray_nodes()), key=lambda node: node.get("CPU", 0))
    assert [(node.get("CPU", 0), node.get("stage", 0)) for node in nodes] == [(0, 0), (1, 8), (1, 8)]
    assert cluster.names == [
        "postgres",
        "s3",
        "ray-head",
        "ray-worker-1",
        "ray-worker-2",
        "airflow-api-server",
        "airflow-scheduler",
        "airflow-dag-processor",
        "airflow-triggerer",
    ]
    for name in cluster.names:
        if name != "s3":  # its check asks for a page that only the image's server has
            assert cluster.run_healthcheck(name).returncode == 0, name


def test_a_frozen_worker_is_not_healthy(cluster: Cluster) -> None:
    """For less time than Ray needs to give it up, a minute."""
    cluster.pause("ray-worker-1")
    try:
        assert cluster.run_healthcheck("ray-worker-1").returncode != 0
        assert cluster.run_healthcheck("ray-worker-2").returncode == 0
    finally:
        cluster.resume("ray-worker-1")
    cluster.wait_until_healthy()
    assert cluster.run_healthcheck("ray-worker-1").returncode == 0


def test_it_listens_on_loopback_only(cluster: Cluster) -> None:
    listening = {name: cluster.listening(name) for name in cluster.names}
    assert all(listening[name] for name in ("postgres", "s3", "ray-head", "ray-worker-1", "ray-worker-2", "airflow-api-server"))
    assert set().union(*listening.values()) <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


@pytest.mark.skipif(os.geteuid() != 0, reason="it takes root to arrange what a container may not do")
def test_our_containers_may_do_little(cluster: Cluster) -> None:
    """As container.sh says it: the servers and what they start have no other user, no capability, and nowhere to write but their mounts."""
    for name in cluster.names:
        if name in ("postgres", "s3"):  # not our images
            continue
        for pid in cluster.pids(name):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it ended meanwhile
                status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line)
                roots = [line.split() for line in Path(f"/proc/{pid}/mountinfo").read_text().splitlines() if line.split()[4] == "/"]
                assert set(status["Uid"].split()) == {str(CONTAINER_USER)}, name
                assert {int(status[kind], 16) for kind in ("CapEff", "CapPrm", "CapBnd")} == {0}, name
                assert status["NoNewPrivs"].strip() == "1", name
                assert roots[-1][5].split(",")[0] == "ro", name


def test_ingest_two_rounds_rescore_and_compare_are_green(cluster: Cluster, alone: Lake) -> None:
    assert trigger(cluster, "bliss_ingest", "ingest-smoke", {"recipe": "smoke"})
    conf = {"recipe": "smoke", "method": "bliss", "seed": 0, "round": 1, "name": RUN}
    assert trigger(cluster, "bliss_round", f"{RUN}-round-01", conf)
    assert cluster.api.dag_run_state("bliss_round", f"{RUN}-round-02") == "success"
    assert trigger(cluster, "bliss_rescore", "rescore-smoke", {"corpus": "smoke", "runs": [RUN], "round": 1})
    assert trigger(cluster, "bliss_compare", "compare-smoke", {"recipe": "smoke", "methods": METHODS, "seeds": [0]})


def test_tasks_waited_in_the_triggerer(cluster: Cluster) -> None:
    """Needs the test before: what a trigger logs has a file of its own beside its task's."""
    logs = cluster.directory / "volumes" / "airflow-logs"
    waited = {path.parent.name.removeprefix("task_id=") for path in logs.glob("dag_id=bliss_round/*/task_id=*/*.trigger.*.log")}
    assert waited >= {"warm_up", "fit", "fidelity", "load", "select", "pretrain", "evaluate", "report"}


@pytest.mark.parametrize("folder", ["corpora", "validation", "runs", "scores"])
def test_every_artifact_is_what_one_process_makes(lake: Lake, alone: Lake, folder: str) -> None:
    """Needs the run of the test before. Scores, selections, ids, weights: all of them are files of these artifacts."""
    here, there = manifests(alone, folder), manifests(lake, folder)
    assert here.keys() == there.keys()
    assert here
    for address, manifest in here.items():
        assert there[address].fingerprint == manifest.fingerprint, address
        assert there[address].outputs == manifest.outputs, address


def test_the_score_store_has_the_same_ids_and_scores(lake: Lake, alone: Lake, tmp_path: Path) -> None:
    """Needs the run of the test before."""
    here, there = stored_scores(alone, tmp_path / "alone"), stored_scores(lake, tmp_path / "cluster")
    assert len(here) > 1000
    assert here == there


def test_no_ray_job_and_no_container_was_lost_on_the_way(cluster: Cluster, starts: dict[str, int]) -> None:
    """Needs the run of the tests before."""
    from ray.job_submission import JobSubmissionClient

    with pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.environment.items():
            patch.setenv(name, value)
        jobs = JobSubmissionClient(cluster.ray_address).list_jobs()
    assert {job.status.value for job in jobs} == {"SUCCEEDED"}
    assert {name: cluster.num_starts(name) for name in cluster.names} == starts


def test_nothing_is_left_below_the_directory_or_running() -> None:
    """A cluster of its own, ended at once, and one whose start fails."""
    before = set(Path(os.environ.get("TMPDIR", "/tmp")).glob("bc-*"))  # noqa: S108
    with pytest.raises(RuntimeError, match="the job check-settings failed"), Cluster({"RAY_AUTH_TOKEN": "changeme"}):
        pass
    assert set(Path(os.environ.get("TMPDIR", "/tmp")).glob("bc-*")) == before  # noqa: S108
