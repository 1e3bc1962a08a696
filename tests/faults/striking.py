"""Watches the cluster's processes for stages at work and strikes each stage once."""

import contextlib
import random
import re
import threading
import time
from dataclasses import dataclass
from urllib.error import URLError

import psutil

from bliss_ops.stack.airflow_api import AirflowError
from bliss_ops.stack.processes import MARKER
from tests.faults.blows import Driver, Fault, Scene

UNREACHABLE = (URLError, OSError, AirflowError, ValueError)  # the API server, or what it needs, is being struck
POLL_SECONDS = 0.2
POLL_SECONDS_OF_TASK = 0.02  # a task's process can be over in half a second
YOUNG_SECONDS = 5.0  # a process may still become another one
LATEST_SECONDS = 2.5  # of a stage's command; a blow comes at a random moment until then
LATEST_SECONDS_OF_TASK = 0.2  # of a task's process that only submits, or only concludes, or does a light stage
COMMAND = re.compile(r"/bliss ([a-z][a-z-]+)")


@dataclass
class Blow:
    """One struck stage."""

    stage: str
    at: float  # Unix time
    hit: str  # what; empty: there was nothing of the kind
    was_running: bool  # whether the stage's command still ran


class Striker(threading.Thread):
    """One row's blows: a stage is struck when its command is first seen, after a moment that the seed decides."""

    def __init__(self, fault: Fault, scene: Scene, jobs: set[str], light: set[str], seed: int) -> None:
        super().__init__(daemon=True)
        self.blows: list[Blow] = []
        self._fault, self._scene, self._left = fault, scene, jobs | light if fault.of_tasks else set(jobs)
        self._random = random.Random(f"{seed} {fault.name}")  # noqa: S311 - a plan, not a secret
        self._ended = threading.Event()
        self._seen: set[tuple[int, float]] = set()
        self._look, self._pause = (self._tasks, POLL_SECONDS_OF_TASK) if fault.of_tasks else (self._drivers, POLL_SECONDS)
        self._spared = set(light)  # one process does all of it
        self._missed: set[str] = set()  # stages one of whose processes had ended before its blow

    def run(self) -> None:
        while self._left and not self._ended.wait(self._pause):
            for driver in self._look():
                if driver.stage in self._left:
                    self._left.discard(driver.stage)
                    self._strike(driver)
                    if not self._fault.of_tasks:
                        break  # what else was found may have ended with it

    def end(self) -> set[str]:
        """No more blows; returns the stages that were not struck."""
        self._ended.set()
        self.join()
        return self._left

    def _strike(self, driver: Driver) -> None:
        latest = LATEST_SECONDS_OF_TASK if self._fault.of_tasks else LATEST_SECONDS
        self._ended.wait(self._random.uniform(0.0, latest) if driver.stage not in self._missed else 0.0)
        was_running = driver.process.is_running()
        at = time.time()
        try:
            hit = self._fault.strike(self._scene, driver)
        except psutil.NoSuchProcess:
            hit = ""
            if self._fault.of_tasks:  # too late for this process: the stage's next one is struck
                self._missed.add(driver.stage)
                self._left.add(driver.stage)
                return
        self.blows.append(Blow(driver.stage, round(at, 1), hit, was_running))

    def _tasks(self) -> list[Driver]:
        """Processes of stages' tasks that have not been looked at. Of half of the stages the first, which submits the job, is spared."""
        found = []
        for process in self._scene.task_processes():
            with contextlib.suppress(psutil.Error, *UNREACHABLE):
                key = (process.pid, process.create_time())
                words = " ".join(process.cmdline()).split()  # none: it has just ended
                if words and key not in self._seen and (stage := self._stage_of(words[-1])):
                    self._seen.add(key)
                    if stage in self._spared or self._random.random() < 0.5:
                        found.append(Driver(stage, process))
                    self._spared.add(stage)
        return found

    def _stage_of(self, task_instance: str) -> str:
        """The command that a task is for; empty when Airflow does not know it (yet)."""
        newest = self._scene.cluster.api.call("GET", "/api/v2/dags/~/dagRuns/~/taskInstances?limit=50&order_by=-start_date")
        for item in newest["task_instances"]:
            if item["id"] == task_instance:
                is_rescored = (item["dag_id"], item["task_id"]) == ("bliss_rescore", "load")
                return "load-scores" if is_rescored else str(item["task_id"]).replace("_", "-")
        return ""

    def _drivers(self) -> list[Driver]:
        """Stage commands of this cluster that have not been looked at, oldest first."""
        found = []
        for process in psutil.process_iter():
            try:
                key = (process.pid, process.create_time())
                if key in self._seen:
                    continue
                words = " ".join(process.cmdline())
                match = None if words.startswith("/bin/sh") else COMMAND.search(words)
                if match is None:
                    if time.time() - key[1] > YOUNG_SECONDS:
                        self._seen.add(key)
                elif self._scene.cluster.marker in process.environ().get(MARKER, ""):
                    self._seen.add(key)
                    found.append((key[1], Driver(match[1], process)))
            except psutil.Error:
                continue
        return [driver for _, driver in sorted(found, key=lambda each: each[0])]
