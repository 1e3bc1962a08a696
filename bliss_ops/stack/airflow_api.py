"""The few calls of Airflow's REST API that `bliss run --airflow` and `bliss compare --airflow` make, with the standard library."""

import json
import logging
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

log = logging.getLogger(__name__)

TIMEOUT_SECONDS = 90  # longer than Airflow itself waits for its database
UNAUTHORIZED, NOT_FOUND, CONFLICT, FAILED = 401, 404, 409, 500
PAGE = 100
FINISHED = frozenset({"success", "failed"})


class AirflowError(RuntimeError):
    """Airflow refused a request; `status` is its HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class TaskInstance:
    """One task of one DAG run as the API reports it."""

    task_id: str
    map_index: int
    label: str
    state: str  # "none" before it is scheduled
    try_number: int
    duration: float | None
    started_at: str | None
    ended_at: str | None


class AirflowApi:
    """A logged-in session."""

    def __init__(self, url: str, user: str, password: str) -> None:
        self.url = url
        self._login = {"username": user, "password": password}
        self._token = ""

    def health(self) -> dict[str, str]:
        """Each part's own word about itself; "healthy" is good."""
        parts = self._send("GET", "/api/v2/monitor/health", None, token=False)
        return {name: str(part.get("status")) for name, part in parts.items()}

    def dag_ids(self) -> set[str]:
        return {dag["dag_id"] for dag in self.call("GET", "/api/v2/dags?limit=100")["dags"]}

    def import_errors(self) -> list[str]:
        """Tracebacks of DAG files that could not be read."""
        return [error["stack_trace"] for error in self.call("GET", "/api/v2/importErrors")["import_errors"]]

    def pools(self) -> dict[str, int]:
        """Slots of every pool; -1 is without a limit."""
        return {pool["name"]: int(pool["slots"]) for pool in self.call("GET", "/api/v2/pools?limit=100")["pools"]}

    def unpause(self, dag_id: str) -> None:
        self.call("PATCH", f"/api/v2/dags/{_quote(dag_id)}?update_mask=is_paused", {"is_paused": False})

    def make_pool(self, name: str, slots: int, description: str) -> None:
        """Create a pool; one of that name is left as it is."""
        try:
            self.call("GET", f"/api/v2/pools/{_quote(name)}")
            return
        except AirflowError as error:
            if error.status != NOT_FOUND:
                raise
        try:
            self.call("POST", "/api/v2/pools", {"name": name, "slots": slots, "description": description, "include_deferred": True})
        except AirflowError as error:
            if error.status != CONFLICT:
                raise

    def trigger(self, dag_id: str, run_id: str, conf: Mapping[str, Any]) -> str:
        """Trigger a DAG run; where `run_id` is taken, its id becomes `run_id.2`, `.3`, ... Returns the id.

        Raises:
            AirflowError: the form's values are refused; the message names the field.
        """
        name = run_id
        for number in range(2, 1000):
            try:
                self.call("POST", f"/api/v2/dags/{_quote(dag_id)}/dagRuns", {"dag_run_id": name, "logical_date": None, "conf": dict(conf)})
                return name
            except AirflowError as error:
                if error.status != CONFLICT:
                    raise
            name = f"{run_id}.{number}"
        raise AirflowError(CONFLICT, f"{dag_id}: there are a thousand DAG runs named {run_id}")

    def dag_run_state(self, dag_id: str, run_id: str) -> str:
        return str(self.call("GET", _run_path(dag_id, run_id))["state"])

    def task_instances(self, dag_id: str, run_id: str) -> list[TaskInstance]:
        """Tasks of a DAG run, mapped ones one by one."""
        found: list[dict[str, Any]] = []
        while len(found) % PAGE == 0:  # however many are asked for, Airflow gives a hundred at a time
            page = f"limit={PAGE}&offset={len(found)}&order_by=id"
            answer = self.call("GET", f"{_run_path(dag_id, run_id)}/taskInstances?{page}")["task_instances"]
            found += answer
            if not answer:
                break
        return [
            TaskInstance(
                task_id=item["task_id"],
                map_index=item["map_index"],
                label=item["task_id"] + (f" [{item.get('rendered_map_index') or item['map_index']}]" if item["map_index"] >= 0 else ""),
                state=item["state"] or "none",
                try_number=item["try_number"],
                duration=item["duration"],
                started_at=item["start_date"],
                ended_at=item["end_date"],
            )
            for item in found
        ]

    def task_log(self, dag_id: str, run_id: str, task: TaskInstance) -> list[str]:
        """The lines of a task's current try, without Airflow's own."""
        query = urllib.parse.urlencode({"map_index": task.map_index, "full_content": "true"})
        path = f"{_run_path(dag_id, run_id)}/taskInstances/{_quote(task.task_id)}/logs/{max(task.try_number, 1)}?{query}"
        content = self.call("GET", path)["content"]
        return [line for item in content for line in _log_lines(item) if line.strip() and not line.startswith("::")]

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """One request, logged in; the answer's JSON.

        Raises:
            AirflowError: it was refused.
        """
        if not self._token:
            self._token = self._send("POST", "/auth/token", self._login, token=False)["access_token"]
        try:
            return self._send(method, path, body)
        except AirflowError as error:
            if error.status == UNAUTHORIZED:  # the session has expired
                self._token = str(self._send("POST", "/auth/token", self._login, token=False)["access_token"])
            elif error.status == FAILED:  # on SQLite two writers can wait for each other until one gives up; nothing was written then
                log.warning("%s; trying once more", error)
            else:
                raise
        return self._send(method, path, body)

    def _send(self, method: str, path: str, body: Any, *, token: bool = True) -> Any:
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {self._token}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.url}{path}", data=data, headers=headers, method=method)  # noqa: S310 - our own http:// address
        try:
            with _OPENER.open(request, timeout=TIMEOUT_SECONDS) as response:
                return json.loads(response.read() or b"null")
        except urllib.error.HTTPError as error:
            raise AirflowError(error.code, f"Airflow: {method} {path}: HTTP {error.code}: {_detail(error.read())}") from None


_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a proxy could not reach our loopback address


def _run_path(dag_id: str, run_id: str) -> str:
    return f"/api/v2/dags/{_quote(dag_id)}/dagRuns/{_quote(run_id)}"


def _quote(text: str) -> str:
    return urllib.parse.quote(text, safe="")


def _log_lines(item: Any) -> list[str]:
    """Lines of one structured log entry; the message of an exception is beside the entry's own text."""
    if not isinstance(item, dict):
        return str(item).splitlines()
    errors = [f"{error['exc_type']}: {error['exc_value']}" for error in item.get("error_detail") or ()]
    return "\n".join([item["event"], *errors]).splitlines()


def _detail(body: bytes) -> str:
    try:
        detail = json.loads(body)["detail"]
    except (ValueError, KeyError, TypeError):
        return body.decode(errors="replace")[:500]
    return detail if isinstance(detail, str) else json.dumps(detail)
