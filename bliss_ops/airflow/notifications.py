"""Who is on duty is told once about what needs a person, with all they need to begin: callbacks for a webhook.

Told are: a task that failed for good (no retry is left), once per DAG run for all its mapped instances; a DAG run that failed although no
task of it was told of, such as one that timed out; a schedule that was missed; Ray jobs that were stopped because nobody waited for them.
Not told are retries (unless asked for by BLISS_WEBHOOK_EVENTS), tasks that fail only because another one has, and what was told before.

Airflow runs a task's callback in the task's own process, or in its DAG processor where that process was killed; a DAG run's always there.
Those are several processes, so what has been told is kept as small files beside the task logs, which they share. Where they do not (task
logs on pods of their own), each tells for itself, and receivers go by `dedup_key`. What a callback raises, Airflow logs.
"""

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowFailException

from bliss_ops.airflow import webhook
from bliss_ops.airflow.webhook import Webhook

if TYPE_CHECKING:
    from airflow.sdk import Context

log = logging.getLogger(__name__)

TASK_FAILED, TASK_RETRIED, RUN_FAILED = "task_failed", "task_retried", "run_failed"
SCHEDULE_MISSED, ORPHANS_STOPPED = "schedule_missed", "orphans_stopped"
EVENTS = "BLISS_WEBHOOK_EVENTS"  # names of the events above, with commas
DEFAULT_EVENTS = (TASK_FAILED, RUN_FAILED, SCHEDULE_MISSED, ORPHANS_STOPPED)

FOLDER = "notifications"  # below Airflow's log folder
TOLD = "told"
MAX_LINES, MAX_CHARACTERS = 15, 2000
KILLED = "The task's process ended without an error of its own: it was killed, ran out of memory, or its machine was lost."
REASONS = {
    "timed_out": "the DAG run took longer than it may",
    "all_tasks_deadlocked": "no task of it can run any more",
    "task_failure": "a task failed",
}

Message = dict[str, Any]


class FailedElsewhereError(AirflowFailException):
    """A task is red only because something else has failed, which is told of there."""


def callbacks() -> dict[str, Any]:
    """Of a task, for `default_args`."""
    return {"on_failure_callback": task_failed, "on_retry_callback": task_retried}


def task_failed(context: "Context") -> None:
    """`on_failure_callback` of a task: no retry is left."""
    if (target := _target(TASK_FAILED)) is None:
        return
    message = _about_task(context, TASK_FAILED)
    if isinstance(context.get("exception"), FailedElsewhereError):
        _write_down(_claim(message), message, TOLD)
    else:
        _tell_once(target, message)


def task_retried(context: "Context") -> None:
    """`on_retry_callback` of a task: it failed and is tried again. Told only where BLISS_WEBHOOK_EVENTS names it."""
    if (target := _target(TASK_RETRIED)) is not None:
        _tell_once(target, _about_task(context, TASK_RETRIED))


def run_failed(context: "Context") -> None:
    """`on_failure_callback` of a DAG: tells of a DAG run that failed with no task told of, the process that should have included."""
    if (target := _target(RUN_FAILED)) is None:
        return
    message = _about_run(context)
    claims = _folder().glob(f"{_digest(message['dag_id'], message['run_id'])}.*.json")
    if not (context.get("reason") == "task_failure" and any(_is_told(path) for path in claims)):
        _tell_once(target, message)


def schedule_missed(dag_id: str, due: datetime, late_seconds: float) -> bool:
    """Tell that a scheduled DAG run is not there; returns whether it was told now."""
    if (target := _target(SCHEDULE_MISSED)) is None:
        return False
    text = (
        f":hourglass: *Missed*: `{dag_id}` was due at {due:%Y-%m-%d %H:%M} UTC and has not begun {late_seconds / 60:.0f} minutes later. "
        "Is the DAG paused, does it still parse, does a former DAG run of it hang?"
    )
    values = {"dag_id": dag_id, "due": due.isoformat(), "late_seconds": round(late_seconds)}
    return _tell_once(target, _message(SCHEDULE_MISSED, text, f"{SCHEDULE_MISSED}/{dag_id}/{due.isoformat()}", values))


def orphans_stopped(jobs: Iterable[str]) -> bool:
    """Tell of Ray jobs that were stopped because no task waits for them; returns whether it was told now."""
    names = sorted(jobs)
    if not names or (target := _target(ORPHANS_STOPPED)) is None:
        return False
    listing = "\n".join(names[:MAX_LINES])
    text = (
        f":broom: *Stopped {len(names)} Ray job{'s' if len(names) > 1 else ''}* that no task was waiting for:\n```{_escaped(listing)}```\n"
        "Something ended their tasks without stopping them: a lost machine, or a DAG run that was deleted."
    )
    return _tell_once(target, _message(ORPHANS_STOPPED, text, f"{ORPHANS_STOPPED}/{_digest(*names)}", {"ray_job_ids": names}))


def _about_task(context: "Context", event: str) -> Message:
    from airflow.sdk.log import redact  # type: ignore[attr-defined]

    ti = context["ti"]
    map_index = -1 if ti.map_index is None else ti.map_index
    max_tries = (ti.max_tries or 0) + 1
    error = context.get("exception")
    lines = _last_lines(str(redact(str(error))) if error else KILLED)
    link = _pulled(ti, "ray_job_link")
    values: Message = {
        "dag_id": ti.dag_id,
        "run_id": ti.run_id,
        "task_id": ti.task_id,
        "map_index": map_index,
        "map_label": getattr(ti, "rendered_map_index", None) or "",
        "try_number": ti.try_number,
        "max_tries": max_tries,
        "was_retried": ti.try_number > 1,
        "is_final": event == TASK_FAILED,
        **_of_what(context),
        "error_type": type(error).__name__ if error else "",
        "error": lines,
        "log_url": ti.log_url,
        "ray_job_id": _ray_job(ti, link),
        "ray_job_url": link,
    }
    text = _text_about_task(values)
    key = f"{event}/{ti.dag_id}/{ti.run_id}/{ti.task_id}/{max_tries}"  # a task that is cleared may try more often: it is told of again
    return _message(event, text, key if event == TASK_FAILED else f"{key}/{map_index}/{ti.try_number}", values)


def _about_run(context: "Context") -> Message:
    ti = context.get("ti")
    reason = str(context.get("reason") or "")
    run_id = str(ti.run_id if ti else context.get("run_id"))
    dag_id = str(ti.dag_id if ti else context["dag"].dag_id)
    values: Message = {
        "dag_id": dag_id,
        "run_id": run_id,
        "reason": reason,
        "task_id": ti.task_id if ti else "",
        **(_of_what(context) if ti else {}),
        "log_url": ti.log_url if ti else "",
    }
    what = REASONS.get(reason, reason or "it is red")
    last = f"; the last task was `{ti.task_id}`" if ti else ""
    text = f":red_circle: *DAG run failed*: `{dag_id}` {_escaped(run_id)}: {what}{last}." + _links(values)
    return _message(RUN_FAILED, text, f"{RUN_FAILED}/{dag_id}/{run_id}/{reason}", values)


def _of_what(context: "Context") -> Message:
    """The run or corpus that the task is for, and the round."""
    params: Mapping[str, Any] = context.get("params") or {}
    ti = context["ti"]
    subject = getattr(context.get("task") or getattr(ti, "task", None), "subject", None)
    if not isinstance(subject, str) or "{{" in subject:  # not rendered: the callback does not run in the task's own process
        subject = _pulled(ti, "name", task_id="configure")
    round_number = params.get("round") if "round" in params else None
    corpus = context.get("partition_key") or params.get("corpus") or params.get("ingest.corpus")
    return {"subject": subject or "", "round": round_number, "corpus": corpus or ""}


def _ray_job(ti: Any, link: str) -> str:
    """The job's id: the operator's own in the task's process, else the last part of the link."""
    own = getattr(getattr(ti, "task", None), "_submission_id", None)
    return str(own) if own else unquote(link.rstrip("/").rpartition("/")[2])


def _pulled(ti: Any, key: str, task_id: str | None = None) -> str:
    """A text of XCom; nothing where there is none."""
    map_index = None if task_id else ti.map_index
    value = ti.xcom_pull(task_ids=task_id or ti.task_id, key=key, map_indexes=map_index)
    return value if isinstance(value, str) else ""


def _text_about_task(values: Message) -> str:
    tries = f"try {values['try_number']} of {values['max_tries']}" if values["max_tries"] > 1 else "the only try"
    instance = f" [{values['map_label'] or values['map_index']}]" if values["map_index"] >= 0 else ""
    what = f" for {_escaped(values['subject'])}" if values["subject"] else ""
    number = f", round {values['round']}" if values["round"] else ""
    head = ":red_circle: *Failed for good*" if values["is_final"] else ":large_yellow_circle: *Failed, is tried again*"
    others = " Other instances of this task in this DAG run are not told of." if values["map_index"] >= 0 and values["is_final"] else ""
    error = "\n".join(values["error"])
    return (
        f"{head}: `{values['dag_id']}` task `{values['task_id']}`{_escaped(instance)}{what}{number} ({tries}, DAG run "
        f"{_escaped(values['run_id'])}).{others}\n```{_escaped(error)}```" + _links(values)
    )


def _links(values: Message) -> str:
    links = [(values.get("log_url"), "log"), (values.get("ray_job_url"), "Ray job")]
    shown = " · ".join(f"<{url}|{name}>" for url, name in links if url)
    return f"\n{shown}" if shown else ""


def _last_lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.strip().splitlines() if line.strip()]
    first, rest = lines[:1], lines[1:][-(MAX_LINES - 1) :]  # the first says what failed, the last ones why
    return [line[: MAX_CHARACTERS // 4] for line in first + rest]


def _escaped(text: str) -> str:
    """For Slack's markup, in which three characters mean something."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("```", "'''")[:MAX_CHARACTERS]


def _message(event: str, text: str, dedup_key: str, values: Message) -> Message:
    return {
        "event": event,
        "severity": "info" if event in (TASK_RETRIED, ORPHANS_STOPPED) else "page",
        "text": text,
        "dedup_key": dedup_key,
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        **values,
    }


def _target(event: str) -> Webhook | None:
    """Where to tell of such an event; None where nobody wants to know."""
    return webhook.configured() if event in _events() else None


def _tell_once(target: Webhook, message: Message) -> bool:
    """Deliver a message that nobody has delivered yet; one that was not accepted is free for the next who has the same to tell."""
    path = _claim(message)
    if path is None:
        log.info("%s was told already", message["dedup_key"])
        return False
    if not webhook.deliver(target, message):
        path.unlink(missing_ok=True)
        return False
    _write_down(path, message, TOLD)
    log.info("told %s: %s", target.shown, message["dedup_key"])
    return True


def _claim(message: Message) -> Path | None:
    """The file that says who tells this; None where another process does. Creating it is one step, so of many at once one succeeds."""
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True)
    owner = _digest(message.get("dag_id", ""), message.get("run_id", ""))
    path = folder / f"{owner}.{_digest(message['dedup_key'])}.json"
    try:
        path.open("x").close()
    except FileExistsError:
        return None
    _write_down(path, message, "being told")
    return path


def _write_down(path: Path | None, message: Message, state: str) -> None:
    if path is not None:
        path.write_text(json.dumps({"dedup_key": message["dedup_key"], "state": state, "at": message["at"]}))


def _is_told(path: Path) -> bool:
    """Not only begun: the process may have died before it could deliver."""
    return f'"{TOLD}"' in path.read_text()


def _folder() -> Path:
    return Path(conf.get("logging", "base_log_folder")) / FOLDER


def _events() -> tuple[str, ...]:
    asked = os.environ.get(EVENTS)
    return DEFAULT_EVENTS if asked is None else tuple(name.strip() for name in asked.split(",") if name.strip())


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]
