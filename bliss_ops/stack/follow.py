"""Watch DAG runs until they end: a live table on a terminal, one line per change elsewhere.

Rounds follow each other: when there is a DAG run of the next round, that one is followed too. The first failing
task of each DAG run is shown with the end of its log.
"""

import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TextIO
from urllib.error import URLError

from bliss_ops.stack.airflow_api import FINISHED, NOT_FOUND, AirflowApi, AirflowError, TaskInstance

if TYPE_CHECKING:
    from rich.table import Table

POLL_SECONDS = 1.5  # each poll costs Airflow's one API server about 50 ms per DAG run
LOG_POLL_SECONDS = 3.0
UNREACHABLE_SECONDS = 60.0
NUM_LOG_LINES = 30
STYLES = {"success": "green", "failed": "bold red", "running": "cyan", "up_for_retry": "yellow", "skipped": "dim", "upstream_failed": "red"}
ACTIVE = frozenset({"running", "failed", "up_for_retry", "queued"})
MANY_TASKS = 30  # more do not fit on a terminal
QUIET = frozenset({"none", "scheduled", "queued", "up_for_reschedule"})  # states that are not worth a line


@dataclass
class DagRun:
    """One followed DAG run and what is known of it."""

    dag_id: str
    run_id: str
    state: str = "queued"
    tasks: list[TaskInstance] = field(default_factory=list)
    last_lines: dict[str, str] = field(default_factory=dict)  # task label -> last line of its log
    log_read_at: float = 0.0


def follow(api: AirflowApi, dag_runs: Sequence[tuple[str, str]], *, output: TextIO | None = None) -> bool:
    """Watch `dag_runs` (DAG id, run id) and the rounds they trigger until all have ended; True when all are green.

    Raises:
        RuntimeError: Airflow does not answer for a minute.
    """
    output = output or sys.stdout
    runs = [DagRun(*dag_run) for dag_run in dag_runs]
    seen: dict[tuple[str, str], str] = {}
    begun = last_answer = time.monotonic()
    with _display(output) as show:
        while any(run.state not in FINISHED for run in runs):
            try:
                for run in [run for run in runs if run.state not in FINISHED]:
                    _refresh(api, run, with_logs=output.isatty())
                    if (following := _next_round(api, run)) is not None:
                        runs.append(following)
                last_answer = time.monotonic()
            except (URLError, TimeoutError, ConnectionError) as error:
                if time.monotonic() - last_answer > UNREACHABLE_SECONDS:
                    raise RuntimeError(f"Airflow at {api.url} does not answer any more: {error}") from error
            show(runs, _changes(runs, seen, time.monotonic() - begun))
            time.sleep(POLL_SECONDS)
    for run in runs:
        if run.state == "failed":
            output.write(_failure(api, run))
    return all(run.state == "success" for run in runs)


def _refresh(api: AirflowApi, run: DagRun, *, with_logs: bool) -> None:
    state = api.dag_run_state(run.dag_id, run.run_id)  # before its tasks: then the tasks of an ended run are final
    run.tasks = sorted(api.task_instances(run.dag_id, run.run_id), key=_order)
    run.state = state
    if with_logs and time.monotonic() - run.log_read_at >= LOG_POLL_SECONDS:
        run.log_read_at = time.monotonic()
        for task in run.tasks:
            if task.state == "running" and (lines := api.task_log(run.dag_id, run.run_id, task)):
                run.last_lines[task.label] = lines[-1]


def _order(task: TaskInstance) -> tuple[str, str]:
    return (task.started_at or "9", task.label)


def _next_round(api: AirflowApi, run: DagRun) -> DagRun | None:
    """The DAG run that this one has triggered, once it has ended; its last task is skipped when it has asked for that run twice."""
    match = re.fullmatch(r"(.+-round-)(\d+)(.*)", run.run_id)
    last = next((task.state for task in run.tasks if task.task_id == "next_round"), "none")
    if not (match and last in ("success", "skipped") and run.state in FINISHED):
        return None
    following = DagRun(run.dag_id, f"{match[1]}{int(match[2]) + 1:02d}{match[3]}")
    if last == "skipped":  # after the last round, too
        try:
            api.dag_run_state(following.dag_id, following.run_id)
        except AirflowError as error:
            if error.status != NOT_FOUND:
                raise
            return None
    return following


def _changes(runs: Sequence[DagRun], seen: dict[tuple[str, str], str], elapsed: float) -> list[str]:
    """One line per task or DAG run whose state has changed since the last call."""
    lines = []
    for run in runs:
        items = [(f"{task.task_id}/{task.map_index}", f"  {task.label}", task.state, task.duration) for task in run.tasks]
        for key, label, state, seconds in [*items, ("", "", run.state, None)]:
            if seen.get((run.run_id, key)) == state or (key and state in QUIET):
                continue
            seen[run.run_id, key] = state
            duration = f" ({seconds:.0f} s)" if seconds and state in FINISHED else ""
            lines.append(f"{elapsed:6.0f}s  {run.run_id}{label}: {state}{duration}")
    return lines


def _failure(api: AirflowApi, run: DagRun) -> str:
    failed = [task for task in run.tasks if task.state == "failed"]
    text = f"\n{run.run_id} failed" + (f" in {failed[0].label}" if failed else "") + "\n"
    if failed:
        text += "".join(f"  {line}\n" for line in api.task_log(run.dag_id, run.run_id, failed[0])[-NUM_LOG_LINES:])
    return text


# ---- what is shown ---------------------------------------------------------------------------------------------------


@contextmanager
def _display(output: TextIO) -> Iterator[Callable[[Sequence[DagRun], Sequence[str]], None]]:
    """A function that shows the runs: a live table on a terminal, else the changes as lines."""
    if not output.isatty():

        def print_lines(_runs: Sequence[DagRun], changes: Sequence[str]) -> None:
            output.writelines(f"{line}\n" for line in changes)
            output.flush()

        yield print_lines
        return

    from rich.console import Console
    from rich.live import Live

    with Live(console=Console(file=output), auto_refresh=False) as live:

        def draw(runs: Sequence[DagRun], _changes: Sequence[str]) -> None:
            live.update(_table(runs), refresh=True)

        yield draw


def _table(runs: Sequence[DagRun]) -> "Table":
    """Ended DAG runs in one row each, the others task by task."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, expand=True)
    for title, options in (
        ("DAG run", {"no_wrap": True}),
        ("task", {"no_wrap": True}),
        ("state", {}),
        ("time", {"justify": "right"}),
        ("last line", {}),
    ):
        table.add_column(title, ratio=1 if title == "last line" else None, overflow="ellipsis", **({"no_wrap": True} | options))
    for run in runs:
        table.add_row(f"[bold]{escape(run.run_id)}[/]", "", _styled(run.state), _clock(sum(task.duration or 0 for task in run.tasks)), "")
        if len(run.tasks) > MANY_TASKS:
            table.add_row("", f"{sum(task.state in FINISHED for task in run.tasks)} of {len(run.tasks)} tasks have ended", "", "", "")
        for task in _shown(run):
            line = run.last_lines.get(task.label, "") if task.state in ("running", "failed") else ""
            table.add_row("", escape(task.label), _styled(task.state), _clock(_seconds(task)), f"[dim]{escape(line)}[/]")
    return table


def _shown(run: DagRun) -> list[TaskInstance]:
    """The tasks of a DAG run that has not ended well; of one with very many, those that run or have failed."""
    if run.state == "success":
        return []
    if len(run.tasks) <= MANY_TASKS:
        return run.tasks
    return [task for task in run.tasks if task.state in ACTIVE]


def _styled(state: str) -> str:
    return f"[{STYLES.get(state, 'dim')}]{state}[/]"


def _seconds(task: TaskInstance) -> float:
    if task.state == "running" and task.started_at:
        return (datetime.now(UTC) - datetime.fromisoformat(task.started_at)).total_seconds()
    return task.duration or 0.0


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}" if seconds >= 0.5 else ""
