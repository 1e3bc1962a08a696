"""The last task of a round: it triggers the next one, up to as many rounds as the run has by then."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("airflow")

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk.exceptions import AirflowSkipException

from bliss_ops.airflow.rounds import NextRoundOperator
from bliss_ops.config import RunConfig
from bliss_ops.lake import Lake, write_json


@pytest.fixture
def triggered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, dict[str, Any]]]:
    """A lake with a run of two rounds; what is triggered is remembered."""
    monkeypatch.setenv("BLISS_LAKE", str(tmp_path))
    write_rounds(2)
    calls: list[tuple[str, str, dict[str, Any]]] = []
    monkeypatch.setattr(
        TriggerDagRunOperator, "execute", lambda self, _: calls.append((self.trigger_dag_id, self.trigger_run_id, self.conf))
    )
    return calls


def write_rounds(num_rounds: int) -> None:
    config = RunConfig.model_validate({"name": "mine", "recipe": "demo", "method": "random", "num_rounds": num_rounds, "window_shards": 1})
    write_json(Lake.open().run("mine").path / "config.json", config.model_dump(mode="json"))


def after(round_number: int, **params: object) -> None:
    context: Any = {
        "params": {"round": round_number, "recipe": "demo", **params},
        "ti": SimpleNamespace(dag_id="bliss_round", run_id=f"mine-round-{round_number:02d}"),
    }
    NextRoundOperator(task_id="next_round", run_name="mine").execute(context)


def test_the_next_round_is_triggered_and_after_the_last_none(triggered: list) -> None:
    after(1, num_rounds=2)
    assert triggered == [("bliss_round", "mine-round-02", {"round": 2, "recipe": "demo", "num_rounds": 2})]
    with pytest.raises(AirflowSkipException, match="round 2 of 2 was the last one"):
        after(2)


def test_a_run_that_was_extended_meanwhile_goes_on(triggered: list) -> None:
    write_rounds(3)
    after(2, num_rounds=2)  # what the form said when the first round was triggered
    assert [run_id for _, run_id, _ in triggered] == ["mine-round-03"]
