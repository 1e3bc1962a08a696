"""Follows every DAG run: what turns red is looked into, written down and cleared; what stands still is written down too.

A DAG run may be red because of the kills alone: a task that was hit as often as it has tries. For each failed task the kills during its
tries are counted; fewer than tries, and the red one is a finding of the soak.
"""

import threading
import time
from datetime import datetime
from typing import Any

from tests.soak import timeline as timelines
from tests.soak.patient import PatientApi
from tests.soak.timeline import Timeline

POLL_SECONDS = 5.0
# The longest stage here takes half a minute. A dead process is noticed after 60 s, a dead scheduler after 45 s, and a try may be hit twice.
STUCK_SECONDS = 300.0
BEFORE_SECONDS, AFTER_SECONDS = 60.0, 15.0  # a kill before a try may be why it begins badly, and its end is noted late


def follow(api: PatientApi, timeline: Timeline, stop: threading.Event) -> None:
    """Until `stop`: note every change of state, clear what is red, note what is stuck."""
    states: dict[tuple[str, str], str] = {}
    stuck: set[tuple[str, int]] = set()
    while not stop.wait(POLL_SECONDS):
        for run in api.dag_runs():
            key = run["dag_id"], run["dag_run_id"]
            if states.get(key) != run["state"]:
                states[key] = run["state"]
                timeline.write("dag run", dag=run["dag_id"], run=run["dag_run_id"], state=run["state"])
                if run["state"] == "failed":
                    look_into(api, run, timeline)
                    api.clear(run)
                    states[key] = "cleared"
        note_stuck(api, timeline, stuck)


def look_into(api: PatientApi, run: dict[str, Any], timeline: Timeline) -> None:
    """Why a DAG run is red: of each failed task, its tries, their last lines, and the kills that fell into them."""
    kills = timelines.read(timeline.path, "kill")
    for task in api.tasks_of(run):
        if task["state"] != "failed":
            continue
        tries = [each for each in api.tries(task) if each["start_date"]]
        found = kills_during(kills, tries)
        lines = [api.last_lines(task, each["try_number"]) for each in tries]
        facts = {
            "dag": run["dag_id"],
            "run": run["dag_run_id"],
            "task": task["task_id"],
            "map_index": task["map_index"],
            "tries": [[each["try_number"], each["state"], each["start_date"], each["end_date"]] for each in tries],
            "kills": found,
            "explained": len(found) >= sum(each["state"] != "success" for each in tries[-3:]),
        }
        timeline.write("red", **facts, lines=lines)


def kills_during(kills: list[dict[str, Any]], tries: list[dict[str, Any]]) -> list[str]:
    """The kills from a little before the first of the last three tries to a little after the last one's end."""
    if not tries:
        return []
    begun, ended = _time(tries[-3:][0]["start_date"]) - BEFORE_SECONDS, _time(tries[-1]["end_date"]) + AFTER_SECONDS
    return [f"{kill['victim']} at {kill['seconds']:.0f}s" for kill in kills if begun <= _time(kill["at"]) <= ended]


def note_stuck(api: PatientApi, timeline: Timeline, stuck: set[tuple[str, int]]) -> None:
    """Task instances in one state for longer than the longest that anything here may take."""
    for task in api.active_tasks():
        since = task.get("start_date") if task["state"] == "running" else task.get("queued_when") or task.get("scheduled_when")
        key = task["id"], task["try_number"]
        if since and time.time() - _time(since) > STUCK_SECONDS and key not in stuck:
            stuck.add(key)
            timeline.write("stuck", dag=task["dag_id"], run=task["dag_run_id"], task=task["task_id"], state=task["state"], since=since)


def wait_until_quiet(api: PatientApi, timeline: Timeline, seconds: float) -> bool:
    """Wait until no DAG run is left that has not ended, twice in a row (an asset may start another); False when time is over."""
    deadline = time.monotonic() + seconds
    num_quiet = 0
    while num_quiet < 2:
        unfinished = [run for run in api.dag_runs() if run["state"] != "success"]
        num_quiet = 0 if unfinished else num_quiet + 1
        if time.monotonic() > deadline:
            timeline.write("not quiet", runs=[f"{run['dag_run_id']}: {run['state']}" for run in unfinished])
            return False
        time.sleep(POLL_SECONDS + 1.0)
    return True


def _time(text: str | None) -> float:
    return datetime.fromisoformat(text).timestamp() if text else time.time()
