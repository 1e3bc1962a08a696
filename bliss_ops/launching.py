"""One training job in several processes: what a launcher is, and the one for this machine.

A job is a function without arguments that finds its place among the workers by itself (`Workers.current`), so it is written once
for any number of them. Here the workers are processes of this machine that meet over the loopback interface; a cluster has its own
launcher (bliss_ops/ray/training.py).
"""

import os
import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

Job = Callable[[], None]
Launcher = Callable[[Job, int], None]

# How long workers wait for each other: the first one may be writing tens of GB to an object store. A lost one is not found out by this.
PATIENCE = timedelta(hours=2)
MESSAGE = "error.txt"  # what a worker's ValueError said, so that it comes out as that ValueError


def launch_here(job: Job, num_workers: int) -> None:
    """Run `job` in this process, or in `num_workers` processes started for it.

    Args:
        job: picklable when there are several workers.
        num_workers: 1 starts nothing.

    Raises:
        ValueError: raised by a worker, with its own message.
        RuntimeError: a worker ended otherwise; the same command resumes from the last checkpoint.
    """
    if num_workers == 1:
        job()
        return
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException, spawn

    with tempfile.TemporaryDirectory(prefix="bliss-workers-") as meeting:
        try:
            spawn(_work, (job, num_workers, meeting), nprocs=num_workers)  # type: ignore[no-untyped-call]
        except (ProcessRaisedException, ProcessExitedException) as error:
            said = Path(meeting) / MESSAGE
            if said.exists():
                raise ValueError(said.read_text()) from None
            raise RuntimeError(f"a training worker ended ({error}); the same command goes on from the last checkpoint") from error


def _work(rank: int, job: Job, num_workers: int, meeting: str) -> None:
    import logging
    import signal

    import torch
    from torch.multiprocessing import _prctl_pr_set_pdeathsig  # type: ignore[attr-defined]

    # torch asks for SIGINT when the driver dies, and a worker has been seen to outlive that; files are safe from SIGKILL anyway.
    _prctl_pr_set_pdeathsig(signal.SIGKILL)
    # The workers of a job say the same, so one of them speaks.
    level = logging.INFO if rank == 0 else logging.ERROR
    logging.basicConfig(level=level, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    num_gpus = torch.cuda.device_count()
    if num_gpus:
        torch.cuda.set_device(rank % num_gpus)
    # NCCL wants a GPU for each worker; gloo takes CPU tensors, where compute.device says so, and GPUs that are shared.
    backend = "cpu:gloo,cuda:nccl" if num_gpus >= num_workers else "gloo"
    torch.distributed.init_process_group(
        backend, init_method=f"file://{meeting}/store", rank=rank, world_size=num_workers, timeout=PATIENCE
    )
    try:
        job()
    except ValueError as error:
        (Path(meeting) / MESSAGE).write_text(str(error))
        raise
    torch.distributed.destroy_process_group()  # not after an error: it would wait for workers that wait for this one
