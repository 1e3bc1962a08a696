"""The gates as Airflow tasks: red at once and for good, announced only when green, and nothing heavy imported."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("airflow")

from airflow.sdk import Asset
from airflow.sdk.exceptions import AirflowFailException

from bliss_ops.airflow.checks import CheckOperator
from bliss_ops.configure import move_bounds
from bliss_ops.lake import Lake
from tests.gates.test_gates import count, list_files
from tests.lakes import make_corpus, produce

CORPUS = Asset(name="corpus_of_a_test", uri="bliss://corpus_of_a_test")


class Event:
    def __init__(self) -> None:
        self.partitions: list[str] = []
        self.extra: dict[str, Any] = {}

    def add_partitions(self, keys: list[str]) -> None:
        self.partitions += keys


@pytest.fixture
def lake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lake:
    lake = make_corpus(tmp_path / "lake")
    list_files(lake, ["a", "b"])
    count(lake, num_documents=40, num_rejects=0)
    produce(lake, lake.corpus("tiny").validation, "prepare_validation", lambda _: ([], {}))
    monkeypatch.setenv("BLISS_LAKE", str(lake.root))
    return lake


def execute(**context: Any) -> Event:
    event = Event()
    CheckOperator(task_id="check_corpus", subcommand="check-corpus", subject="tiny", outlets=[CORPUS]).execute(
        {"outlet_events": {CORPUS: event}, **context}  # type: ignore[arg-type]
    )
    return event


def test_a_good_corpus_is_announced_with_its_counts(lake: Lake) -> None:
    event = execute()
    assert event.partitions == ["tiny"]
    assert event.extra == {"corpus": "tiny", "num_shards": 2, "num_sequences": 60}


def test_a_bad_one_is_red_without_a_retry_and_green_after_the_bound_was_moved(lake: Lake) -> None:
    move_bounds(lake.corpus("tiny"), {"min_documents": 1000})
    with pytest.raises(AirflowFailException, match=r"40 documents were accepted; ingest\.gates\.min_documents is 1,000"):
        execute()
    move_bounds(lake.corpus("tiny"), {"min_documents": 1})
    assert execute().partitions == ["tiny"]


def test_what_a_check_imports_is_light(lake: Lake) -> None:
    code = (
        "import sys\n"
        "from bliss_ops import pipeline\nfrom bliss_ops.lake import Lake\n"
        "pipeline.check_corpus(Lake.open().corpus('tiny'))\n"
        "print([name for name in ('torch', 'duckdb', 'ray', 'transformers') if name in sys.modules])"
    )
    begun = time.monotonic()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
    assert time.monotonic() - begun < 20, "about one second on a machine that has nothing else to do"
