"""A comparison through the real Airflow and a real Ray: one failing run, going on, nothing to do, later rounds; minutes long."""

import json
from pathlib import Path
from typing import Any

import pytest

from bliss_ops import comparisons
from bliss_ops.cli import main
from bliss_ops.lake import Lake
from bliss_ops.manifest import read_manifest
from bliss_ops.stack import compare_in_airflow
from bliss_ops.stack.airflow_api import TaskInstance
from bliss_ops.stack.state import State

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

CHOICE = {"methods": ["random", "perplexity"], "seeds": [0, 1], "name": None, "baseline": "random"}
SETTINGS = {"num_rounds": 1, "fidelity.num_probes": 16}


def tasks(state: State, run_id: str) -> dict[str, TaskInstance]:
    return {task.label: task for task in state.api.task_instances("bliss_compare", run_id)}


def compare(state: State, lake: Lake, *, settings: dict[str, Any] | None = None, **choice: Any) -> int:
    return compare_in_airflow("smoke", CHOICE | choice, SETTINGS | (settings or {}), lake, state.layout.state_dir)


def test_a_failing_run_stops_no_other_and_the_dag_run_ends_red(state: State, lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    """The scores of one run were begun with other settings. Nothing is there at first: the corpus is ingested on the way."""
    obstacle = lake.run("smoke-perplexity-s1").round(1) / "scores" / "begun.json"
    obstacle.parent.mkdir(parents=True)
    obstacle.write_text('{"fingerprint": "another", "identity": {"batch": 1}, "inputs": {}}')
    assert compare(state, lake) == 1
    text = capsys.readouterr().out
    assert "compare-smoke failed in run.score [perplexity s1]" in text
    assert "was made with other settings or inputs" in text
    found = tasks(state, "compare-smoke")
    assert {label for label, task in found.items() if task.state == "failed"} == {"run.score [perplexity s1]", "missing"}
    assert found["report"].state == found["run.report [random s1]"].state == found["run.report [perplexity s0]"].state == "success"
    assert found["run.pretrain [3]"].state == "upstream_failed", "a task that was never begun has a number for a name"
    assert {label for label in found if label.startswith("warm_up")} == {
        f"warm_up [s{seed} in smoke-perplexity-s{seed}]" for seed in (0, 1)
    }
    assert not (lake.run("smoke-random-s0").path / "warmup").exists()
    summary = json.loads((lake.root / "comparisons" / "smoke" / "summary.json").read_bytes())
    assert list(summary["missing"]) == ["smoke-perplexity-s1"]
    assert len(summary["validation_losses"]) == 3
    obstacle.unlink()


def test_the_same_command_goes_on_with_what_is_missing(state: State, lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    """Needs the test before."""
    assert compare(state, lake) == 0
    assert "| perplexity | 2 |" in capsys.readouterr().out
    found = tasks(state, "compare-smoke.2")
    of_runs = {task.map_index for label, task in found.items() if label.startswith("run.")}
    assert of_runs == {0}, "one run was left"
    assert found["run.report [perplexity s1]"].state == "success"
    assert found["ingest"].state == "skipped"
    assert comparisons.unfinished(lake, comparisons.read(lake, "smoke")) == []


def test_a_finished_comparison_has_nothing_to_do(state: State, lake: Lake) -> None:
    """Needs the test before."""
    assert compare(state, lake) == 0
    found = tasks(state, "compare-smoke.3")
    assert {task.state for label, task in found.items() if label.startswith(("run.", "warm_up"))} == {"skipped"}
    assert found["report"].state == found["missing"].state == "success"


def test_airflow_and_one_process_write_the_same_files(lake: Lake, tmp_path: Path) -> None:
    """Needs the runs of the tests before."""
    settings = [argument for key, value in SETTINGS.items() for argument in ("--set", f"{key}={value}")]
    options = ["--methods", "random,perplexity", "--seeds", "0,1", *settings]
    assert main(["compare", "--recipe", "smoke", *options, "--lake", str(tmp_path / "alone")]) == 0
    alone = Lake.open(tmp_path / "alone")
    for manifest_file in sorted((alone.root / "runs").glob("**/manifest.json")):
        here = read_manifest(manifest_file.parent, made_by="")
        there = read_manifest(lake.root / here.artifact, made_by="")
        if here.stage != "report":
            assert there.fingerprint == here.fingerprint, here.artifact
            assert there.outputs == here.outputs, here.artifact


def test_later_rounds_are_dag_runs_of_their_own(state: State, lake: Lake) -> None:
    assert compare(state, lake, methods=["random", "dsir"], seeds=[0], name="rounds", settings={"num_rounds": 2}) == 0
    found = tasks(state, "compare-rounds")
    assert found["run.later_rounds [dsir s0]"].state == "success"
    for method in ("random", "dsir"):
        assert state.api.dag_run_state("bliss_round", f"rounds-{method}-s0-round-02.compare-rounds") == "success"
        assert read_manifest(lake.run(f"rounds-{method}-s0").round(2) / "evaluation", made_by="").stage == "evaluate"
    assert json.loads((lake.root / "comparisons" / "rounds" / "summary.json").read_bytes())["round"] == 2


def test_other_settings_are_refused_before_anything_is_triggered(state: State, lake: Lake) -> None:
    """Needs the runs of the first tests."""
    with pytest.raises(ValueError, match=r"smoke-random-s0:\n    pretraining.num_steps: was 6, now 9"):
        compare(state, lake, settings={"pretraining.num_steps": 9})
