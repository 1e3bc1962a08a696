"""A training job (warm-up, bilevel training, pretraining) over Ray Train: workers on any number of nodes, one GPU or else one CPU each.

The job keeps its own checkpoint in the lake, so Ray's checkpoints and reports are not used: when a worker or its node is lost, Ray Train
ends the group, starts another with as many workers as there is room for, and the job goes on from its checkpoint. Results do not
depend on the number of workers but for rounding, so a smaller group is as good as a late one. What a worker raises itself is final.
After the death of the driver itself the next one waits up to three minutes: so long Ray Train's coordinator holds the resources that the
dead one asked for.

The process group is made here and not by Ray Train's torch backend, whose rendezvous listens on every interface of its machine: this
one listens on the node's own address, which is the loopback interface for a local head.
"""

import logging
import os
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from bliss_ops.launching import PATIENCE, Job
from bliss_ops.ray import exporting
from bliss_ops.ray.shards import GPU_NODES, first_line

log = logging.getLogger(__name__)

MAX_RESTARTS = 5  # a job that ends its workers every time, such as one out of memory, is given up
SIGN_OF_LIFE_SECONDS = 600.0  # far below the silence after which the operator takes the job for frozen
RESIZE_SECONDS = 300.0  # how often a smaller group looks for room to grow: growing costs the steps since the last checkpoint


def launch_on_ray(job: Job, num_workers: int) -> None:
    """The `Launcher` of a cluster: run `job` in up to `num_workers` Ray Train workers, in this process when it is one.

    Args:
        job: picklable; restores its state by itself, for it may be started several times.
        num_workers: how many are wanted; a cluster with room for fewer runs fewer.

    Raises:
        ValueError, OSError: raised by a worker, with its own message; not tried again.
        RuntimeError: workers were lost more than MAX_RESTARTS times; the same command resumes from the last checkpoint.
    """
    if num_workers == 1:
        with exporting.exported():
            job()
        return
    import ray

    connected_here = not ray.is_initialized()
    if connected_here:
        ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), log_to_driver=True, logging_level=logging.WARNING)
    try:
        with tempfile.TemporaryDirectory(prefix="bliss-train-") as directory:
            _fit(job, num_workers, directory)
    finally:
        if connected_here:
            ray.shutdown()


def _fit(job: Job, num_workers: int, directory: str) -> None:
    import ray
    from ray.train import ControllerError, LoggingConfig, WorkerGroupError
    from ray.train.v2.api.config import FailureConfig, RunConfig, ScalingConfig  # not the older ones that type checkers see in ray.train
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    cluster: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    on_gpus = cluster.get("GPU", 0) >= 1 or os.environ.get(GPU_NODES) == "1"
    room = int(cluster.get("GPU" if on_gpus else "CPU", 0))
    log.info("%d training workers wanted, room for %d in this cluster (%s)", num_workers, room, "GPUs" if on_gpus else "CPUs")
    trainer = DataParallelTrainer(
        partial(_work, job),
        scaling_config=ScalingConfig(
            num_workers=(1, num_workers),
            use_gpu=on_gpus,
            resources_per_worker={"GPU": 1} if on_gpus else {"CPU": 1},
            elastic_resize_monitor_interval_s=RESIZE_SECONDS,
        ),
        run_config=RunConfig(  # type: ignore[arg-type]
            storage_path=directory,  # Ray Train's own notes; the default is the home directory
            failure_config=FailureConfig(max_failures=MAX_RESTARTS),
            logging_config=LoggingConfig(log_level="WARNING"),
            callbacks=[_what_workers_raise()],
        ),
    )
    try:
        with _signs_of_life(num_workers):
            trainer.fit()
    except ControllerError as error:
        if isinstance(error.controller_failure, ValueError | OSError):
            raise error.controller_failure from None
        raise
    except WorkerGroupError as error:
        raise RuntimeError(
            f"training workers were lost {MAX_RESTARTS + 1} times; is the memory enough? The same command goes on from the checkpoint. "
            f"{error}"
        ) from error


@contextmanager
def _signs_of_life(num_workers: int, every_seconds: float = SIGN_OF_LIFE_SECONDS) -> Iterator[None]:
    """A line now and then from this process, which may wait days for room and would look frozen. Workers that are frozen are not its
    concern: Ray Train ends one that has not answered for ten minutes, and the others do not wait for longer than PATIENCE."""
    ended = threading.Event()

    def say() -> None:
        while not ended.wait(every_seconds):
            log.info("up to %d training workers: waiting for room or at work", num_workers)

    thread = threading.Thread(target=say, name="signs of life", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _what_workers_raise() -> Any:
    """A callback that tells a lost worker, after which Ray Train starts the group again, from an error of the job, which ends it."""
    from ray.train import UserCallback

    class WhatWorkersRaise(UserCallback):  # in here, because its base class is Ray's
        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
            for _, error in sorted(worker_exceptions.items()):
                is_rays = type(error).__module__.partition(".")[0] == "ray"  # how Ray Train says that a worker is no more
                if not (is_rays or isinstance(error, RuntimeError)):  # as torch says that a peer is no more
                    raise error  # out of a callback: Ray Train does not try again
            lines = "; ".join(f"worker {rank}: {first_line(error)}" for rank, error in sorted(worker_exceptions.items()))
            logging.getLogger(__name__).warning("training goes on from the last checkpoint with new workers (%s)", lines)

    return WhatWorkersRaise()


def _work(job: Job) -> None:
    """One worker: joins the others, runs the job."""
    import ray.train
    import torch

    context = ray.train.get_context()
    rank, count = context.get_world_rank(), context.get_world_size()
    # Ray shows the output of every worker; the workers of a job say the same, so one of them speaks.
    level = logging.INFO if rank == 0 else logging.ERROR
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", force=True)
    if rank == 0:
        exporting.begin()
    if count == 1:
        job()
        return
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    torch.distributed.init_process_group(backend, store=_meeting_point(rank, count), rank=rank, world_size=count, timeout=PATIENCE)
    job()  # an error leaves the group as it is: the others wait, and are ended by Ray Train
    torch.distributed.destroy_process_group()


def _meeting_point(rank: int, count: int) -> Any:
    """The store all workers find each other in, which listens on the address of the first one's node and no other."""
    import ray.train.collective
    import ray.util
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    host: str = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    if host.startswith("127."):
        os.environ["GLOO_SOCKET_IFNAME"] = os.environ["NCCL_SOCKET_IFNAME"] = "lo"
    address, listening = None, None
    if rank == 0:
        listening = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
        address = host, listening.getsockname()[1]
    host, port = ray.train.collective.broadcast_from_rank_zero(address)
    descriptor = None if listening is None else listening.detach()  # the store closes it
    return TCPStore(host, port, count, is_master=rank == 0, wait_for_workers=False, master_listen_fd=descriptor)
