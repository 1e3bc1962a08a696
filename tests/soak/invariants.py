"""What must hold at the end of a soak: each check says yes or no, with its figures and, where it is no, what was found."""

import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError

import psutil

from bliss_ops.lake import TEMPORARY, Lake
from bliss_ops.sql import open_snapshot
from bliss_ops.stack import processes
from bliss_ops.stack.state import State
from tests.soak import timeline as timelines

WARM_UP_SECONDS = 120.0  # of a process: imports, caches
LIFE_SECONDS = 300.0  # a shorter life says nothing about growth
JUDGED_SECONDS = 1200.0  # of all lives of a kind together; less is shown and not judged
MEGABYTES_PER_HOUR = 120.0
FDS_PER_HOUR = 60.0
ACTIVE = ("PENDING", "RUNNING")
SERVERS = ("scheduler", "api-server", "triggerer", "dag-processor", "supervisor", "gcs server", "raylet", "explorer")
TEMPORARY_SECONDS = 86400.0  # what a killed writer left is swept at this age

RAY_HEAD = ("raylet", "gcs server", "ray head", "ray dashboard")


@dataclass(frozen=True)
class Explained:
    """Tracebacks with such a last line follow from the death of one of these."""

    pattern: str
    victims: tuple[str, ...]
    why: str


EXPLAINED = (
    Explained(r"^(httpcore|httpx)\.\w*Error: ", ("api-server",), "a task's request while the API server was away"),
    Explained(
        r"The current node timed out during startup", RAY_HEAD, "a start of Ray's head on a busy machine; the supervisor starts it again"
    ),
    Explained(r"IncompleteReadError", ("triggerer",), "the trigger runner, whose triggerer was killed"),
    Explained(
        r"^(BrokenPipeError: .*Broken pipe|ConnectionResetError: .*reset by peer)$",
        ("task", "executor worker", "scheduler"),
        "of a task's process and its executor worker one was killed: the other one talks into a closed socket",
    ),
    Explained(
        r"^EOFError: Request socket closed before length$",
        ("dag-processor", "executor worker", "scheduler"),
        "the process of a DAG file or a task, whose parent was killed",
    ),
)


@dataclass
class Check:
    """One invariant: whether it held, its figures, and what broke it."""

    name: str
    held: bool
    figures: dict[str, Any] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)


# ---- while the stack is still up -------------------------------------------------------------------------------------


def no_ray_job(state: State) -> Check:
    """No job is left that runs or waits for its turn, and none of its processes."""
    jobs = [f"Ray job {job['submission_id']} is {job['status']}: {job['entrypoint']}" for job in ray_jobs(state) if job["status"] in ACTIVE]
    drivers = []
    for process in processes.living(state.services, state.layout.marker):
        with contextlib.suppress(psutil.Error):  # it has ended meanwhile
            words = " ".join(process.cmdline())
            if re.search(r"/bliss [a-z]", words):
                drivers.append(f"pid {process.pid}: {words}")
    return Check("no orphan Ray job, no orphan driver", not jobs + drivers, {"jobs": len(jobs), "drivers": len(drivers)}, jobs + drivers)


def ray_jobs(state: State) -> list[dict[str, Any]]:
    """The jobs that were submitted since the head's last restart; the head may be on its way back."""
    token = state.layout.ray_token.read_text().strip()
    request = urllib.request.Request(f"{state.layout.ray_url}/api/jobs/", headers={"Authorization": f"Bearer {token}"})
    deadline = time.monotonic() + 120.0
    while True:
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return [job for job in json.loads(response.read()) if job["submission_id"]]
        except (URLError, ConnectionError, TimeoutError):
            if time.monotonic() > deadline:
                raise
            time.sleep(2.0)


# ---- of what is on the disk ------------------------------------------------------------------------------------------


def store_is_files(final_check: dict[str, Any], lake: Lake) -> Check:
    """`bliss store check` finds nothing, and no score is there twice."""
    with open_snapshot(lake) as con:
        ((rows, distinct, score_runs),) = con.execute(
            "select count(*), count(distinct (score_run_id, sequence_id)), count(distinct score_run_id) from all_scores"
        ).fetchall()
    findings = [*final_check["problems"], *final_check["error"]]
    findings += [f"{rows - distinct} scores are there more than once"] if rows != distinct else []
    held = final_check["rc"] == 0 and rows == distinct
    return Check(
        "store = files, nothing doubled", held, {"score_runs": score_runs, "scores": rows, "verdict": final_check["verdict"]}, findings
    )


def landed_are_scored(lake: Lake, drop: Path) -> Check:
    """Every file that was dropped into the watched folder is in a corpus with scores in the store."""
    with open_snapshot(lake) as con:
        scored = {corpus for (corpus,) in con.execute("select distinct corpus from score_runs order by corpus").fetchall()}
    corpus_of = {
        entry["uri"]: name
        for name in lake.corpus_names()
        if (listing := lake.corpus(name).source / "shards.json").exists()
        for entry in json.loads(listing.read_bytes())
    }
    files = sorted(str(path) for path in drop.rglob("*.json.gz"))
    missing = [
        f"{file}: {corpus_of.get(file, 'in no corpus')}, no scores in the store" for file in files if corpus_of.get(file) not in scored
    ]
    return Check(
        "every landed file is scored", not missing, {"files": len(files), "corpora": len({corpus_of.get(f) for f in files})}, missing
    )


def temporary_files_end(lake: Lake) -> Check:
    """What killed writers left behind is younger than the age at which `bliss gc` takes it, and at that age `bliss gc` takes all of it."""
    left = [path for path in Path(lake.root.path).rglob("*") if path.is_file() and TEMPORARY in path.name]
    ages = {path: time.time() - path.stat().st_mtime for path in left}
    old = [f"{path}: {age:.0f} s old" for path, age in ages.items() if age > TEMPORARY_SECONDS]
    figures = {"left_by_kills": len(left), "megabytes": round(sum(path.stat().st_size for path in left) / 1e6, 2)}
    for path in left:
        os.utime(path, (time.time() - 2 * 86400.0,) * 2)
    command = ["gc", "--only", "temporary", "--delete", "--lake", str(lake.root)]
    result = subprocess.run([sys.executable, "-m", "bliss_ops.cli", *command], capture_output=True, text=True, check=False)
    old += [f"`bliss {' '.join(command)}`: {result.stderr[-500:]}"] if result.returncode else []
    old += [f"{path} is left by `bliss gc` at any age" for path in left if path.exists()]
    return Check("temporary files have an end", not old, figures, old)


# ---- of the timeline -------------------------------------------------------------------------------------------------


def reds_are_explained(events: Sequence[dict[str, Any]]) -> Check:
    """A DAG run was red only where a task was hit as often as it has tries; cleared, it became green."""
    reds = [event for event in events if event["kind"] == "red"]
    odd = [f"{red['dag']} {red['run']} {red['task']}: tries {red['tries']}, kills {red['kills']}" for red in reds if not red["explained"]]
    return Check("red only where hit more often than retried", not odd, {"red": len(reds), "explained": len(reds) - len(odd)}, odd)


def all_green(events: Sequence[dict[str, Any]]) -> Check:
    last: dict[tuple[str, str], str] = {}
    for event in events:
        if event["kind"] == "dag run":
            last[event["dag"], event["run"]] = event["state"]
    findings = [f"{dag} {run}: {state}" for (dag, run), state in last.items() if state != "success"]
    findings += [f"not quiet in time: {run}" for event in events if event["kind"] == "not quiet" for run in event["runs"]]
    return Check("every DAG run ended green", not findings, dict(Counter(dag for dag, _ in last)), findings)


def none_stuck(events: Sequence[dict[str, Any]]) -> Check:
    stuck = [
        f"{each['dag']} {each['run']} {each['task']} is {each['state']} since {each['since']}" for each in events if each["kind"] == "stuck"
    ]
    return Check("no task stuck", not stuck, {}, stuck)


def no_reader_error(events: Sequence[dict[str, Any]]) -> Check:
    readers = [event for event in events if event["kind"] == "reader"]
    errors = [f"{event['reader']} {event['what']}: {event['error']}" for event in events if event["kind"] == "reader error"]
    for check in (event for event in events if event["kind"] == "check"):
        errors += [f"bliss store check: {line}" for line in [*check["problems"], *check["error"]] if not _is_unfinished(line)]
    figures = {reader["reader"]: {key: reader[key] for key in ("answers", "refusals", "errors", "slowest")} for reader in readers}
    return Check("no reader error", not errors, figures, errors)


def _is_unfinished(problem: str) -> bool:
    """What `bliss store check` may say beside a load that is on its way."""
    return any(
        words in problem for words in ("not in the snapshot as in Parquet", "was loaded in part only", "of the snapshot is not that of")
    )


def no_zombies(samples: Sequence[dict[str, Any]]) -> Check:
    """None stays: one that the next sample still shows is one that nobody waits for."""
    counts = [sample["num_zombies"] for sample in samples]
    lasting = [min(counts[i : i + 6]) for i in range(max(1, len(counts) - 5))]
    return Check(
        "no zombie stays a minute",
        max(lasting, default=0) == 0,
        {"most": max(counts, default=0), "at the end": counts[-1] if counts else 0},
    )


def memory(samples: Sequence[dict[str, Any]]) -> Check:
    """Growth of each server in each of its lives, in MB an hour; the whole stack beside it."""
    return _growth("memory", samples, column=2, total="megabytes", most_per_hour=MEGABYTES_PER_HOUR, unit="MB")


def file_descriptors(samples: Sequence[dict[str, Any]]) -> Check:
    """The same of open file descriptors."""
    return _growth("file descriptors", samples, column=3, total="num_fds", most_per_hour=FDS_PER_HOUR, unit="open files")


def _growth(name: str, samples: Sequence[dict[str, Any]], *, column: int, total: str, most_per_hour: float, unit: str) -> Check:
    findings: list[str] = []
    figures: dict[str, Any] = {}
    for kind, found in lives(samples, column).items():
        typical = statistics.median(life.per_hour for life in found)
        is_judged = kind in SERVERS and sum(life.seconds for life in found) >= JUDGED_SECONDS
        most = max(life.per_hour for life in found)
        figures[kind] = {"lives": len(found), f"{unit} per hour, median": round(typical), "most": round(most), "judged": is_judged}
        if is_judged and typical > most_per_hour:
            findings.append(f"{kind}: {typical:+.0f} {unit} an hour, the median of {len(found)} lives")
    whole = [(sample["seconds"], float(sample[total])) for sample in samples]
    figures["whole stack"] = {
        "mean": round(statistics.fmean(y for _, y in whole), 1) if whole else 0.0,
        "most": max((y for _, y in whole), default=0.0),
        "per hour": round(slope(whole)),
    }
    return Check(name, not findings, figures, findings)


@dataclass(frozen=True)
class Life:
    """One process, from two minutes after it was first seen."""

    seconds: float
    per_hour: float


def lives(samples: Sequence[dict[str, Any]], column: int) -> dict[str, list[Life]]:
    """By kind, the growth of each process that was seen for LIFE_SECONDS."""
    points: dict[tuple[int, str], list[tuple[float, float]]] = defaultdict(list)
    for sample in samples:
        for each in sample["each"]:
            points[each[0], each[1]].append((sample["seconds"], float(each[column])))
    found: dict[str, list[Life]] = defaultdict(list)
    for (_, kind), seen in points.items():
        if seen[-1][0] - seen[0][0] >= LIFE_SECONDS:
            grown = [(at, value) for at, value in seen if at >= seen[0][0] + WARM_UP_SECONDS]
            found[kind].append(Life(grown[-1][0] - grown[0][0], slope(grown)))
    return dict(sorted(found.items()))


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Least squares, per hour."""
    if len({x for x, _ in points}) < 2:
        return 0.0
    xs, ys = zip(*points, strict=True)
    return statistics.linear_regression(xs, ys).slope * 3600


def disk(samples: Sequence[dict[str, Any]], events: Sequence[dict[str, Any]]) -> Check:
    """What grew, and per what: a DAG run, a restart of Ray's head."""
    num_dag_runs = len({(event["dag"], event["run"]) for event in events if event["kind"] == "dag run"}) or 1
    figures: dict[str, Any] = {"DAG runs": num_dag_runs}
    if samples:
        first, last = samples[0]["disk_megabytes"], samples[-1]["disk_megabytes"]
        for name, size in last.items():
            figures[name] = {
                "MB": round(size, 1),
                "grown": round(size - first[name], 1),
                "per DAG run": round((size - first[name]) / num_dag_runs, 2),
            }
    return Check("disk", True, figures)


def tracebacks(logs: Path, events: Sequence[dict[str, Any]]) -> Check:
    """Every traceback in a server's log is of a kind that a kill explains, and there was such a kill."""
    killed = {event["victim"] for event in events if event["kind"] == "kill"}
    known: Counter[str] = Counter()
    odd: Counter[str] = Counter()
    for path in sorted(logs.glob("*.log")):
        for last_line in last_lines_of_tracebacks(path.read_text(errors="replace")):
            why = next((each.why for each in EXPLAINED if killed & set(each.victims) and re.search(each.pattern, last_line)), None)
            if why:
                known[why] += 1
            else:
                odd[f"{path.name}: {re.sub('0x[0-9a-f]+|[0-9a-f-]{36}|[0-9]+', '#', last_line)[:260]}"] += 1
    findings = [f"{line} ({count} times)" for line, count in odd.most_common()]
    return Check("no unexplained traceback", not findings, dict(known.most_common()), findings)


def last_lines_of_tracebacks(text: str) -> Iterator[str]:
    """The line with the exception of each traceback."""
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if "Traceback (most recent call last)" not in line:
            continue
        indent = len(line) - len(line.lstrip())
        for following in lines[number + 1 :]:
            if following.strip() and len(following) - len(following.lstrip()) <= indent:
                yield following.strip()
                break


def of_timeline(path: Path) -> list[Check]:
    """Every check that the timeline alone answers."""
    events = timelines.read(path)
    samples = [event for event in events if event["kind"] == "sample"]
    return [
        all_green(events),
        reds_are_explained(events),
        none_stuck(events),
        no_reader_error(events),
        no_zombies(samples),
        memory(samples),
        file_descriptors(samples),
        disk(samples, events),
    ]
