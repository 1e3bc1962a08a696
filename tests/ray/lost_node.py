"""A head that does no work and two nodes, one of which is lost in the middle of a stage.

A program of its own (`python -m tests.ray.lost_node STAGE ROOT WATCHED`), for no process has two clusters. Every worker says by a file in
WATCHED that it is in the middle of its work, and waits there until the node is gone.
"""

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import Cluster

from bliss_ops import pipeline
from bliss_ops.lake import Lake
from bliss_ops.ray.shards import map_on_ray
from bliss_ops.ray.training import launch_on_ray
from bliss_ops.sharding import ShardRecord, Worker
from bliss_ops.training.metrics import StepMetrics
from bliss_ops.training.workers import Workers
from tests.bilevel import drivers, jobs
from tests.bilevel.drivers import wait_until
from tests.ray import scored
from tests.ray.watched import pause, paused
from tests.rescoring.lakes import RUN
from tests.training import jobs as training_jobs

CORPUS = "many"
STEP = 5  # past the checkpoint of step 4


def on_ray(watched: Path) -> Any:
    """A mapper whose actors pause when the files of a shard are written and nobody knows of them yet."""

    def mapper(make_worker: Callable[[], Worker], shards: Sequence[int], **settings: Any) -> Iterator[ShardRecord]:
        from tests.ray import lost_node

        return map_on_ray(partial(lost_node.pausing, make_worker, str(watched)), shards, **settings)

    return mapper


def pausing(make_worker: Callable[[], Worker], watched: str) -> Worker:
    worker = make_worker()

    def work(shard: int) -> ShardRecord:
        record = worker(shard)
        pause(Path(watched), shard)
        return record

    return work


def train(job: Callable[[], None], watched: str) -> None:
    """A training job whose workers pause after a step."""
    line = StepMetrics.line

    def pausing_line(metrics: StepMetrics, step: int, **values: float) -> None:
        line(metrics, step, **values)
        if step == STEP:
            pause(Path(watched), Workers.current().rank)

    StepMetrics.line = pausing_line  # type: ignore[method-assign]
    try:
        job()
    finally:
        StepMetrics.line = line  # type: ignore[method-assign]


def stage(name: str, root: str, watched: Path) -> None:
    from tests.ray import lost_node

    work = pipeline.Work(mapper=on_ray(watched))
    lake = Lake.open(root)
    match name:
        case "score":
            pipeline.score(lake.run(scored.NAME), 1, work)
        case "rescore":
            pipeline.rescore(lake.run(RUN), 1, lake.corpus(CORPUS), work)
        case "extract":
            pipeline.extract(lake.corpus(CORPUS), work)
        case "pack":
            pipeline.pack(lake.corpus(CORPUS), work)
        case "fit":
            job = partial(jobs.train, f"{root}/job", drivers.SETTINGS)
            launch_on_ray(partial(lost_node.train, job, str(watched)), 2)
        case "pretrain":
            launch_on_ray(partial(lost_node.train, partial(training_jobs.train, root, 6), str(watched)), 2)


if __name__ == "__main__":
    _, name, root, directory = sys.argv
    watched = Path(directory)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    ray.init(address=cluster.address)
    raised: list[BaseException] = []

    def drive() -> None:
        try:
            stage(name, root, watched)
        except BaseException as error:
            raised.append(error)
            raise

    driver = threading.Thread(target=drive)
    driver.start()
    wait_until(lambda: len(paused(watched)) == 2 or not driver.is_alive())  # one on each node
    assert driver.is_alive(), raised
    cluster.remove_node(nodes[0], allow_graceful=False)
    (watched / "lost").touch()
    driver.join()
    wait_until(lambda: [node["Alive"] for node in ray.nodes()].count(True) == 2)
    ray.shutdown()
    cluster.shutdown()
    sys.exit(bool(raised))
