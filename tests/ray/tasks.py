"""What Airflow gives a task, as far as the operator looks at it."""

from typing import Any


class StateStore:
    """The task's state, which its tries share."""

    def __init__(self, values: dict[str, Any] | None = None) -> None:
        self.values = values or {}

    def get(self, key: str, default: Any = None) -> Any:
        return self.values.get(key, default)

    def set(self, key: str, value: Any) -> None:
        self.values[key] = value

    def delete(self, key: str) -> None:
        self.values.pop(key, None)


class TaskInstance:
    dag_id, run_id, map_index, try_number, max_tries = "bliss_round", "demo-round-01", -1, 1, 0
    stats_tags: dict[str, str] = {}  # noqa: RUF012 - never changed

    def __init__(self, task_id: str) -> None:
        self.task_id = task_id
        self.xcoms: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = value


def context(task_id: str, store: StateStore | None = None) -> Any:
    return {"ti": TaskInstance(task_id), "outlet_events": {}, "task_state_store": store or StateStore()}
