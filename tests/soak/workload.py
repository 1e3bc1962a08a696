"""What the soak has the stack do: rounds, newly landed corpora, nightly re-scorings; and who reads meanwhile: SQL and explorer pages."""

import itertools
import json
import random
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import quote

from bliss_ops import queries
from bliss_ops.lake import Lake
from bliss_ops.rescoring import score_models
from bliss_ops.sql import ask, open_snapshot
from bliss_ops.stack.airflow_api import FINISHED
from tests.rescoring.lakes import write_shards
from tests.soak.patient import PatientApi
from tests.soak.timeline import Timeline

RECIPE = "smoke"
METHODS = ("bliss", "random", "perplexity", "dsir")
SETTINGS = {"fidelity.num_probes": 16}
LANDING_SECONDS, NIGHTLY_SECONDS, CHECK_SECONDS = 240.0, 480.0, 270.0
DOUBLED = "select score_run_id, sequence_id from all_scores group by all having count(*) > 1 order by all limit 3"
INCOMPLETE = """
select r.score_run_id, r.num_sequences, count(s.sequence_id) as num_rows
from score_runs r left join all_scores s using (score_run_id) group by all having num_rows <> r.num_sequences order by all limit 3
"""
SCORE_RUNS = "select score_run_id, corpus, kind, run from score_runs order by finished_at, score_run_id"


def run_rounds(api: PatientApi, timeline: Timeline, stop: threading.Event, names: "Names", num_rounds: int) -> None:
    """One run after the other, until `stop` is set; returns when the last one has ended."""
    while not stop.is_set():
        method, seed = next(names)
        name = f"{RECIPE}-{method}-s{seed}"
        conf = {"recipe": RECIPE, "method": method, "seed": seed, "round": 1, "name": name, "num_rounds": num_rounds, **SETTINGS}
        run_id = api.trigger_once("bliss_round", f"{name}-round-01", conf)
        timeline.write("trigger", dag="bliss_round", run=run_id)
        while any(run["dag_id"] == "bliss_round" and run["dag_run_id"].startswith(f"{name}-round-") for run in api.unfinished_dag_runs()):
            time.sleep(3.0)


class Names:
    """Methods in turn, each time round with the next seed, for several threads."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    def __iter__(self) -> "Names":
        return self

    def __next__(self) -> tuple[str, int]:
        with self._lock:
            number = next(self._numbers)
        return METHODS[number % len(METHODS)], self._seed + number // len(METHODS)


def ingest(api: PatientApi, timeline: Timeline) -> None:
    """The corpus of all rounds, before anything else can run; killed processes or not."""
    run_id = api.trigger_once("bliss_ingest", f"ingest-{RECIPE}", {"recipe": RECIPE})
    timeline.write("trigger", dag="bliss_ingest", run=run_id)
    while api.dag_run_state("bliss_ingest", run_id) not in FINISHED or api.dag_run_state("bliss_ingest", run_id) == "failed":
        time.sleep(2.0)


def land(
    lake: Lake, drop: Path, prepared: Path, timeline: Timeline, stop: threading.Event, seed: int, every: float = LANDING_SECONDS
) -> None:
    """A new folder of files every few minutes; every third time files are added to the one before, which become a part of it."""
    while not score_models(lake):  # what lands before there is a score model is ingested in another way
        if stop.wait(5.0):
            return
    for number in itertools.count():
        start = 100_000 * (seed + 1) + 1000 * number
        adds = number % 3 == 2
        folder = f"landed-{number - adds:02d}"
        source = write_shards(prepared / f"{number:02d}", 2, start=start, documents=40)
        if adds:
            for file in sorted(source.iterdir()):
                shutil.copy(file, drop / folder / f"later-{file.name}")
        else:
            shutil.copytree(source, drop / folder)
        timeline.write("landing", folder=folder, adds=adds)
        if stop.wait(every):
            return


def rescore_nightly(api: PatientApi, timeline: Timeline, stop: threading.Event, every: float = NIGHTLY_SECONDS) -> None:
    """Nights that follow each other quickly."""
    for number in itertools.count(1):
        if stop.wait(every):
            return
        run_id = api.trigger_once("bliss_rescore_nightly", f"night-{number:02d}", {})
        timeline.write("trigger", dag="bliss_rescore_nightly", run=run_id)


def check_store(lake: Lake, timeline: Timeline, stop: threading.Event, every: float = CHECK_SECONDS) -> None:
    """`bliss store check` beside the loads: it may find what is not loaded yet, and nothing else."""
    while not stop.wait(every):
        if Path(lake.score_store.path).exists():
            timeline.write("check", **store_check(lake))


def store_check(lake: Lake) -> dict[str, object]:
    begun = time.monotonic()
    command = [sys.executable, "-m", "bliss_ops.cli", "store", "check", "--lake", str(lake.root)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    *problems, verdict = [*result.stdout.splitlines(), ""][:-1] or [""]
    lines = [] if result.returncode in (0, 1) and "Traceback" not in result.stderr else result.stderr.splitlines()[-5:]
    return {
        "rc": result.returncode,
        "took": round(time.monotonic() - begun, 1),
        "verdict": verdict,
        "problems": problems,
        "error": lines or [line for line in result.stderr.splitlines() if line.startswith("bliss store")],
    }


class Reader:
    """Counts what a reader asked and keeps every error; `name` says which reader."""

    def __init__(self, name: str, timeline: Timeline) -> None:
        self.name, self.timeline = name, timeline
        self.num_answers = 0
        self.num_refusals = 0
        self.num_errors = 0
        self.slowest_seconds = 0.0

    def ask(self, what: str, question: Callable[[], object]) -> object:
        begun = time.monotonic()
        try:
            answer = question()
        except ValueError as error:  # nothing to answer with yet: no evaluation, no second selector
            self.num_refusals += 1
            self.timeline.write("read", reader=self.name, what=what, refused=str(error)[:300])
            return None
        except Exception as error:  # noqa: BLE001 - whatever a reader meets is what the soak is to find
            self.num_errors += 1
            self.timeline.write("reader error", reader=self.name, what=what, error=f"{type(error).__name__}: {str(error)[:400]}")
            return None
        self.num_answers += 1
        self.slowest_seconds = max(self.slowest_seconds, time.monotonic() - begun)
        return answer

    def finish(self) -> None:
        counts = {"answers": self.num_answers, "refusals": self.num_refusals, "errors": self.num_errors}
        self.timeline.write("reader", reader=self.name, **counts, slowest=round(self.slowest_seconds, 2))


def read_sql(lake: Lake, timeline: Timeline, stop: threading.Event, seed: int) -> None:
    """Named queries in random order, and twice a round the store's own promises: no score twice, as many rows as a score run says."""
    reader, chooser = Reader("sql", timeline), random.Random(seed)  # noqa: S311
    names = queries.names()

    def promised(statement: str) -> Callable[[], object]:
        def question() -> object:
            with open_snapshot(lake) as con:
                if found := con.execute(statement).fetchall():
                    raise AssertionError(f"{found[0]}: {statement.strip()}")
            return True

        return question

    while not stop.wait(1.0):
        if not Path(lake.score_store.path).exists():
            continue
        for what, statement in (("doubled", DOUBLED), ("incomplete", INCOMPLETE)):
            reader.ask(what, promised(statement))
        name = chooser.choice(names)
        if all(parameter.default is not None for parameter in queries.load(name).parameters):
            reader.ask(name, partial(ask, lake, name))
    reader.finish()


def read_pages(lake: Lake, address: str, timeline: Timeline, stop: threading.Event, seed: int) -> None:
    """Pages of the explorer that a person would look at, about the score runs that are there."""
    reader, chooser = Reader("explorer", timeline), random.Random(seed)  # noqa: S311
    while not stop.wait(1.0):
        if not Path(lake.score_store.path).exists():
            continue
        with open_snapshot(lake) as con:
            score_runs = [row[0] for row in con.execute(SCORE_RUNS).fetchall()]
        pages = ["/", "/overlap", "/sql"]
        if score_runs:
            pages += [
                f"/{page}/{quote(chooser.choice(score_runs))}" for page in ("run", "examples", "sources", "domains", "rounds", "beside")
            ]
        page = chooser.choice(pages)
        reader.ask(page, partial(fetch, f"{address}{page}"))
    reader.finish()


def fetch(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=60) as response:
        content: bytes = response.read()
    assert b"</html>" in content, f"{url}: {content[:200]!r}"
    return content


def watch_health(api_url: str, timeline: Timeline, stop: threading.Event) -> None:
    """How long each part of Airflow was away, as its own health page says; the API server's absence is a part of its own."""
    before: dict[str, str] = {}
    while not stop.wait(1.0):
        try:
            with urllib.request.urlopen(f"{api_url}/api/v2/monitor/health", timeout=30) as response:
                now = {name: str(part.get("status")) for name, part in json.loads(response.read()).items()} | {"api-server": "healthy"}
        except (URLError, ConnectionError, TimeoutError, HTTPError) as error:
            now = before | {"api-server": type(error).__name__}
        for name, status in now.items():
            if before.get(name) != status:
                timeline.write("health", part=name, status=status)
        before = now


@contextmanager
def explorer(lake: Lake, log_file: Path) -> Iterator[str]:
    """`bliss explore` over the lake, in a process of its own that nobody kills; yields its address."""
    command = [sys.executable, "-m", "bliss_ops.cli", "explore", "--port", "0", "--lake", str(lake.root)]
    with log_file.open("wb") as output, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=output, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            yield next(word for word in line.split() if word.startswith("http")).rstrip("/")
        finally:
            process.terminate()
            process.wait()
