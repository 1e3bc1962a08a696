"""Re-scoring and landing on the real scheduler and a real Ray: events, nothing to do, kills, two at once, a broken neighbour.

Whatever happens on the way, the score store must end as it does when one process makes the same scores undisturbed.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import pytest

from bliss_ops import landing, rescoring, store
from bliss_ops.cli import main
from bliss_ops.lake import Lake, shard_file
from bliss_ops.stack import local, processes
from bliss_ops.stack.airflow_api import AirflowApi
from bliss_ops.stack.follow import follow
from bliss_ops.stack.state import State
from tests.corpus.corpora import rows, write_gz
from tests.rescoring.lakes import RUN, T, fit, ingest, tokenizer_of, write_shards

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NUM_SHARDS = 40


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rescoring")


@pytest.fixture(scope="module")
def lake(root: Path) -> Lake:
    """A corpus with a score model of two rounds, beside it a corpus of many shards."""
    lake = Lake.open(root / "lake")
    validation = write_gz(root / "validation.json.gz", rows(6, start=900))
    ingest(
        lake,
        "own",
        write_shards(root / "own"),
        "--set",
        "ingest.vocab_size=512",
        "--set",
        f"ingest.sequence_length={T}",
        validation=validation,
    )
    fit(lake, num_rounds=2)
    ingest(lake, "many", write_shards(root / "many", NUM_SHARDS, start=2000, documents=60), *tokenizer_of(lake))
    return lake


@pytest.fixture(scope="module")
def state(lake: Lake, root: Path) -> Iterator[State]:
    (root / "drop").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLISS_LANDING", str(root / "drop"))
        patch.setenv("BLISS_LANDING_SECONDS", "1")
        state = local.up(lake, root / "state")
        try:
            yield state
        finally:
            local.down(state.layout.state_dir)


@pytest.fixture(scope="module")
def api(state: State) -> AirflowApi:
    return state.api


def dag_runs(api: AirflowApi, dag_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = api.call("GET", f"/api/v2/dags/{dag_id}/dagRuns?limit=100")["dag_runs"]
    return found


def wait_for(what: Callable[[], Any], seconds: float = 90) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it does not come"
        time.sleep(0.1)
    return found


def run_of_corpus(api: AirflowApi, corpus: str) -> str:
    """The DAG run that the corpus's asset event has started."""
    runs = wait_for(lambda: [run for run in dag_runs(api, "bliss_rescore") if run["partition_key"] == corpus])
    return str(runs[0]["dag_run_id"])


def states(api: AirflowApi, dag_id: str, run_id: str) -> dict[str, str]:
    return {task.label: task.state for task in api.task_instances(dag_id, run_id)}


def log_of(api: AirflowApi, dag_id: str, run_id: str, task_id: str) -> str:
    return "\n".join(
        "\n".join(api.task_log(dag_id, run_id, task)) for task in api.task_instances(dag_id, run_id) if task.task_id == task_id
    )


def rows_of(lake: Lake, score_run_id: str) -> dict[str, list[tuple]]:
    """Every table's rows about a score run, in order, without the times of day."""
    with duckdb.connect(str(lake.score_store), read_only=True) as con:
        tables = [name for (name,) in con.execute("select table_name from duckdb_tables() order by 1").fetchall()]
        found = {}
        for table in tables:
            columns = [
                name
                for (name,) in con.execute(
                    "select column_name from duckdb_columns() where table_name = $table", {"table": table}
                ).fetchall()
            ]
            if "score_run_id" in columns:
                chosen = ", ".join(name for name in columns if name != "finished_at")
                found[table] = con.execute(
                    f"select {chosen} from {table} where score_run_id = $score_run_id order by all",  # noqa: S608 - names from the file
                    {"score_run_id": score_run_id},
                ).fetchall()
        return found


def test_the_corpus_asset_starts_rescoring(state: State, lake: Lake, api: AirflowApi, root: Path) -> None:
    conf = {
        "recipe": "smoke",
        "ingest.corpus": "new",
        "ingest.source": str(write_shards(root / "new", start=500)),
        "ingest.tokenizer": str(lake.corpus("own").tokenizer / "tokenizer.json"),
        "ingest.sequence_length": T,
        "ingest.validation.source": "none",
    }
    assert follow(api, [("bliss_ingest", api.trigger("bliss_ingest", "ingest-new", conf))])
    run_id = run_of_corpus(api, "new")
    assert follow(api, [("bliss_rescore", run_id)])
    ((corpus, name),) = lake.further_score_names()
    assert (corpus, name.rsplit("-", 1)[0]) == ("new", f"{RUN}-round-02")
    num_sequences = len(rows_of(lake, f"scores/new/{name}")["all_scores"])
    assert num_sequences > 50
    events = api.call("GET", "/api/v2/assets/events?limit=100")["asset_events"]
    (event,) = [event for event in events if event["name"] == "bliss_scores"]
    assert event["partition_key"] == "new"
    assert {"corpus": "new", "scores": name, "num_shards_scored": 3, "num_sequences": num_sequences}.items() <= event["extra"].items()
    assert event["extra"]["tokens_per_second"] > 0


def test_nothing_to_do_is_green_in_seconds_and_submits_no_job(api: AirflowApi) -> None:
    """Needs the test before: `new` is scored."""
    begun = time.monotonic()
    run_id = api.trigger("bliss_rescore", "nothing", {"corpus": "new"})
    assert follow(api, [("bliss_rescore", run_id)])
    print(f"nothing to do: {time.monotonic() - begun:.1f} s")  # noqa: T201 - a measurement, shown with -s
    assert time.monotonic() - begun < 30
    assert states(api, "bliss_rescore", run_id) == {"plan": "success", "groups": "success", "rescore": "skipped", "load": "skipped"}


def test_a_killed_worker_and_two_dag_runs_at_once_leave_the_same_tables(state: State, lake: Lake, api: AirflowApi, root: Path) -> None:
    shutil.copytree(lake.root.path, root / "undisturbed")
    alone = Lake.open(root / "undisturbed")
    assert main(["rescore", RUN, "--round", "1", "--corpus", "many", "--lake", str(alone.root)]) == 0
    ((_, name),) = [found for found in alone.further_score_names() if found[0] == "many"]
    store.load_further(alone, "many", name)

    conf = {"corpus": "many", "runs": [RUN], "round": 1, "groups": 2}
    runs = [("bliss_rescore", api.trigger("bliss_rescore", run_id, conf)) for run_id in ("first", "second")]
    records = Path(lake.further_scores("many", name).path) / "_shards"
    wait_for(lambda: records.exists() and any(records.iterdir()))
    num_done = len(list(records.iterdir()))
    killed = _kill_task_processes(state)
    print(f"killed {killed} task processes after {num_done} of {NUM_SHARDS} shards")  # noqa: T201
    assert killed >= 1
    assert follow(api, runs)
    tasks = [task for run in runs for task in api.task_instances(*run)]
    assert sum(task.task_id == "rescore" for task in tasks) == 4  # both planned before either had finished
    assert any(task.try_number > 1 for task in tasks if task.task_id == "rescore")
    ours, theirs = (rows_of(each, f"scores/many/{name}") for each in (lake, alone))
    assert len(theirs["all_scores"]) > 1000
    assert ours == theirs
    for shard in range(NUM_SHARDS):
        here, there = (shard_file(each.further_scores("many", name), shard) for each in (lake, alone))
        assert here.read_bytes() == there.read_bytes()


def test_every_corpus_by_an_older_model_although_one_is_broken(lake: Lake, api: AirflowApi, root: Path) -> None:
    ingest(lake, "broken", write_shards(root / "broken", 2, start=700), *tokenizer_of(lake))
    shard = Path(shard_file(lake.corpus("broken").sequences, 1).path)
    shard.write_bytes(shard.read_bytes()[: shard.stat().st_size // 2])
    assert {pair.corpus for pair in rescoring.pending(lake, runs=[RUN], round_number=1)} == {"own", "new", "broken"}
    run_id = api.trigger("bliss_rescore", "older-model", {"runs": [RUN], "round": 1})
    assert not follow(api, [("bliss_rescore", run_id)])
    found = {label.split(":")[0]: state for label, state in states(api, "bliss_rescore", run_id).items() if label.startswith("load")}
    assert found == {"load [new": "success", "load [own": "success", "load [broken": "failed"}
    assert "shard-00001.parquet" in log_of(api, "bliss_rescore", run_id, "rescore")
    with duckdb.connect(str(lake.score_store), read_only=True) as con:
        loaded = con.execute("select corpus from score_runs where kind = 'rescored' and round = 1 order by 1").fetchall()
    assert loaded == [("many",), ("new",), ("own",)]


def test_a_pair_asked_for_by_name_that_does_not_fit_is_red_and_says_why(lake: Lake, api: AirflowApi, root: Path) -> None:
    ingest(lake, "misfit", write_shards(root / "misfit", 1), "--set", "ingest.vocab_size=600", "--set", "ingest.sequence_length=16")
    asked = api.trigger("bliss_rescore", "misfit-by-name", {"corpus": "misfit", "runs": [RUN]})
    found = api.trigger("bliss_rescore", "misfit-found", {"corpus": "misfit"})
    assert not follow(api, [("bliss_rescore", asked)])
    assert "its sequences have 16 tokens, the model reads 32" in log_of(api, "bliss_rescore", asked, "plan")
    assert follow(api, [("bliss_rescore", found)])
    assert "its sequences have 16 tokens, the model reads 32" in log_of(api, "bliss_rescore", found, "plan")


def test_the_nightly_run_starts_one_dag_run_per_corpus_with_work(lake: Lake, api: AirflowApi, root: Path) -> None:
    assert follow(api, [("bliss_rescore_nightly", api.trigger("bliss_rescore_nightly", "night", {}))])
    started = {run["conf"]["corpus"]: run["dag_run_id"] for run in dag_runs(api, "bliss_rescore") if run["dag_run_id"].endswith(".night")}
    assert set(started) == {"broken", "many", "own"}  # `new` is scored by the newest model, `misfit` cannot be
    follow(api, [("bliss_rescore", run_id) for run_id in started.values()])
    assert {corpus: api.dag_run_state("bliss_rescore", run_id) for corpus, run_id in started.items()} == {
        "broken": "failed",
        "many": "success",
        "own": "success",
    }


def test_files_dropped_into_the_watched_folder_end_as_scores_in_the_store(lake: Lake, api: AirflowApi, root: Path) -> None:
    begun = time.monotonic()
    broken = write_gz(root / "elsewhere" / "a.json.gz", rows(30))
    broken.write_bytes(broken.read_bytes()[:-20])
    for name, source in (("damaged", root / "elsewhere"), ("dropped", write_shards(root / "prepared", 2, start=800))):
        shutil.copytree(source, root / "drop" / name)
    run_id = run_of_corpus(api, "dropped")
    assert follow(api, [("bliss_rescore", run_id)])
    print(f"dropped -> scores in the store: {time.monotonic() - begun:.0f} s")  # noqa: T201
    with duckdb.connect(str(lake.score_store), read_only=True) as con:
        (num_sequences,) = con.execute("select num_sequences from score_runs where corpus = 'dropped'").fetchone()
    assert num_sequences > 10
    wait_for(lambda: api.dag_run_state("bliss_ingest", "landed-damaged") == "failed")
    assert "is cut off" in log_of(api, "bliss_ingest", "landed-damaged", "extract")
    assert api.dag_run_state("bliss_ingest", "landed-dropped") == "success"

    write_gz(root / "drop" / "dropped" / "later.json.gz", rows(12, start=850))
    assert follow(api, [("bliss_rescore", run_of_corpus(api, "dropped-part-02"))])
    files = [entry["uri"] for entry in json.loads((lake.corpus("dropped-part-02").source / "shards.json").read_bytes())]
    assert files == [str(root / "drop" / "dropped" / "later.json.gz")]
    assert landing.is_ingested(lake.corpus("dropped-part-02"))
    assert all(run["state"] in ("success", "running") for run in dag_runs(api, "bliss_land"))


def _kill_task_processes(state: State) -> int:
    """SIGKILL every process that runs a task, as the kernel does when memory is short."""
    found = []
    for process in processes.living(state.services, state.layout.marker):
        title = process.cmdline()[0] if process.cmdline() else ""
        if title.startswith("airflow worker -- ") and "LocalExecutor" not in title and process.pid != os.getpid():
            process.kill()
            found.append(process.pid)
    return len(found)
