"""Parsing takes less than a second of processor time, each DAG file as the DAG processor does it, and all of them after each other.

The DAG processor has imported Airflow and forks a process per file, which imports our modules anew each time.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
DAG_FILES = sorted(str(path) for path in (REPOSITORY / "dags").glob("*.py"))
MOST_SECONDS = 1.0

PARSE = """
import json, os, sys, time
import structlog
from airflow.dag_processing.dagbag import DagBag
from airflow.dag_processing.processor import _pre_import_airflow_modules

def parse(file):
    begun = time.process_time()
    bag = DagBag(file)
    return {"seconds": time.process_time() - begun, "errors": bag.import_errors, "dags": len(bag.dags)}

def in_a_fork(file):
    receive, send = os.pipe()
    if not (child := os.fork()):
        os.write(send, json.dumps(parse(file)).encode())
        os._exit(0)
    os.waitpid(child, 0)
    return json.loads(os.read(receive, 1 << 16))

for file in sys.argv[1:]:
    _pre_import_airflow_modules(file, structlog.get_logger())
assert not any(name.startswith("bliss_ops") for name in sys.modules)
alone = {file: in_a_fork(file) for file in sys.argv[1:]}
print(json.dumps({"alone": alone, "together": {file: parse(file) for file in sys.argv[1:]}}))
"""


@pytest.fixture(scope="module")
def parsed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, dict]]:
    settings = {"AIRFLOW_HOME": str(tmp_path_factory.mktemp("airflow")), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
    command = [sys.executable, "-c", PARSE, *DAG_FILES]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY, env=os.environ | settings)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("file", DAG_FILES, ids=lambda file: Path(file).stem)
def test_a_file_is_parsed_within_a_second(parsed: dict[str, dict[str, dict]], file: str) -> None:
    found = parsed["alone"][file]
    assert found["errors"] == {}
    assert found["dags"] == 1
    assert found["seconds"] < MOST_SECONDS


def test_so_are_all_of_them_after_each_other(parsed: dict[str, dict[str, dict]]) -> None:
    assert sum(found["seconds"] for found in parsed["together"].values()) < MOST_SECONDS
