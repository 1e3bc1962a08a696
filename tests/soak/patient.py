"""Airflow's API for a client that must outlive the API server: a request is sent again until the server is back."""

import http.client
import time
from typing import Any
from urllib.error import URLError

from bliss_ops.stack.airflow_api import CONFLICT, FINISHED, AirflowApi, AirflowError

PATIENCE_SECONDS = 180.0  # a server that has been killed is back within half a minute
RETRY_SECONDS = 1.0
PAGE = 100
SERVER_ERROR = 500


class PatientApi(AirflowApi):
    """A session whose requests wait for the server; `num_waits` says how often one had to."""

    num_waits = 0

    def trigger_once(self, dag_id: str, run_id: str, conf: dict[str, Any]) -> str:
        """Trigger a DAG run of exactly this id; one that is there already is the one whose answer was lost."""
        try:
            self.call("POST", f"/api/v2/dags/{dag_id}/dagRuns", {"dag_run_id": run_id, "logical_date": None, "conf": conf})
        except AirflowError as error:
            if error.status != CONFLICT:
                raise
        return run_id

    def dag_runs(self) -> list[dict[str, Any]]:
        """Every DAG run of every DAG, oldest first."""
        return self._pages("/api/v2/dags/~/dagRuns?order_by=id", "dag_runs")

    def unfinished_dag_runs(self) -> list[dict[str, Any]]:
        return [run for run in self.dag_runs() if run["state"] not in FINISHED]

    def active_tasks(self) -> list[dict[str, Any]]:
        """Task instances that somebody is at, or should be."""
        states = "&".join(f"state={state}" for state in ("queued", "running", "scheduled", "restarting"))
        return self._pages(f"/api/v2/dags/~/dagRuns/~/taskInstances?{states}&order_by=id", "task_instances")

    def tries(self, task: dict[str, Any]) -> list[dict[str, Any]]:
        """Every try of a task instance, the last one included."""
        path = f"/api/v2/dags/{task['dag_id']}/dagRuns/{task['dag_run_id']}/taskInstances/{task['task_id']}"
        mapped = f"/{task['map_index']}" if task["map_index"] >= 0 else ""
        found: list[dict[str, Any]] = self.call("GET", f"{path}{mapped}/tries")["task_instances"]
        return found

    def tasks_of(self, run: dict[str, Any]) -> list[dict[str, Any]]:
        return self._pages(f"/api/v2/dags/{run['dag_id']}/dagRuns/{run['dag_run_id']}/taskInstances?order_by=id", "task_instances")

    def last_lines(self, task: dict[str, Any], try_number: int, count: int = 12) -> list[str]:
        """The end of one try's log; empty when it cannot be read."""
        path = f"/api/v2/dags/{task['dag_id']}/dagRuns/{task['dag_run_id']}/taskInstances/{task['task_id']}"
        try:
            content = self.call("GET", f"{path}/logs/{try_number}?map_index={task['map_index']}&full_content=true")["content"]
        except AirflowError as error:
            return [str(error)]
        lines = [str(item.get("event", item)) if isinstance(item, dict) else str(item) for item in content]
        details = [
            f"{error['exc_type']}: {error['exc_value']}"
            for item in content
            if isinstance(item, dict)
            for error in item.get("error_detail") or ()
        ]
        return [*lines[-count:], *details]

    def clear(self, run: dict[str, Any]) -> None:
        """Clear the failed tasks of a DAG run, as a person would who has read why they failed."""
        body = {"dry_run": False, "dag_run_id": run["dag_run_id"], "only_failed": True, "reset_dag_runs": True}
        self.call("POST", f"/api/v2/dags/{run['dag_id']}/clearTaskInstances", body)

    def _pages(self, path: str, key: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        while True:
            page = self.call("GET", f"{path}&limit={PAGE}&offset={len(found)}")[key]
            found += page
            if len(page) < PAGE:
                return found

    def _send(self, method: str, path: str, body: Any, *, token: bool = True) -> Any:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                return super()._send(method, path, body, token=token)
            except AirflowError as error:
                if error.status < SERVER_ERROR or time.monotonic() > deadline:
                    raise
            except (URLError, ConnectionError, TimeoutError, http.client.HTTPException):
                if time.monotonic() > deadline:
                    raise
            self.num_waits += 1
            time.sleep(RETRY_SECONDS)
