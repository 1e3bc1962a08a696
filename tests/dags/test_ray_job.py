"""The operator and its trigger over a Jobs API that fails on purpose: what is asked for how often, and what becomes of the job."""

import asyncio
import json
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest

pytest.importorskip("airflow")

from airflow.sdk.exceptions import TaskDeferralError, TaskDeferralTimeout, TaskDeferred

from bliss_ops import release
from bliss_ops.airflow import ray_job, trigger
from bliss_ops.airflow.operator import BlissStageOperator
from bliss_ops.airflow.owner import Owner, submission_id
from bliss_ops.airflow.ray_job import RayJobFailed, RayJobOperator
from bliss_ops.airflow.trigger import RayJobTrigger
from bliss_ops.ray import following
from bliss_ops.ray.jobs import RayJobs, RayUnreachable, entrypoint
from tests.ray.jobs_api import FakeJob, JobsApi, jobs_api
from tests.ray.tasks import StateStore, context

FIRST, SECOND = (submission_id("bliss_round", "demo-round-01", "fit", -1, generation) for generation in (1, 2))
COMMAND = ["train", "--name", "a b; reboot"]
KEY = "ray_submission_id"


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[JobsApi]:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.setenv("AIRFLOW_VAR_RAY_JOBS_DEPLOYMENT", "tests")
    monkeypatch.setattr(following, "LEAST_POLL_SECONDS", 0.02)
    monkeypatch.setattr(following, "RECONNECT_SECONDS", 0.02)
    with jobs_api() as api:
        connect(api, monkeypatch)
        yield api


def connect(api: JobsApi, monkeypatch: pytest.MonkeyPatch, **more: Any) -> None:
    port = int(api.address.rsplit(":", 1)[1])
    monkeypatch.setenv("AIRFLOW_CONN_RAY_DEFAULT", json.dumps({"conn_type": "http", "host": "127.0.0.1", "port": port, **more}))


def operator(**arguments: Any) -> RayJobOperator:
    return RayJobOperator(**{"task_id": "fit", "entrypoint": COMMAND, "head_wait_seconds": 5, "deferrable": False} | arguments)


def soon(act: Callable[[], Any], when: Callable[[], Any]) -> threading.Thread:
    """Act, in a thread, as soon as something is so."""

    def wait() -> None:
        deadline = time.monotonic() + 10
        while not when() and time.monotonic() < deadline:
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def running(api: JobsApi, log: str = "") -> FakeJob:
    api.jobs[FIRST] = FakeJob({"entrypoint": entrypoint(COMMAND), "metadata": {}}, log=log)
    return api.jobs[FIRST]


def test_what_is_submitted(api: JobsApi) -> None:
    ending = soon(lambda: api.end(FIRST), when=lambda: FIRST in api.jobs)
    operator(env_vars={"LAKE": "s3://x"}, num_cpus=2, num_gpus=1).execute(context("fit"))
    ending.join()
    body = api.jobs[FIRST].body
    assert shlex.split(body["entrypoint"]) == COMMAND
    assert body["runtime_env"] == {"env_vars": {"LAKE": "s3://x"}}
    assert (body["entrypoint_num_cpus"], body["entrypoint_num_gpus"]) == (2, 1)
    assert Owner.from_metadata(body["metadata"]) == Owner("tests", "bliss_round", "demo-round-01", "fit", -1, 1)


def test_the_connection_says_what_every_job_claims(api: JobsApi, monkeypatch: pytest.MonkeyPatch) -> None:
    connect(api, monkeypatch, extra={"entrypoint_resources": {"stage": 1}})
    ending = soon(lambda: api.end(FIRST), when=lambda: FIRST in api.jobs)
    operator().execute(context("fit"))
    ending.join()
    assert api.jobs[FIRST].body["entrypoint_resources"] == {"stage": 1}


def test_a_stage_may_only_be_worked_on_by_this_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLISS_LAKE", "s3://x/lake")
    environment = BlissStageOperator(task_id="fit", subcommand="fit", subject="demo").job_environment()
    assert environment["BLISS_LAKE"] == "s3://x/lake"
    assert environment[release.REQUIRED] == release.release()


@pytest.mark.parametrize(
    "hostile",
    ["; id", "$(id)", "a\nid", "' ; id ; '", '" ; id ; "', "\\'; id", "&& id", "| id", "> /x", "#", "\t", "", "\x1b[2J", "\u2028id"],
)  # fmt: skip
def test_no_value_leaves_its_argument(hostile: str) -> None:
    assert shlex.split(entrypoint(["bliss", "fit", hostile, "--round", "1"])) == ["bliss", "fit", hostile, "--round", "1"]


def test_a_nul_character_is_refused() -> None:
    with pytest.raises(ValueError, match="NUL"):
        entrypoint(["bliss", "a\0b"])


def test_the_connections_password_is_the_token(api: JobsApi, monkeypatch: pytest.MonkeyPatch) -> None:
    api.token = "secret"
    running(api)
    with pytest.raises(PermissionError, match="refuses the token"):
        operator().execute(context("fit"))
    connect(api, monkeypatch, password="secret")
    api.end(FIRST)
    operator().execute(context("fit", StateStore({KEY: FIRST})))


def test_a_submission_whose_answer_was_lost_is_not_made_twice(api: JobsApi) -> None:
    jobs = RayJobs(api.address)
    for _ in range(2):
        jobs.submit(FIRST, COMMAND)
    assert list(api.jobs) == [FIRST]


@pytest.mark.parametrize("was_written_down", [True, False])
@pytest.mark.parametrize(("max_tries", "generations"), [(2, [FIRST]), (3, [FIRST, SECOND])], ids=["retried", "cleared"])
def test_a_running_job_is_followed_by_a_retry_and_makes_way_where_the_task_was_cleared(
    api: JobsApi, was_written_down: bool, max_tries: int, generations: list[str]
) -> None:
    """Of two retries; cleared at its first try, a task may be tried until its fourth one."""
    first, second = context("fit"), context("fit", StateStore({KEY: FIRST} if was_written_down else {}))
    running(api).body["metadata"] = Owner.of(first).metadata
    second["ti"].try_number, second["ti"].max_tries = 2, max_tries
    ending = soon(lambda: api.end(generations[-1]), when=lambda: generations[-1] in api.jobs and api.requests["details"] > 3)
    operator(retries=2).execute(second)
    ending.join()
    assert list(api.jobs) == generations
    assert [job.status for job in api.jobs.values()] == [*["STOPPED"] * (len(generations) - 1), "SUCCEEDED"]


def test_a_request_that_is_refused_is_not_waited_for(api: JobsApi) -> None:
    api.refusal = "RuntimeError: Request failed with status code 400: Traceback:\n  TypeError: runtime_env\n."
    begun = time.monotonic()
    with pytest.raises(ValueError, match="TypeError: runtime_env"):
        operator(head_wait_seconds=60).execute(context("fit"))
    assert time.monotonic() - begun < 5


class TestLog:
    def test_it_is_sent_once_however_often_the_state_is_asked_for(self, api: JobsApi) -> None:
        job = running(api)

        def write() -> None:
            for number in range(200):
                job.log += f"line {number}\n"
                time.sleep(0.005)
            api.end(FIRST)

        writing = soon(write, when=lambda: api.requests["tail"])
        lines = list(following.follow(RayJobs(api.address), FIRST))
        writing.join()
        assert lines == [f"line {number}" for number in range(200)]
        assert api.requests["details"] > 10
        assert api.requests["logs"] <= 1
        assert api.log_chars_sent <= 2 * len(job.log), "once as it was written, and once more at the end, since it is short"

    def test_a_long_one_is_not_read_again_at_its_end(self, api: JobsApi, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(following, "SMALL_LOG_CHARS", 100)
        job = running(api, log="x" * 500 + "\n")
        ending = soon(lambda: (setattr(job, "log", f"{job.log}last\n"), api.end(FIRST)), when=lambda: api.log_chars_sent)
        assert list(following.follow(RayJobs(api.address), FIRST)) == ["x" * 500, "last"]
        ending.join()
        assert (api.requests["logs"], api.log_chars_sent) == (0, len(job.log))

    def test_it_goes_on_where_a_connection_broke(self, api: JobsApi) -> None:
        job = running(api, log="one\ntwo\nthree\n")
        api.breaks_log_after = 6
        ending = soon(lambda: (setattr(job, "log", f"{job.log}four\n"), api.end(FIRST)), when=lambda: api.requests["tail"] == 2)
        assert list(following.follow(RayJobs(api.address), FIRST)) == ["one", "two", "three", "four"]
        ending.join()

    def test_one_that_cannot_be_read_fails_no_task(self, api: JobsApi, monkeypatch: pytest.MonkeyPatch) -> None:
        async def no_logs(_: Any) -> Any:
            raise OSError("unreadable")

        monkeypatch.setattr(JobsApi, "_logs", no_logs)
        running(api)
        api.end(FIRST)
        operator().execute(context("fit", StateStore({KEY: FIRST})))
        assert list(following.follow(RayJobs(api.address), FIRST)) == []


class TestHead:
    def test_one_that_is_starting_is_waited_for(self, api: JobsApi) -> None:
        api.answers = [500, 503]
        ending = soon(lambda: api.end(FIRST), when=lambda: FIRST in api.jobs)
        operator().execute(context("fit"))
        ending.join()
        assert api.requests["submit"] == 1

    def test_one_that_is_away_for_a_while_costs_nothing(self, api: JobsApi) -> None:
        running(api)
        away = soon(lambda: api.answers.extend([500] * 20), when=lambda: api.requests["details"] > 2)
        ending = soon(lambda: api.end(FIRST), when=lambda: api.requests["details"] > 10)
        operator().execute(context("fit", StateStore({KEY: FIRST})))
        away.join()
        ending.join()
        assert list(api.jobs) == [FIRST]

    def test_one_that_does_not_return_is_given_up_in_time_and_the_job_is_kept_in_mind(self, api: JobsApi) -> None:
        store = StateStore({KEY: FIRST})
        running(api)
        away = soon(lambda: api.answers.extend([500] * 10_000), when=lambda: api.requests["details"] > 2)
        begun = time.monotonic()
        with pytest.raises(RayUnreachable, match="waited 1 s"):
            operator(head_wait_seconds=1).execute(context("fit", store))
        away.join()
        assert time.monotonic() - begun < 5
        assert store.values == {KEY: FIRST}
        api.answers = []
        api.end(FIRST)
        operator().execute(context("fit", store))
        assert list(api.jobs) == [FIRST]

    def test_one_without_a_record_of_the_job_gets_its_next_generation(self, api: JobsApi) -> None:
        store = StateStore()
        losing = soon(lambda: api.jobs.pop(FIRST), when=lambda: FIRST in api.jobs and api.requests["details"] > 3)
        ending = soon(lambda: api.end(SECOND), when=lambda: SECOND in api.jobs)
        operator().execute(context("fit", store))
        losing.join()
        ending.join()
        assert list(api.jobs) == [SECOND]
        assert store.values == {}

    def test_one_that_forgets_every_job_is_not_given_jobs_for_ever(self, api: JobsApi) -> None:
        stop = threading.Event()

        def forget() -> None:
            while not stop.is_set():
                api.jobs.clear()
                time.sleep(0.005)

        forgetting = threading.Thread(target=forget)
        forgetting.start()
        with pytest.raises(RayJobFailed, match="ended as MISSING"):
            operator().execute(context("fit"))
        stop.set()
        forgetting.join()
        assert api.requests["submit"] == 1 + ray_job.MAX_RESUBMITTED


class TestEnd:
    def test_a_failure_says_the_last_lines_once(self, api: JobsApi) -> None:
        running(api, log="".join(f"line {number}\n" for number in range(100)))
        message = "Job entrypoint command failed with exit code 1, last available logs:\nline 99"
        ending = soon(lambda: api.end(FIRST, "FAILED", message), when=lambda: api.requests["tail"])
        with pytest.raises(RayJobFailed) as failure:
            operator().execute(context("fit", StateStore({KEY: FIRST})))
        ending.join()
        assert str(failure.value).count("line 99") == 1
        assert str(failure.value).count("\n") == ray_job.NUM_LINES_IN_ERROR

    def test_a_lost_node_is_named(self, api: JobsApi) -> None:
        running(api, log="step 12\n")
        ending = soon(lambda: api.end(FIRST, "FAILED", "Job supervisor actor died: node"), when=lambda: api.requests["tail"])
        with pytest.raises(RayJobFailed, match=r"step 12\n  Job supervisor actor died: node"):
            operator().execute(context("fit", StateStore({KEY: FIRST})))
        ending.join()

    def test_a_kill_stops_the_job_and_nothing_follows_it(self, api: JobsApi) -> None:
        task = operator()
        killing = soon(task.on_kill, when=lambda: FIRST in api.jobs and api.requests["details"] > 3)
        with pytest.raises(RayJobFailed, match="STOPPED"):
            task.execute(context("fit"))
        killing.join()
        assert {name: job.status for name, job in api.jobs.items()} == {FIRST: "STOPPED"}

    def test_a_timeout_is_raised_as_it_is_and_leaves_no_thread(self, api: JobsApi) -> None:
        """Airflow raises it from a signal handler, and stops the job when it sees it."""

        def time_out(*_: Any) -> None:
            raise TimeoutError("too long")

        before, num_threads = signal.signal(signal.SIGALRM, time_out), threading.active_count()
        running(api)
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        try:
            with pytest.raises(TimeoutError, match="too long"):
                operator().execute(context("fit", StateStore({KEY: FIRST})))
        finally:
            signal.signal(signal.SIGALRM, before)
        assert threading.active_count() == num_threads

    def test_a_kill_before_the_job_is_there_stops_it_too(self, api: JobsApi, monkeypatch: pytest.MonkeyPatch) -> None:
        task = operator()
        submit = RayJobs.submit

        def submit_late(*args: Any, **kwargs: Any) -> None:
            task.on_kill()
            submit(*args, **kwargs)

        monkeypatch.setattr(RayJobs, "submit", submit_late)
        with pytest.raises(RayJobFailed, match="STOPPED"):
            task.execute(context("fit"))
        assert api.jobs[FIRST].status == "STOPPED"

    def test_a_kill_without_a_head_is_left_to_the_reconciliation(self, api: JobsApi) -> None:
        task = operator()
        task.on_kill()
        task._jobs, task._submission_id = RayJobs("http://127.0.0.1:1"), FIRST
        task.on_kill()


@pytest.mark.parametrize("speaks", [False, True])
def test_a_job_that_says_nothing_is_stopped_in_the_end(api: JobsApi, speaks: bool) -> None:
    task = operator(silence_seconds=0.5)

    def speak() -> None:
        for number in range(10):
            api.jobs[FIRST].log += f"step {number}\n"
            time.sleep(0.15)
        api.end(FIRST)

    speaking = soon(speak if speaks else lambda: None, when=lambda: FIRST in api.jobs)
    if speaks:
        task.execute(context("fit"))
    else:
        with pytest.raises(RayJobFailed, match=r"(?s)STOPPED .*nothing was logged for 0 s: the job was stopped"):
            task.execute(context("fit"))
    speaking.join()
    assert api.requests["stop"] == int(not speaks)


def test_a_log_whose_connection_fails_is_no_silent_job(api: JobsApi) -> None:
    job = running(api, log="much\n")
    api.refuses_tail = True

    def speak() -> None:
        for number in range(10):
            job.log += f"step {number}\n"
            time.sleep(0.15)
        api.end(FIRST)

    speaking = soon(speak, when=lambda: True)
    operator(silence_seconds=0.3).execute(context("fit", StateStore({KEY: FIRST})))
    speaking.join()
    assert api.requests["stop"] == 0
    assert api.requests["logs"] > 1


def test_a_silent_job_whose_log_has_no_connection_is_stopped_too(api: JobsApi) -> None:
    api.refuses_tail = True
    with pytest.raises(RayJobFailed, match="nothing was logged"):
        operator(silence_seconds=0.3).execute(context("fit"))


class TestDeferrable:
    @pytest.fixture(autouse=True)
    def _it_is_asked_for_its_state(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(trigger.Owner, "state", lambda _: "deferred")

    def defer(self, store: StateStore, **arguments: Any) -> tuple[RayJobOperator, TaskDeferred]:
        task = operator(deferrable=True, **arguments)
        with pytest.raises(TaskDeferred) as deferred:
            task.execute(context("fit", store))
        return task, deferred.value

    def test_the_trigger_follows_and_the_task_ends(self, api: JobsApi, capsys: pytest.CaptureFixture[str]) -> None:
        store = StateStore()
        _, deferred = self.defer(store)
        assert store.values == {KEY: FIRST}
        path, arguments = deferred.trigger.serialize()
        assert path == "bliss_ops.airflow.trigger.RayJobTrigger"
        json.dumps([arguments, deferred.kwargs])
        api.jobs[FIRST].log = "hello\n"
        ending = soon(lambda: api.end(FIRST), when=lambda: api.requests["tail"])
        event = asyncio.run(first_event(RayJobTrigger(**arguments)))
        ending.join()
        assert "hello" in capsys.readouterr().out
        pushed = context("fit", store)
        operator(deferrable=True).execute_complete(pushed, event, **deferred.kwargs)
        assert store.values == {}
        assert pushed["ti"].xcoms["ray_job_link"].endswith(f"#/jobs/{FIRST}")

    def test_a_failure_carries_the_last_lines(self, api: JobsApi) -> None:
        _, deferred = self.defer(StateStore())
        api.jobs[FIRST].log = "no such corpus\n"
        api.end(FIRST, "FAILED", "Job entrypoint command failed")
        event = asyncio.run(first_event(deferred.trigger))
        with pytest.raises(RayJobFailed, match="no such corpus"):
            operator(deferrable=True).execute_complete(context("fit"), event, **deferred.kwargs)

    def test_a_lost_job_is_submitted_again_and_waited_for_again(self, api: JobsApi) -> None:
        store = StateStore()
        _, deferred = self.defer(store)
        api.jobs.clear()
        event = asyncio.run(first_event(deferred.trigger))
        with pytest.raises(TaskDeferred) as again:
            operator(deferrable=True).execute_complete(context("fit", store), event, **deferred.kwargs)
        assert (list(api.jobs), store.values) == ([SECOND], {KEY: SECOND})
        assert again.value.trigger.submission_id == SECOND
        assert again.value.kwargs["num_resubmitted"] == 1

    def test_a_head_that_does_not_return_fails_the_try_with_its_reason(self, api: JobsApi) -> None:
        store = StateStore()
        _, deferred = self.defer(store, head_wait_seconds=0.2)
        api.answers = [500] * 1000
        event = asyncio.run(first_event(deferred.trigger))
        api.answers = []
        with pytest.raises(RayUnreachable, match="may still run"):
            operator(deferrable=True).execute_complete(context("fit", store), event, **deferred.kwargs)
        assert store.values == {KEY: FIRST}

    def test_a_timeout_stops_the_job(self, api: JobsApi) -> None:
        store = StateStore()
        task, deferred = self.defer(store, execution_timeout=timedelta(minutes=5))
        assert deferred.timeout is not None
        assert timedelta(minutes=4) < deferred.timeout <= timedelta(minutes=5)
        with pytest.raises(TaskDeferralTimeout, match=r"longer than 0:05:00: it was stopped"):
            task.resume_execution("__fail__", {"error": "Trigger timeout"}, context("fit", store))
        assert api.jobs[FIRST].status == "STOPPED"

    def test_a_trigger_that_broke_leaves_the_job_alone(self, api: JobsApi) -> None:
        store = StateStore()
        task, _ = self.defer(store)
        with pytest.raises(TaskDeferralError):
            task.resume_execution("__fail__", {"error": "Trigger failure"}, context("fit", store))
        assert api.jobs[FIRST].status == "RUNNING"

    @pytest.mark.parametrize(
        ("state", "becomes"), [("failed", "STOPPED"), ("none", "STOPPED"), ("gone", "STOPPED"), ("deferred", "RUNNING")]
    )
    def test_a_kill_stops_the_job_but_a_takeover_does_not(
        self, api: JobsApi, monkeypatch: pytest.MonkeyPatch, state: str, becomes: str
    ) -> None:
        _, deferred = self.defer(StateStore())
        monkeypatch.setattr(trigger.Owner, "state", lambda _: state)
        asyncio.run(deferred.trigger.on_kill())
        assert api.jobs[FIRST].status == becomes

    def test_a_kill_that_learns_nothing_stops_the_job(self, api: JobsApi, monkeypatch: pytest.MonkeyPatch) -> None:
        _, deferred = self.defer(StateStore())
        monkeypatch.setattr(trigger, "STATE_SECONDS", 0.1)
        monkeypatch.setattr(trigger.Owner, "state", lambda _: time.sleep(0.5))
        asyncio.run(deferred.trigger.on_kill())
        assert api.jobs[FIRST].status == "STOPPED"

    def test_a_restart_of_the_triggerer_does_not_stop_the_job(self, api: JobsApi) -> None:
        _, deferred = self.defer(StateStore())

        async def cancelled() -> None:
            following = asyncio.create_task(first_event(deferred.trigger))
            await asyncio.sleep(0.2)
            following.cancel()
            await deferred.trigger.cleanup()

        asyncio.run(cancelled())
        assert api.jobs[FIRST].status == "RUNNING"


async def first_event(waiting: Any) -> dict[str, Any]:
    async for event in waiting.run():
        return dict(event.payload)
    raise AssertionError("no event")
