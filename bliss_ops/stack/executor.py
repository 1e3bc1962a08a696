"""Notices the one death that Airflow's LocalExecutor does not outlive: that of an idle worker.

Its workers take tasks from one pipe, and the one that waits for the next task holds the pipe's lock. Killed there, it takes the lock
with it: the others wait for ever, also those that are started in its place, and every task stays queued. (Tried with four readers of one
`multiprocessing.SimpleQueue`: once the right one is killed, nobody takes the next item.) A worker that has a task holds no lock; its
death costs that task a try. Which of the idle ones waits at the pipe cannot be seen from outside.
"""

import contextlib

from bliss_ops.stack.processes import Service

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
