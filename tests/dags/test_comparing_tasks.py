"""What the tasks of a comparison decide, without a scheduler: over a lake whose runs are configured and of which nothing is done."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("airflow")

from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from bliss_ops import comparisons
from bliss_ops.airflow import comparing
from bliss_ops.airflow.comparing import later_run_ids
from bliss_ops.airflow.operator import BlissStageOperator, StageFailed
from bliss_ops.lake import Lake, write_json
from bliss_ops.manifest import Artifact

RUN_ID = "compare-smoke.2"
PARAMS = {
    "recipe": "smoke", "methods": ["random", "bliss"], "seeds": [0, 1], "name": None, "baseline": "random",
    "num_rounds": 3, "compute.num_workers": 2,
}  # fmt: skip


class TaskInstance:
    run_id = RUN_ID

    def __init__(self, counts: dict[str, int] | None = None, **pulled: Any) -> None:
        self.pulled, self.pushed, self.counts, self.asked = pulled, {}, counts or {}, []

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value

    def xcom_pull(self, task_ids: str, key: str) -> Any:
        return self.pulled[key]

    def get_dr_count(self, dag_id: str, run_ids: list[str], states: list[str]) -> int:
        self.asked.append((dag_id, run_ids))
        return self.counts.get(states[0], 0)


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")  # `bliss` is beside this Python
    monkeypatch.setenv("BLISS_LAKE", str(tmp_path / "lake"))
    lake = Lake.open()
    comparisons.configure(lake, "smoke", ["random", "bliss"], [0, 1], overrides={"num_rounds": 3, "compute.num_workers": 2})
    return lake


def context(ti: TaskInstance) -> dict[str, Any]:
    return {"ti": ti, "params": PARAMS}


def make(path: Any, lake: Lake, stage: str) -> None:
    """An artifact that counts as finished."""
    artifact = Artifact(lake, path, stage=stage, identity={})
    write_json(path / "file.json", {})
    artifact.produce(lambda _: (["file.json"], {}))


def test_configure_names_the_runs_that_are_left_and_who_warms_up(lake: Lake) -> None:
    for number in (1, 2, 3):
        make(lake.run("smoke-random-s1").round(number) / "evaluation", lake, "evaluate")
    make(lake.run("smoke-random-s1").report, lake, "report")
    ti = TaskInstance()
    found = comparing.ConfigureComparisonOperator(task_id="configure").execute(context(ti))
    assert found == [
        {"subject": "smoke-random-s0", "title": "random s0"},
        {"subject": "smoke-bliss-s0", "title": "bliss s0"},
        {"subject": "smoke-bliss-s1", "title": "bliss s1"},
    ]
    assert ti.pushed == {
        "name": "smoke",
        "corpus": "smoke",
        "num_rounds": 3,
        "num_workers": 2,
        "warmups": [
            {"subject": "smoke-bliss-s0", "title": "s0 in smoke-bliss-s0"},
            {"subject": "smoke-bliss-s1", "title": "s1 in smoke-bliss-s1"},
        ],
    }


def test_configure_fails_with_the_commands_own_words(lake: Lake) -> None:
    wrong = context(TaskInstance()) | {"params": PARAMS | {"pretraining.num_steps": 9}}
    with pytest.raises(StageFailed, match=r"smoke-bliss-s1:\n    pretraining\.num_steps: was 6, now 9"):
        comparing.ConfigureComparisonOperator(task_id="configure").execute(wrong)


class TestCorpus:
    def test_it_is_ingested_where_it_is_not_there(self, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
        triggered = []
        monkeypatch.setattr(comparing.TriggerDagRunOperator, "execute", lambda self, _: triggered.append((self.trigger_run_id, self.conf)))
        operator = comparing.IngestOperator(task_id="ingest", corpus="smoke")
        operator.execute(context(TaskInstance()) | {"params": PARAMS | {"ingest.vocab_size": 600}})
        assert triggered == [("smoke.compare-smoke-2", {"recipe": "smoke", "ingest.vocab_size": 600})]
        make(lake.corpus("smoke").validation, lake, "prepare_validation")
        with pytest.raises(AirflowSkipException):
            operator.execute(context(TaskInstance()))

    def test_it_is_waited_for_and_a_failed_ingestion_ends_the_waiting(self, lake: Lake) -> None:
        sensor = comparing.CorpusSensor(task_id="corpus", corpus="smoke")
        ti = TaskInstance(name="smoke", warmups=[{"subject": "x"}])
        assert sensor.poke(context(ti)) is False
        assert ti.asked == [("bliss_ingest", ["smoke.compare-smoke-2"])]
        with pytest.raises(AirflowFailException, match="the ingestion of corpus smoke failed: see the DAG run smoke"):
            sensor.poke(context(TaskInstance(counts={"failed": 1})))
        make(lake.corpus("smoke").validation, lake, "prepare_validation")
        done = sensor.poke(context(ti))
        assert (done.is_done, done.xcom_value) == (True, [{"subject": "x"}])

    def test_too_little_data_is_said_before_anything_trains(self, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
        def too_little(*_: Any) -> None:
            raise ValueError("a window of 3 sequences")

        make(lake.corpus("smoke").validation, lake, "prepare_validation")
        monkeypatch.setattr("bliss_ops.rounds.check", too_little)
        with pytest.raises(AirflowFailException, match="a window of 3 sequences"):
            comparing.CorpusSensor(task_id="corpus", corpus="smoke").poke(context(TaskInstance(name="smoke")))


class TestRounds:
    def test_the_next_one_is_a_dag_run_that_goes_on_by_itself(self, lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
        triggered = []
        monkeypatch.setattr(comparing.TriggerDagRunOperator, "execute", lambda self, _: triggered.append((self.trigger_run_id, self.conf)))
        operator = comparing.NextRoundsOperator(task_id="next_rounds", subject="smoke-bliss-s1", title="bliss s1", num_rounds="3")
        operator.execute(context(TaskInstance(name="smoke")))
        ((run_id, conf),) = triggered
        assert run_id == "smoke-bliss-s1-round-02.compare-smoke-2"
        assert conf == {
            "recipe": "smoke", "method": "bliss", "seed": 1, "round": 2, "name": "smoke-bliss-s1", "compare_with": ["smoke-random-s1"],
            "num_rounds": 3, "compute.num_workers": 2,
        }  # fmt: skip
        operator.num_rounds = "1"
        with pytest.raises(AirflowSkipException):
            operator.execute(context(TaskInstance(name="smoke")))

    def test_the_later_ones_keep_the_ids_that_rounds_give_each_other(self) -> None:
        assert later_run_ids("a-s0", 3, RUN_ID) == ["a-s0-round-02.compare-smoke-2", "a-s0-round-03.compare-smoke-2"]
        assert later_run_ids("a-s0", 1, RUN_ID) == []

    def test_a_next_round_that_is_there_already_is_waited_for(self, lake: Lake) -> None:
        """Airflow's client asks again where an answer is late; the second request finds what the first has made, and skips the task."""
        sensor = comparing.LaterRoundsSensor(task_id="later_rounds", subject="a-s0", title="a s0", num_rounds="3")
        assert sensor.trigger_rule == "none_failed"
        sensor.num_rounds = "1"
        with pytest.raises(AirflowSkipException):
            sensor.poke(context(TaskInstance()))

    @pytest.mark.parametrize(("counts", "done"), [({}, False), ({"success": 1}, False), ({"success": 2}, True)])
    def test_they_are_waited_for(self, counts: dict[str, int], done: bool) -> None:
        sensor = comparing.LaterRoundsSensor(task_id="later_rounds", subject="a-s0", title="a s0", num_rounds="3")
        assert sensor.poke(context(TaskInstance(counts=counts))) is done

    def test_a_failed_one_ends_the_waiting(self) -> None:
        sensor = comparing.LaterRoundsSensor(task_id="later_rounds", subject="a-s0", title="a s0", num_rounds="3")
        with pytest.raises(AirflowFailException, match="a later round of a-s0 failed: see a-s0-round-02"):
            sensor.poke(context(TaskInstance(counts={"failed": 1, "success": 1})))


def test_a_run_without_its_warm_up_fails_at_once(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    submitted = []
    monkeypatch.setattr(BlissStageOperator, "execute", lambda self, _: submitted.append(self.command))
    operator = comparing.WarmedUpOperator(task_id="fit", subcommand="fit", subject="smoke-random-s1", round_number="1")
    with pytest.raises(AirflowFailException, match="the warm-up of smoke-bliss-s1 is not there"):
        operator.execute({})
    assert submitted == []
    make(lake.run("smoke-bliss-s1").path / "warmup", lake, "warm_up")
    operator.execute({})
    assert submitted == [["bliss", "fit", "smoke-random-s1", "--round", "1"]]


def test_nothing_is_reported_where_nothing_was_configured() -> None:
    operator = comparing.ReportComparisonOperator(task_id="report", subcommand="report-comparison", subject="None")
    with pytest.raises(AirflowFailException, match="nothing was configured"):
        operator.execute({})


def test_missing_runs_make_the_end_red(lake: Lake) -> None:
    operator = comparing.MissingOperator(task_id="missing")
    with pytest.raises(AirflowFailException, match="4 of 4 runs are missing in the report:\nsmoke-random-s0: nothing is done\n"):
        operator.execute(context(TaskInstance(name="smoke")))
    for member in comparisons.read(lake, "smoke").runs:
        for number in (1, 2, 3):
            make(lake.run(member.run).round(number) / "evaluation", lake, "evaluate")
        make(lake.run(member.run).report, lake, "report")
    operator.execute(context(TaskInstance(name="smoke")))
