"""What the tasks of re-scoring and landing are made of, without a scheduler."""

import json
import subprocess
from typing import Any

import pytest

pytest.importorskip("airflow")

from bliss_ops import cli
from bliss_ops.airflow import landing, operator, rescoring, watcher
from bliss_ops.airflow.forms import corpus_params

PAIR = {"corpus": "news", "run": "demo-bliss-s0", "round": 2, "name": "x", "num_shards": 5, "num_missing": 3, "num_groups": 2, "reason": ""}


class Ran:
    """Stands for `subprocess.run`: remembers the command, prints what it is told to."""

    def __init__(self, output: Any) -> None:
        self.output, self.commands = json.dumps(output), []

    def __call__(self, command: list[str], **_: Any) -> subprocess.CompletedProcess:
        self.commands.append(command)
        return subprocess.CompletedProcess(command, 0, self.output, "")


class TaskInstance:
    run_id = "scheduled__2026-01-01T02:00:00+00:00"

    def __init__(self, **pulled: Any) -> None:
        self.pulled, self.pushed = pulled, {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value

    def xcom_pull(self, task_ids: str, key: str) -> Any:
        return self.pulled[key]


@pytest.fixture
def variable(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    values: dict[str, Any] = {}
    monkeypatch.setattr(rescoring.Variable, "get", lambda key, default=None, deserialize_json=False: values.get(key, default))
    return values


def plan(ran: Ran, monkeypatch: pytest.MonkeyPatch, *, partition_key: str | None = None, **params: Any) -> tuple[list[dict], TaskInstance]:
    monkeypatch.setattr(operator.subprocess, "run", ran)
    ti = TaskInstance()
    filled = {"corpus": None, "runs": [], "round": None, "groups": None} | params
    return rescoring.PlanOperator(task_id="plan").execute({"params": filled, "partition_key": partition_key, "ti": ti}), ti


def test_an_event_names_the_corpus_and_the_variable_the_runs(variable: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    variable["bliss_rescore_runs"] = ["a-run", "b-run"]
    ran = Ran([PAIR])
    loads, ti = plan(ran, monkeypatch, partition_key="news")
    assert ran.commands == [["bliss", "pending", "--format=json", "--corpus=news", "--run=a-run", "--run=b-run"]]
    assert loads == [{"subject": "news", "arguments": ["x"], "num_shards_scored": 3}]
    assert ti.pushed == {"pairs": [PAIR], "incompatible": []}
    ran = Ran([])
    plan(ran, monkeypatch, runs=["mine"], round=1)
    assert ran.commands == [["bliss", "pending", "--format=json", "--run=mine", "--round=1"]]  # the form counts more


def test_a_misfit_is_red_when_asked_for_and_listed_when_found(variable: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    misfit = PAIR | {"corpus": "old", "reason": "another tokenizer"}
    with pytest.raises(rescoring.AirflowFailException, match="another tokenizer"):
        plan(Ran([PAIR, misfit]), monkeypatch, corpus="old", runs=["demo-bliss-s0"])
    for asked in ({}, {"corpus": "old"}, {"runs": ["demo-bliss-s0"]}, {"partition_key": "old"}):
        loads, ti = plan(Ran([PAIR, misfit]), monkeypatch, **asked)
        assert [load["subject"] for load in loads] == ["news"]
        assert ti.pushed["incompatible"] == [misfit]


@pytest.mark.parametrize("value", ["demo-bliss-s0", {"run": "x"}, [1]])
def test_a_variable_that_is_no_list_is_named(variable: dict, value: object) -> None:
    variable["bliss_rescore_runs"] = value
    with pytest.raises(operator.StageFailed, match="bliss_rescore_runs"):
        rescoring.chosen_runs()


def test_a_pair_is_cut_in_groups_of_shards_never_more_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    def groups(chosen: int | None) -> list[str]:
        task = rescoring.GroupsOperator(task_id="groups")
        return [item["group"] for item in task.execute({"params": {"groups": chosen}, "ti": TaskInstance(pairs=[PAIR])})]

    assert groups(None) == ["0/2", "1/2"]
    assert groups(3) == ["0/3", "1/3", "2/3"]
    assert groups(64) == [f"{group}/5" for group in range(5)]


def test_the_commands_of_the_tasks_are_the_command_lines_own() -> None:
    (arguments, _) = rescoring.group_arguments(PAIR, None)
    command = operator.BlissStageOperator(task_id="rescore", subcommand="rescore", **arguments).command
    parsed = cli.build_parser().parse_args(command[1:])
    assert (parsed.subcommand, parsed.run, parsed.round, parsed.corpus, parsed.group) == ("rescore", "demo-bliss-s0", 2, "news", (0, 2))
    command = rescoring.LoadScoresOperator(task_id="load", subject="news", arguments=["x"], num_shards_scored=3).command
    assert command == ["bliss", "load-scores", "news", "x"]


def test_scores_that_are_not_complete_fail_without_a_job(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLISS_LAKE", str(tmp_path))
    monkeypatch.setattr(rescoring.LoadScoresOperator, "_connect", lambda self: pytest.fail("a job was asked for"))
    task = rescoring.LoadScoresOperator(task_id="load", subject="news", arguments=["x"])
    with pytest.raises(rescoring.AirflowFailException, match="not complete"):
        task.execute({})


def test_one_dag_run_is_triggered_per_corpus(variable: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = Ran([PAIR, PAIR | {"run": "other"}, PAIR | {"corpus": "sport"}, PAIR | {"corpus": "old", "reason": "another tokenizer"}])
    monkeypatch.setattr(operator.subprocess, "run", ran)
    found = rescoring.FindCorporaOperator(task_id="find").execute({"ti": TaskInstance()})
    assert found == [
        {
            "trigger_run_id": "news.scheduled__2026-01-01T02-00-00-00-00",
            "conf": {"corpus": "news", "runs": ["demo-bliss-s0", "other"]},
        },
        {"trigger_run_id": "sport.scheduled__2026-01-01T02-00-00-00-00", "conf": {"corpus": "sport", "runs": ["demo-bliss-s0"]}},
    ]
    assert all(rescoring.rescore_params()[key].resolve(value) == value for item in found for key, value in item["conf"].items())


def test_landing_triggers_an_ingestion_that_the_form_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {
        "ingest.corpus": "news",
        "ingest.source": "/l/part-01.list",
        "ingest.sequence_length": 32,
        "ingest.validation.source": "none",
    }
    part = {"corpus": "news", "list_file": "/l/part-01.list", "num_files": 2, "recipe": "demo", "settings": settings}
    monkeypatch.setattr(operator.subprocess, "run", ran := Ran({"parts": [part], "waiting": [], "problems": ["a", "b"]}))
    ti = TaskInstance()
    found = landing.LandOperator(task_id="look").execute({"params": {"prefix": "--lake=/drop; reboot", "settle_seconds": 1}, "ti": ti})
    assert found == [{"trigger_run_id": "landed-news", "conf": {"recipe": "demo", **settings}}]
    assert all(corpus_params()[key].resolve(value) == value for key, value in found[0]["conf"].items())
    parsed = cli.build_parser().parse_args(ran.commands[0][1:])
    assert (parsed.prefix, parsed.lake, parsed.list_only, parsed.settle_seconds) == ("--lake=/drop; reboot", None, True, 1)
    with pytest.raises(landing.AirflowFailException, match="a\n\nb"):
        landing.ProblemsOperator(task_id="problems").execute({"ti": TaskInstance(**ti.pushed)})
    with pytest.raises(landing.AirflowFailException, match="BLISS_LANDING"):
        landing.LandOperator(task_id="look").execute({"params": {"prefix": None}, "ti": ti})


def test_nothing_is_watched_unless_a_folder_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BLISS_LANDING", raising=False)
    assert watcher.landing_schedule() is None
    monkeypatch.setenv("BLISS_LANDING", "s3://drop/in")
    monkeypatch.setenv("BLISS_LANDING_SECONDS", "5")
    (asset,) = watcher.landing_schedule()
    path, arguments = asset.watchers[0].trigger.serialize()
    assert (path, arguments) == ("bliss_ops.airflow.watcher.LandingTrigger", {"prefix": "s3://drop/in", "poll_seconds": 5.0})
