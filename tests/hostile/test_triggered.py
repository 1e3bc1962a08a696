"""Hostile values that a form's schema lets pass, triggered through Airflow's real REST API and run by its real scheduler.

Each ends in a red task that says what was wrong, or is text and nothing else: in the corpus's config, and in no argument of the job that
Ray is asked for. Values that are refused together share a DAG run, so that all of it takes a few minutes.
"""

import json
import shlex
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bliss_ops.names import check_address
from bliss_ops.stack.airflow_api import AirflowApi
from tests.explorer.airflow_server import PASSWORDS, airflow_server
from tests.ray.jobs_api import JobsApi, jobs_api

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(find_spec("airflow") is None, reason="Airflow is not installed"),
]
SECONDS = 400.0  # for all of them, on a busy machine


class Red(NamedTuple):
    """A DAG run whose first task has to fail."""

    dag_id: str
    task_id: str
    conf: dict[str, Any]
    names: list[str]  # what its message has to contain


def is_address(text: str) -> bool:
    try:
        check_address(text)
    except ValueError:
        return False
    return True


def injections() -> list[str]:
    from tests.hostile.test_forms import INJECTIONS

    return INJECTIONS


def sources(*, good: bool) -> list[dict[str, str]]:
    """Further validation sets, one for each injection that is (not) an address."""
    return [{"source": text} for text in injections() if is_address(text) is good]


def refused_settings() -> Iterator[Red]:
    """The table of the forms in few DAG runs: each can have a setting once, and two errors come before all others."""
    from tests.hostile.test_forms import REFUSED_BY_THE_SETTINGS

    runs: list[Red] = []
    for key, value, names in REFUSED_BY_THE_SETTINGS:
        comes_first = key in ("description.x", "target.architecture")
        run = None if comes_first else next((each for each in runs if key not in each.conf and len(each.conf) > 1), None)
        if run is None:
            run = Red("bliss_round", "configure", {"recipe": "smoke"} | ({} if comes_first else {"seed": 1}), [])
            runs.append(run)
        run.conf[key] = value
        run.names.append(names or "model_type")
    return iter(runs)


def reds() -> list[Red]:
    named = "is not a valid name"
    bad = sources(good=False)
    of_names = [f"compare_with.{number}: " for number in range(len(injections()))]
    of_sources = [f"others.{number}.source: " for number in range(len(bad))]
    return [
        *refused_settings(),
        Red("bliss_round", "configure", {"recipe": "smoke", "compare_with": injections()}, of_names),
        Red("bliss_round", "configure", {"recipe": "smoke", "name": "$(touch pwned)"}, ["name: ", named]),
        Red("bliss_ingest", "configure", {"recipe": "smoke", "ingest.validation.others": bad}, of_sources),
        Red("bliss_compare", "configure", {"recipe": "smoke", "name": "; touch pwned"}, [named]),
        Red("bliss_rescore", "plan", {"corpus": "; touch pwned"}, [named]),
        Red("bliss_rescore", "plan", {"runs": ["--lake=/tmp; touch pwned"]}, [named]),
        Red("bliss_land", "look", {"prefix": "$(touch pwned)", "settle_seconds": 0}, ["$(touch pwned)", "does not exist"]),
    ]


class Stack(NamedTuple):
    api: AirflowApi
    jobs: JobsApi
    lake: Path
    directory: Path


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    lake, directory = tmp_path_factory.mktemp("lake"), tmp_path_factory.mktemp("airflow")
    with jobs_api() as jobs:
        ray = {"conn_type": "http", "host": "127.0.0.1", "port": int(jobs.address.rpartition(":")[2])}
        variables = {"BLISS_RETRY_SECONDS": "0.1", "AIRFLOW_CONN_RAY_DEFAULT": json.dumps(ray)}
        with airflow_server(str(lake), directory, with_dags=True, with_scheduler=True, variables=variables) as server:
            yield Stack(AirflowApi(server.url, "admin", PASSWORDS["admin"]), jobs, lake, directory)


def test_what_the_schema_lets_pass_is_refused_by_name_or_stays_text(stack: Stack) -> None:
    api, begun = stack.api, time.monotonic()
    texts = sources(good=True)
    accepted = {
        "recipe": "smoke", "ingest.corpus": "x", "ingest.source": "; touch pwned", "ingest.tokenizer": "$(touch pwned)",
        "ingest.validation.others": texts,
    }  # fmt: skip
    api.trigger("bliss_ingest", "accepted", accepted)
    runs = {f"hostile-{number}": red for number, red in enumerate(reds())}
    for run_id, red in runs.items():
        api.trigger(red.dag_id, run_id, red.conf)
    for run_id, red in runs.items():
        while (state := api.dag_run_state(red.dag_id, run_id)) in ("queued", "running"):
            assert time.monotonic() - begun < SECONDS, (run_id, red)
            time.sleep(0.5)
        tasks = {task.task_id: task for task in api.task_instances(red.dag_id, run_id)}
        assert (state, tasks[red.task_id].state) == ("failed", "failed")
        said = "\n".join(api.task_log(red.dag_id, run_id, tasks[red.task_id]))
        assert [name for name in red.names if name not in said] == []
        assert said.count("there is no such setting") >= red.names.count("there is no such setting")
        assert "hunter2" not in said
        assert "success" not in {task.state for task in tasks.values()}

    while not stack.jobs.jobs:
        assert time.monotonic() - begun < SECONDS
        time.sleep(0.5)
    (job,) = stack.jobs.jobs.values()
    assert shlex.split(job.body["entrypoint"])[-3:] == ["bliss", "discover", "x"]
    config = json.loads((stack.lake / "corpora" / "x" / "config.json").read_bytes())
    assert config["source"].endswith("/; touch pwned")
    assert config["tokenizer"].endswith("/$(touch pwned)")
    others = [each["source"].removeprefix(f"{stack.directory}/") for each in config["validation"]["others"]]
    assert others == [each["source"] for each in texts]
    assert [path for root in (stack.lake, stack.directory, Path.cwd()) for path in root.glob("**/pwned")] == []
    assert [path.name for path in (stack.lake / "corpora").iterdir()] == ["x"]
    assert not (stack.lake / "runs").exists()
