"""Policies every DAG keeps: quick to import, documented, owned, retried, in the pipeline's order."""

import ast
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DAG_FILES = sorted((REPOSITORY / "dags").glob("*.py"))
DAG_IDS = {file.stem for file in DAG_FILES}
HEAVY = ("torch", "ray", "duckdb", "transformers", "pyarrow", "tokenizers", "matplotlib", "pandas")

DESCRIBE = """
import json, runpy, sys, time
import airflow.sdk, airflow.sdk.exceptions, airflow.providers.standard.operators.trigger_dagrun, airflow.triggers.base
from airflow.sdk import DAG
names = "BaseOperator BaseSensorOperator BaseHook Param Asset AssetWatcher PartitionedAssetTimetable PartitionedAtRuntime PokeReturnValue"
for name in (names + " Variable chain task_group timezone").split():
    getattr(airflow.sdk, name)  # lazy: the import of airflow itself is not what is measured
from airflow.sdk.definitions._internal.contextmanager import DagContext
DagContext.current_autoregister_module_name = "__main__"
begun = time.process_time()  # of this process alone: other processes of the machine make wall time longer
runpy.run_path(sys.argv[1])
seconds = time.process_time() - begun
((dag, _),) = DagContext.autoregistered_dags
def order(task):
    return len(task.get_flat_relative_ids(upstream=True))
print(json.dumps({
    "seconds": seconds, "modules": sorted(m for m in sys.modules if "." not in m), "dag_id": dag.dag_id, "doc": dag.doc_md,
    "tags": sorted(dag.tags), "catchup": dag.catchup, "max_active_runs": dag.max_active_runs,
    "tasks": [{"id": t.task_id, "owner": t.owner, "retries": t.retries, "backoff": t.retry_exponential_backoff, "pool": t.pool,
               "downstream": sorted(t.downstream_task_ids), "mapped": t.is_mapped or t.get_closest_mapped_task_group() is not None,
               "title": getattr(t, "map_index_template", None), "rule": str(getattr(t.trigger_rule, "value", t.trigger_rule)),
               "reschedules": getattr(t, "reschedule", None), "weight": str(getattr(t.weight_rule, "value", t.weight_rule))}
              for t in sorted(dag.tasks, key=order)],
    "params": {k: dag.params.get_param(k).schema | {"value": dag.params.get_param(k).value} for k in dag.params},
}))
"""


@pytest.fixture(scope="module")
def airflow_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("airflow")


@pytest.fixture(scope="module")
def dags(airflow_home: Path) -> dict[str, dict]:
    """Each DAG file, parsed in a fresh process."""
    environment = os.environ | {"AIRFLOW_HOME": str(airflow_home), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    described = {}
    for file in DAG_FILES:
        result = subprocess.run(
            [sys.executable, "-c", DESCRIBE, str(file)], capture_output=True, text=True, check=False, cwd=REPOSITORY, env=environment
        )
        assert result.returncode == 0, result.stderr
        dag = json.loads(result.stdout.splitlines()[-1])
        described[dag["dag_id"]] = dag
    return described


def test_the_dags_are_there(dags: dict[str, dict]) -> None:
    from bliss_ops.stack import local

    assert set(dags) == DAG_IDS == local.DAG_IDS


@pytest.mark.parametrize("dag_id", sorted(DAG_IDS))
class TestPolicies:
    def test_importing_it_is_quick_and_loads_nothing_heavy(self, dags: dict[str, dict], dag_id: str) -> None:
        assert dags[dag_id]["seconds"] < 1.0
        assert not set(HEAVY) & set(dags[dag_id]["modules"])

    def test_it_says_what_it_is(self, dags: dict[str, dict], dag_id: str) -> None:
        assert len(dags[dag_id]["doc"]) > 100
        assert "bliss" in dags[dag_id]["tags"]
        assert dags[dag_id]["max_active_runs"] >= 1
        assert dags[dag_id]["catchup"] is False

    def test_its_tasks_have_an_owner_and_retries_with_backoff(self, dags: dict[str, dict], dag_id: str) -> None:
        for task in dags[dag_id]["tasks"]:
            assert task["owner"] == "bliss", task
            assert task["retries"] >= 1, task
            assert task["backoff"] >= 1, task

    def test_it_is_one_chain(self, dags: dict[str, dict], dag_id: str) -> None:
        tasks = dags[dag_id]["tasks"]
        for task, following in itertools.pairwise(tasks):
            assert following["id"] in task["downstream"]
        beside = {(task["id"], name) for i, task in enumerate(tasks) for name in task["downstream"] if name != tasks[i + 1]["id"]}
        assert beside <= {
            (first, task["id"]) for first in ("configure", "plan", "find", "look") for task in tasks if task["mapped"]
        }  # mapped over them


def test_the_order_of_tasks_is_the_pipelines(dags: dict[str, dict]) -> None:
    from bliss_ops import pipeline

    ingest = [task["id"] for task in dags["bliss_ingest"]["tasks"]]
    assert ingest == ["configure", *(stage.name for stage in pipeline.CORPUS_STAGES)]
    one_round = [task["id"] for task in dags["bliss_round"]["tasks"]]
    assert one_round == ["configure", *(stage.name for stage in pipeline.ROUND_STAGES), "next_round"]
    comparison = [task["id"] for task in dags["bliss_compare"]["tasks"]]
    of_a_run = [f"run.{name}" for name in (*(stage.name for stage in pipeline.ROUND_STAGES[1:]), "next_rounds", "later_rounds")]
    assert comparison == ["configure", "ingest", "corpus", "warm_up", *of_a_run, "report", "missing"]


def test_the_documentation_lists_every_task_and_marks_what_is_mapped(dags: dict[str, dict]) -> None:
    text = (REPOSITORY / "docs" / "airflow.md").read_text().partition("| DAG | one DAG run is | tasks |")[2].partition("\n\n")[0]
    table = dict(re.findall(r"^\| `(\w+)` \|[^|]*\| ([^|]*) \|$", text, re.MULTILINE))
    tasks = {dag_id: [(task["id"].partition(".")[0], task["mapped"]) for task in dag["tasks"]] for dag_id, dag in dags.items()}
    shown = {dag_id: ", ".join(name + r"\*" * mapped for name, mapped in dict.fromkeys(of_dag)) for dag_id, of_dag in tasks.items()}
    assert table == shown


def test_only_the_writers_of_the_score_store_take_its_pool(dags: dict[str, dict]) -> None:
    pools = {(dag["dag_id"], task["id"]): task["pool"] for dag in dags.values() for task in dag["tasks"]}
    writers = {("bliss_round", "load"), ("bliss_round", "report"), ("bliss_rescore", "load")}
    assert {task for task, pool in pools.items() if pool == "score_store"} == writers | {
        ("bliss_compare", "run.load"),
        ("bliss_compare", "run.report"),
    }
    assert {task.removeprefix("run.") for (_, task), pool in pools.items() if pool == "gpu"} == {"score", "rescore"}


def test_what_trains_waits_in_its_pool(dags: dict[str, dict]) -> None:
    from bliss_ops import pipeline

    trains = {stage.name for stage in pipeline.ROUND_STAGES if stage.trains}
    assert {"warm_up", "fit", "pretrain"} <= trains
    for dag_id in ("bliss_round", "bliss_compare"):
        assert {task["id"].removeprefix("run.") for task in dags[dag_id]["tasks"] if task["pool"] == "training"} == trains


def test_nothing_waits_in_a_slot(dags: dict[str, dict]) -> None:
    """Sensors are rescheduled between two looks."""
    sensors = {task["id"]: task["reschedules"] for dag in dags.values() for task in dag["tasks"] if task["reschedules"] is not None}
    assert sensors == {"corpus": True, "run.later_rounds": True}


def test_a_comparison_goes_on_where_a_run_fails_and_depth_first(dags: dict[str, dict]) -> None:
    tasks = {task["id"]: task for task in dags["bliss_compare"]["tasks"]}
    of_runs = [task for name, task in tasks.items() if name.startswith("run.")]
    assert all(task["mapped"] and task["title"] == "{{ task.title }}" and task["weight"] == "upstream" for task in of_runs)
    assert {name for name, task in tasks.items() if task["rule"] == "all_done"} == {"run.fit", "report"}, (
        "one seed's warm-up may fail, one run"
    )
    assert tasks["missing"]["rule"] == "all_success", "red where the report could not be written"


def test_the_form_of_a_comparison(dags: dict[str, dict]) -> None:
    from bliss_ops.selectors import known_methods

    params = dags["bliss_compare"]["params"]
    assert params["methods"]["items"]["enum"] == params["baseline"]["enum"] == known_methods()
    assert (params["methods"]["type"], params["methods"]["uniqueItems"], params["methods"]["minItems"]) == ("array", True, 2)
    assert params["seeds"]["items"] == {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}
    assert (params["seeds"]["value"], params["baseline"]["value"]) == ([0, 1, 2], "random")
    settings = {name for name in dags["bliss_round"]["params"] if "." in name or name == "num_rounds"}
    assert settings <= set(params)
    assert not {"method", "seed", "round"} & set(params)


def test_heavy_shard_stages_are_mapped_over_groups(dags: dict[str, dict]) -> None:
    assert {task["id"] for dag in dags.values() for task in dag["tasks"] if task["mapped"]} >= {"extract", "pack", "score", "rescore"}


def test_the_form_knows_every_recipe_and_setting(dags: dict[str, dict]) -> None:
    from bliss_ops.recipes import RECIPES

    params = dags["bliss_round"]["params"]
    assert params["recipe"]["enum"] == sorted(path.stem for path in RECIPES.glob("*.toml"))
    assert params["bilevel.temperature"]["exclusiveMinimum"] == 0
    assert params["bilevel.temperature"]["maximum"] == 100
    assert {"lookahead", "adam_diagonal", None} < set(params["bilevel.ihvp"]["enum"])
    assert params["selection.token_budget"]["type"] == ["null", "integer"]
    assert params["num_rounds"]["value"] is None
    assert {"ingest.source", "ingest.validation.source"} <= set(dags["bliss_ingest"]["params"])
    assert not [key for key in dags["bliss_ingest"]["params"] if key.startswith("bilevel")]


@pytest.mark.parametrize("file", DAG_FILES, ids=lambda file: file.stem)
def test_a_dag_file_holds_no_logic(file: Path) -> None:
    """Only imports, one `with DAG(...)`, assignments and calls: no functions, branches or loops."""
    tree = ast.parse(file.read_text())
    found = [
        type(node).__name__
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.If | ast.For | ast.While | ast.Try)
    ]
    assert found == []
