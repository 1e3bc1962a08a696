"""A cluster of two nodes, one of which is lost in the middle of a shard. A program of its own: no process has two clusters."""

import sys
import threading
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from bliss_ops import pipeline
from bliss_ops.lake import Lake
from tests.bilevel.drivers import wait_until
from tests.ray import scored

if __name__ == "__main__":
    root, watched = sys.argv[1], Path(sys.argv[2])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    lost = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    ray.init(address=cluster.address)
    for shard in scored.SHARDS:
        (watched / f"pause-{shard}").touch()
    work = pipeline.Work(mapper=scored.on_ray(watched))
    driver = threading.Thread(target=pipeline.score, args=(Lake.open(root).run(scored.NAME), 1, work))
    driver.start()
    wait_until(lambda: len(list(watched.glob("paused-*"))) == 2)  # each node has an actor in the middle of its first shard
    cluster.remove_node(lost, allow_graceful=False)
    for pause in watched.glob("pause-*"):
        pause.unlink()
    driver.join()
    wait_until(lambda: [node["Alive"] for node in ray.nodes()].count(True) == 1)
    ray.shutdown()
    cluster.shutdown()
