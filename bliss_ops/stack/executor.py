"""Notices the one death that Airflow's LocalExecutor does not outlive: that of an idle worker.

Its workers take tasks from one pipe, and the one that waits for the next task holds the pipe's lock. Killed there, it takes the lock
with it: the others wait for ever, also those that are started in its place, and every task stays queued. (Tried with four readers of one
`multiprocessing.SimpleQueue`: once the right one is killed, nobody takes the next item.) A worker that has a task holds no lock; its
death costs that task a try. Which of the idle ones waits at the pipe cannot be seen from outside.

`bliss up`'s supervisor looks for it. In a container, `python -m bliss_ops.stack.executor airflow scheduler` runs the scheduler and ends
with it when it has happened, so that the restart policy starts both again.
"""

import contextlib
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from bliss_ops.stack.processes import Service, began

log = logging.getLogger(__name__)

LOOK_SECONDS = 1.0
IDLE = "airflow worker -- LocalExecutor: <idle>"


class IdleWorkers:
    """The idle workers of a scheduler, from one look to the next."""

    def __init__(self) -> None:
        self._scheduler = 0
        self._idle: frozenset[int] = frozenset()

    def one_has_died(self, scheduler: Service) -> bool:
        """Whether a worker that was idle at the last look is no longer there, under the same scheduler."""
        titles = _titles_of_children(scheduler.pid)
        died = self._scheduler == scheduler.pid and not self._idle <= titles.keys()
        self._scheduler = scheduler.pid
        self._idle = frozenset(pid for pid, title in titles.items() if title == IDLE)
        return died


def _titles_of_children(pid: int) -> dict[int, str]:
    """Living children with their titles; a zombie has none and is left out."""
    import psutil

    titles = {}
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(pid).children():
            with contextlib.suppress(psutil.Error):
                if child.status() != psutil.STATUS_ZOMBIE and (words := child.cmdline()):
                    titles[child.pid] = words[0].strip()
    return titles


def run(command: Sequence[str]) -> int:
    """Run a scheduler until it ends, or is ended because an idle worker of its executor has died; returns its exit code."""
    scheduler = subprocess.Popen(list(command))
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: scheduler.send_signal(received))
    service, workers = Service("scheduler", scheduler.pid, began(scheduler.pid)), IdleWorkers()
    while scheduler.poll() is None:
        if workers.one_has_died(service):
            log.error(
                "an idle worker of the executor has died, no task would start any more: the scheduler (pid %d) is ended", scheduler.pid
            )
            scheduler.kill()
        time.sleep(LOOK_SECONDS)
    return scheduler.returncode


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S", stream=sys.stdout)
    sys.exit(run(sys.argv[1:]))
