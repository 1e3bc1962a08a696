"""What mapped groups cost the scheduler: a DAG run of a round's tasks with `score` over 64 groups, beside one of a single group, A B A B.

    .venv/bin/python benchmarks/scheduler_loop.py                         # SQLite, as `bliss up` starts Airflow; about eight minutes
    .venv/bin/python benchmarks/scheduler_loop.py --postgres /usr/lib/postgresql/15/bin --task-slots 8
    .venv/bin/python benchmarks/scheduler_loop.py --set SCHEDULER__MAX_TIS_PER_QUERY=64        # Airflow settings to compare by
    .venv/bin/python benchmarks/scheduler_loop.py --profile loop.svg      # where the scheduler's time goes (needs py-spy)

Airflow is started with the settings of the embedded stack; Ray's Jobs API is played by a server whose jobs take half a second, so that
orchestration alone is measured. The loop's duration is the one that the scheduler logs, processor time is that of its own process (tasks
are others), gaps are between one task's end and its successor's start, and the API is asked once a second for its health and the tasks.
Ends with one line of JSON.
"""

import argparse
import contextlib
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import psutil
from stand_ins import ray_jobs

from bliss_ops.airflow import GPU_POOL
from bliss_ops.stack import processes, services
from bliss_ops.stack.airflow_api import FINISHED, AirflowApi, AirflowError
from bliss_ops.stack.processes import Service

DAG_ID = "round_of_groups"
DAG = """
from airflow.sdk import DAG, Param, chain, task
from bliss_ops.airflow import GPU_POOL
from bliss_ops.airflow.operator import BlissStageOperator
from bliss_ops.airflow.tasks import DAG_ARGS

with DAG(dag_id="round_of_groups", schedule=None, params={"num_groups": Param(1, type="integer")}, **DAG_ARGS):
    @task
    def configure(params):
        return [f"{group}/{params['num_groups']}" for group in range(params["num_groups"])]

    def stage(name):
        return BlissStageOperator(task_id=name, subcommand=name, subject="measured", round_number="1")

    groups = configure()
    score = BlissStageOperator.partial(
        task_id="score", subcommand="score", subject="measured", round_number="1", pool=GPU_POOL, map_index_template="{{ task.group }}"
    ).expand(group=groups)
    after = [stage(name) for name in ("fidelity", "load", "select", "materialize", "pretrain", "evaluate", "report")]
    chain(groups, stage("warm-up"), stage("fit"), score, *after)
"""
COPIED_RUN = "(select id from dag_run where dag_run.dag_id = xcom.dag_id and dag_run.run_id = xcom.run_id || :suffix)"
LOOP = re.compile(r"Ran scheduling loop in ([\d.]+) ms")
START_SECONDS, RUN_SECONDS = 120.0, 900.0
LOOPS_LOGGED = {"LOGGING__NAMESPACE_LEVELS": "airflow.jobs.scheduler_job_runner=DEBUG"}


@dataclass
class Stack:
    """A running Airflow and what is known of its parts."""

    layout: services.Layout
    environment: dict[str, str]
    parts: list[Service] = field(default_factory=list)

    @property
    def database(self) -> str:
        """Its address, for SQLAlchemy."""
        return self.environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"]

    @property
    def api(self) -> AirflowApi:
        return AirflowApi(self.layout.airflow_url, services.USER, json.loads(self.layout.passwords.read_text())[services.USER])

    def cpu_seconds(self) -> dict[str, float]:
        """Of each part's own processes; the tasks are children of the scheduler's, and not counted."""
        return {part.name: sum(sum(process.cpu_times()[:2]) for process in self.processes(part)) for part in self.parts}

    def processes(self, part: Service) -> list[psutil.Process]:
        leader = psutil.Process(part.pid)
        return [leader] if part.name == "scheduler" else [leader, *leader.children(recursive=True)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", type=int, nargs=2, default=[1, 64], help="the two that are compared")
    parser.add_argument("--rounds", type=int, default=2, help="how often each of them runs, in turn")
    parser.add_argument("--task-slots", type=int, default=4, help="tasks at once, of Airflow and of the pool of scoring tasks")
    parser.add_argument("--job-seconds", type=float, default=0.5)
    parser.add_argument("--postgres", type=Path, help="directory of initdb and pg_ctl: metadata in a private Postgres instead of SQLite")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION__NAME=VALUE", help="a setting of Airflow, for all runs")
    parser.add_argument(
        "--history", type=int, default=0, metavar="N", help="afterwards: until N finished task instances are there, and again"
    )
    parser.add_argument("--profile", type=Path, help="record the scheduler for a minute of a run with many groups, by py-spy")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"database": "postgres" if arguments.postgres else "sqlite", "settings": arguments.set}
    with tempfile.TemporaryDirectory(prefix="bliss-loop-") as scratch, airflow(Path(scratch), arguments) as stack:
        measure(stack, arguments.groups[0], "first, not counted", arguments)
        runs: dict[int, list[dict[str, float]]] = {groups: [] for groups in arguments.groups}
        for _ in range(arguments.rounds):
            for groups in arguments.groups:
                runs[groups].append(measure(stack, groups, f"{groups} groups", arguments))
        result |= {
            f"groups_{groups}": {key: round(statistics.median(run[key] for run in done), 3) for key in done[0]}
            for groups, done in runs.items()
        }
        if arguments.history:
            result["history"] = with_history(stack, arguments)
        result["megabytes"] = {part.name: pss(stack.processes(part)) for part in stack.parts}
    print(json.dumps(result))
    return 0


@contextlib.contextmanager
def airflow(scratch: Path, arguments: argparse.Namespace) -> Iterator[Stack]:
    """Airflow's four parts with the embedded stack's settings, over one DAG and without Ray."""
    state_dir, ray_temp = scratch / "state", scratch / "tmp"
    for directory in (state_dir / "airflow", state_dir / "logs", ray_temp, scratch / "dags"):
        directory.mkdir(parents=True)
    (scratch / "dags" / "round_of_groups.py").write_text(DAG)
    layout = services.Layout(state_dir, str(scratch / "lake"), os.urandom(8).hex(), ray_temp, services.choose_ports())
    layout.ray_token.write_text("none")
    with contextlib.ExitStack() as opened:
        settings = {"CORE__DAGS_FOLDER": str(scratch / "dags"), "CORE__PARALLELISM": str(arguments.task_slots)} | LOOPS_LOGGED
        settings |= dict(setting.split("=", 1) for setting in arguments.set)
        if arguments.postgres:
            settings["DATABASE__SQL_ALCHEMY_CONN"] = opened.enter_context(postgres(arguments.postgres, scratch))
        environment = services.airflow_environment(layout) | {f"AIRFLOW__{name}": value for name, value in settings.items()}
        opened.enter_context(ray_jobs.serve(layout.ports["ray_jobs"], arguments.job_seconds))
        begun = time.monotonic()
        subprocess.run(services.migrate_command(), env=environment, check=True, capture_output=True)
        print(f"metadata made in {time.monotonic() - begun:.1f} s", flush=True)
        stack = Stack(layout, environment)
        opened.callback(lambda: processes.end(stack.parts, layout.marker))
        for name, command in services.airflow_commands(layout).items():
            stack.parts.append(processes.start(name, command, env=environment, log_file=layout.logs / f"{name}.log", cwd=state_dir))
        wait_for(lambda: layout.passwords.exists() and set(stack.api.health().values()) == {"healthy"})
        stack.api.make_pool(GPU_POOL, arguments.task_slots, "as many as there are slots")
        wait_for(lambda: DAG_ID in stack.api.dag_ids())
        print(f"up after {time.monotonic() - begun:.1f} s", flush=True)
        yield stack


@contextlib.contextmanager
def postgres(binaries: Path, scratch: Path) -> Iterator[str]:
    """A private server on a free port of 127.0.0.1, run by the user postgres where we are root; its address for SQLAlchemy."""
    directory, port = scratch / "postgres", services.choose_ports()["ray_agent"]
    directory.mkdir()
    asking: list[str] = []
    if os.geteuid() == 0:
        scratch.chmod(0o755)
        shutil.chown(directory, "postgres")
        asking = ["runuser", "-u", "postgres", "--"]
    data, log_file = directory / "data", directory / "log"
    options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={directory}"
    control = [binaries / "pg_ctl", "-D", data, "-l", log_file, "-o", options, "-m", "immediate", "-w"]

    def run(*command: Any) -> None:
        subprocess.run([*asking, *map(str, command)], check=True, stdout=subprocess.DEVNULL, cwd="/")

    run(binaries / "initdb", "-D", data, "-U", "airflow", "-A", "trust")
    run(*control, "start")
    try:
        run(binaries / "createdb", "-h", "127.0.0.1", "-p", port, "-U", "airflow", "airflow")
        yield f"postgresql+psycopg2://airflow@127.0.0.1:{port}/airflow"
    finally:
        run(*control, "stop")


def measure(stack: Stack, groups: int, label: str, arguments: argparse.Namespace) -> dict[str, float]:
    """One DAG run from its trigger to its end."""
    time.sleep(5)  # what the run before has left is done
    log_file = stack.layout.logs / "scheduler.log"
    offset, cpu, begun = log_file.stat().st_size, stack.cpu_seconds(), time.monotonic()
    run_id = stack.api.trigger(DAG_ID, f"of-{groups}-at-{time.time_ns()}", {"num_groups": groups})
    profiler = profile(stack, arguments.profile) if arguments.profile and groups > 1 else None
    watched = Watched(stack, run_id)
    with watched:
        wait_for(lambda: stack.api.dag_run_state(DAG_ID, run_id) in FINISHED, RUN_SECONDS, 1.0)
    seconds = time.monotonic() - begun
    assert stack.api.dag_run_state(DAG_ID, run_id) == "success", f"{run_id} failed: see {stack.layout.logs}"
    used = {name: now - cpu[name] for name, now in stack.cpu_seconds().items()}
    with log_file.open() as log:
        log.seek(offset)
        loops = sorted(float(match[1]) / 1000 for match in LOOP.finditer(log.read()))
    gaps, refills = gaps_of(task_times(stack, run_id), arguments.task_slots)
    if profiler:
        profiler.wait()
    figures = {
        "seconds": seconds,
        "loops": len(loops),
        "loop_median_seconds": statistics.median(loops),
        "loop_95_seconds": loops[int(0.95 * (len(loops) - 1))],
        "loop_longest_seconds": loops[-1],
        "loop_cpu_seconds": used["scheduler"] / len(loops),
        "scheduler_busy_share": sum(loops) / seconds,
        **{f"{name.replace('-', '_')}_cpu_share": value / seconds for name, value in used.items()},
        "end_to_start_median_seconds": statistics.median(gaps),
        "slot_refill_median_seconds": statistics.median(refills) if refills else 0.0,
        "slot_refill_longest_seconds": max(refills, default=0.0),
        **watched.figures(),
    }
    print(f"{label:<20}" + "  ".join(f"{key} {value:.3g}" for key, value in figures.items()), flush=True)
    return figures


def with_history(stack: Stack, arguments: argparse.Namespace) -> dict[str, Any]:
    """What the metadata weighs with thousands of finished task instances, what a run costs beside them, and what it takes to remove them.

    The history is made of copies of the runs that were measured, with their log and XCom rows.
    """
    from sqlalchemy import create_engine, inspect, text

    engine = create_engine(stack.database)
    own = "run_id like 'of-%' and run_id not like '%-copy-%'"
    new_id = "gen_random_uuid()" if arguments.postgres else "lower(hex(randomblob(16)))"
    tables = {"dag_run": {"id": ""}, "task_instance": {"id": new_id}, "log": {"id": ""}, "xcom": {"dag_run_id": COPIED_RUN}}
    with engine.connect() as connection:
        bytes_before, count = size_of(connection, arguments), connection.execute(text("select count(*) from task_instance")).scalar_one()
        num_copies = -(-(arguments.history - count) // count)
        for copy in range(num_copies):
            for table, special in tables.items():
                names = [column["name"] for column in inspect(engine).get_columns(table) if special.get(column["name"]) != ""]
                values = {name: special.get(name, name) for name in names} | {"run_id": "run_id || :suffix"}
                statement = f"insert into {table} ({', '.join(map(quoted, names))}) select " + ", ".join(
                    value if value != name else quoted(name) for name, value in values.items()
                )
                connection.execute(text(f"{statement} from {table} where {own}"), {"suffix": f"-copy-{copy}"})
            connection.commit()
        rows = {table: connection.execute(text(f"select count(*) from {table}")).scalar_one() for table in tables}  # noqa: S608
        num_bytes = size_of(connection, arguments)
    figures: dict[str, Any] = {"rows": rows, "megabytes": num_bytes / 1e6}
    figures["kilobytes_per_task_instance"] = (num_bytes - bytes_before) / (rows["task_instance"] - count) / 1e3
    figures["run"] = measure(stack, arguments.groups[0], f"beside {rows['task_instance']}", arguments)
    begun = time.monotonic()
    clean = [str(Path(sys.executable).with_name("airflow")), "db", "clean", "--skip-archive", "-y", "--clean-before-timestamp"]
    tables_to_clean = ["--tables", "dag_run,task_instance,log,xcom"]
    subprocess.run([*clean, datetime.now(UTC).isoformat(), *tables_to_clean], env=stack.environment, check=True, capture_output=True)
    figures["clean_seconds"] = time.monotonic() - begun
    with engine.connect() as connection:
        figures["task_instances_left"] = connection.execute(text("select count(*) from task_instance")).scalar_one()
        figures["megabytes_cleaned"] = size_of(connection, arguments) / 1e6
    engine.dispose()
    print(json.dumps(figures), flush=True)
    return figures


def quoted(name: str) -> str:
    return f'"{name}"'


def size_of(connection: Any, arguments: argparse.Namespace) -> int:
    """Bytes of the metadata."""
    from sqlalchemy import text

    if arguments.postgres:
        return int(connection.execute(text("select pg_database_size('airflow')")).scalar_one())
    pages, page_bytes = (int(connection.execute(text(f"pragma {name}")).scalar_one()) for name in ("page_count", "page_size"))
    return pages * page_bytes


class Watched:
    """Asks once a second for the health and the grid, as an open page does, while a run goes on."""

    def __init__(self, stack: Stack, run_id: str) -> None:
        self.stack, self.run_id = stack, run_id
        self.health_seconds: list[float] = []
        self.list_seconds: list[float] = []
        self.heartbeat_ages: list[float] = []
        self.num_unhealthy = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Watched":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def figures(self) -> dict[str, float]:
        return {
            "health_longest_seconds": max(self.health_seconds),
            "api_median_seconds": statistics.median(self.list_seconds),
            "api_longest_seconds": max(self.list_seconds),
            "oldest_heartbeat_seconds": max(self.heartbeat_ages),
            "unhealthy": self.num_unhealthy,
        }

    def _watch(self) -> None:
        api = self.stack.api
        while not self._ended.wait(1.0):
            begun = time.monotonic()
            with urlopen(Request(f"{self.stack.layout.airflow_url}/api/v2/monitor/health"), timeout=60) as answer:  # noqa: S310 - our own server
                health = json.load(answer)
            self.health_seconds.append(time.monotonic() - begun)
            beat = datetime.fromisoformat(health["scheduler"]["latest_scheduler_heartbeat"]).timestamp()
            self.heartbeat_ages.append(time.time() - beat)
            self.num_unhealthy += sum(part["status"] not in ("healthy", None) for part in health.values())
            begun = time.monotonic()
            try:
                api.task_instances(DAG_ID, self.run_id)
            except AirflowError:
                self.num_unhealthy += 1
            self.list_seconds.append(time.monotonic() - begun)


def task_times(stack: Stack, run_id: str) -> list[tuple[str, int, float, float]]:
    """Task, map index, start and end of each task instance of a run."""
    import sqlalchemy

    engine = sqlalchemy.create_engine(stack.database)
    with engine.connect() as connection:
        asked = "select task_id, map_index, start_date, end_date from task_instance where run_id = :run_id order by start_date"
        rows = connection.execute(sqlalchemy.text(asked), {"run_id": run_id}).fetchall()
    engine.dispose()
    return [(task, index, _timestamp(start), _timestamp(end)) for task, index, start, end in rows]


def gaps_of(times: list[tuple[str, int, float, float]], num_slots: int) -> tuple[list[float], list[float]]:
    """Seconds from the end of a task to the start of its successor; and from a freed slot to the start of the group that takes it."""
    of_score = sorted((start, end) for task, _, start, end in times if task == "score")
    plain = sorted((start, end) for task, _, start, end in times if task != "score")
    before, after = [pair for pair in plain if pair[0] < of_score[0][0]], [pair for pair in plain if pair[0] > of_score[0][0]]
    chain = [*before, (of_score[0][0], max(end for _, end in of_score)), *after]
    gaps = [later[0] - earlier[1] for earlier, later in pairwise(chain)]
    ends = sorted(end for _, end in of_score)
    refills = [start - end for (start, _), end in zip(of_score[num_slots:], ends, strict=False)]
    return gaps, refills


def profile(stack: Stack, file: Path) -> "subprocess.Popen[bytes]":
    (scheduler,) = [part for part in stack.parts if part.name == "scheduler"]
    command = [str(Path(sys.executable).parent / "py-spy"), "record", "-p", str(scheduler.pid), "-d", "60", "-f", "raw", "-o", str(file)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def pss(members: list[psutil.Process]) -> int:
    """Megabytes of these processes; what several share is counted once in all."""
    return sum(int(process.memory_full_info().pss) for process in members) >> 20


def wait_for(is_true: Any, seconds: float = START_SECONDS, pause: float = 0.5) -> None:
    deadline = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError, AirflowError):
            if is_true():
                return
        assert time.monotonic() < deadline, "Airflow is not where it should be: see its logs"
        time.sleep(pause)


def _timestamp(value: Any) -> float:
    """Of Postgres, a time; of SQLite, its text, in UTC."""
    at = datetime.fromisoformat(value) if isinstance(value, str) else value
    return float((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp())


if __name__ == "__main__":
    sys.exit(main())
