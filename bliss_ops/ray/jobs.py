"""Ray's Jobs API over HTTP: submit under a name of our choosing, ask about it, list, stop, follow.

Spoken directly, not through Ray's own client: importing that takes 0.7 s of CPU in every task's process, and Airflow's machines would
need Ray. What goes wrong is one of three things: nobody answers (`RayUnreachable`, worth waiting for), the token is refused
(`PermissionError`), or the request is (`ValueError`). Proxies of the environment are not used, as by Ray's own websockets.
"""

import http.client
import json
import logging
import os
import shlex
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

log = logging.getLogger(__name__)

REQUEST_SECONDS = 30.0
HEAD_WAIT_SECONDS = 600.0  # a head that is restarted on another machine takes minutes
MOST_DELAY_SECONDS = 5.0
MISSING = "MISSING"  # our word for a job that the cluster does not know
ACTIVE = frozenset({"PENDING", "RUNNING"})
SUCCEEDED, STOPPED = "SUCCEEDED", "STOPPED"
UNAUTHORIZED, FORBIDDEN, NOT_FOUND, SERVER_ERROR = 401, 403, 404, 500
REFUSED_BY_AGENT = "Request failed with status code 400"  # the head hands a refusal of its job agent on as HTTP 500

T = TypeVar("T")


class RayUnreachable(ConnectionError):  # noqa: N818 - what is so, as the log shows it
    """Nobody answers at the address, or whoever does is not ready."""


class UnknownJob(LookupError):  # noqa: N818
    """The cluster has no record of the job."""


@dataclass(frozen=True)
class Job:
    """One job as Ray reports it."""

    submission_id: str
    status: str
    entrypoint: str = ""
    message: str = ""  # why it could not start, or its last lines
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_active(self) -> bool:
        return self.status in ACTIVE


class RayJobs:
    """Jobs of one Ray cluster, addressed by submission id."""

    def __init__(self, address: str, *, token: str | None = None) -> None:
        """The Jobs API at `address` (http://host:port); without a `token`, the one that RAY_AUTH_MODE=token stands for."""
        self.address = address.rstrip("/")
        token = token or environment_token()
        self.headers = {"Authorization": f"Bearer {token}"} if token else {}

    def submit(
        self,
        submission_id: str,
        command: Sequence[str],
        *,
        env_vars: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        num_cpus: float = 0,
        num_gpus: float = 0,
        resources: Mapping[str, float] | None = None,
    ) -> None:
        """Start `command` (an argument list: each element reaches the process as it is) as job `submission_id`.

        What claims nothing runs on the head; of `resources`, the cluster's own, a job can claim what only other nodes have.

        Does nothing where a job of that id is there: an answer that was lost on the way can be asked for again.

        Raises:
            RayUnreachable: also where a head that has just started has no job agent yet; nothing was submitted then.
        """
        body: dict[str, Any] = {
            "entrypoint": entrypoint(command),
            "submission_id": submission_id,
            "metadata": dict(metadata or {}),
            "runtime_env": {"env_vars": dict(env_vars)} if env_vars else {},
        }
        claims = {"entrypoint_num_cpus": num_cpus, "entrypoint_num_gpus": num_gpus, "entrypoint_resources": dict(resources or {})}
        try:
            self._request("POST", "/api/jobs/", body | {name: claim for name, claim in claims.items() if claim})
        except ValueError as error:
            if "already exists" not in str(error):
                raise

    def details(self, submission_id: str) -> Job | None:
        """What Ray knows of the job; None where it has no record of it."""
        try:
            return as_job(self._request("GET", self.path(submission_id)))
        except UnknownJob:
            return None

    def status(self, submission_id: str) -> str:
        """PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED, or MISSING."""
        job = self.details(submission_id)
        return job.status if job else MISSING

    def jobs(self) -> list[Job]:
        """Every submitted job that the cluster still has a record of."""
        return [as_job(found) for found in self._request("GET", "/api/jobs/") if found.get("submission_id")]

    def stop(self, submission_id: str, *, timeout_seconds: float = REQUEST_SECONDS) -> None:
        """Ask the job to end; does nothing when it has ended or is not known."""
        try:
            self._request("POST", f"{self.path(submission_id)}/stop", timeout_seconds=timeout_seconds)
        except UnknownJob:
            return

    def path(self, submission_id: str) -> str:
        """The job's place in the API."""
        return f"/api/jobs/{urllib.parse.quote(submission_id, safe='')}"

    def dashboard_url(self, submission_id: str, base: str | None = None) -> str:
        """The job's page in Ray's dashboard, for a browser that sees it at `base`."""
        return f"{(base or self.address).rstrip('/')}/#/jobs/{urllib.parse.quote(submission_id, safe='')}"

    def _request(self, method: str, path: str, body: Any = None, *, timeout_seconds: float = REQUEST_SECONDS) -> Any:
        headers = {"Content-Type": "application/json", **self.headers}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self.address}{path}", data=data, headers=headers, method=method)  # noqa: S310 - our connection's
        try:
            with _OPENER.open(request, timeout=timeout_seconds) as response:
                answer = response.read()
        except urllib.error.HTTPError as error:
            with error:
                raise self.problem(error.code, error.read().decode(errors="replace")) from None
        except (OSError, http.client.HTTPException) as error:
            raise self.unreachable(error) from error
        return json.loads(answer)

    def problem(self, status: int, text: str) -> Exception:
        """What an HTTP status that is not 200 means."""
        said = next((line.strip() for line in reversed(text.splitlines()) if len(line.strip()) > 1), "nothing")[:500]
        if status in (UNAUTHORIZED, FORBIDDEN):
            return PermissionError(
                f"Ray at {self.address} refuses the token (HTTP {status}): give it as the connection's password, or set "
                "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
            )
        if status == NOT_FOUND:
            return UnknownJob(said)
        if status >= SERVER_ERROR and REFUSED_BY_AGENT not in text:
            return RayUnreachable(f"Ray at {self.address} is not ready (HTTP {status}): {said}")
        return ValueError(f"Ray at {self.address} refuses the request (HTTP {status}): {said}")

    def unreachable(self, error: Exception) -> RayUnreachable:
        reason = getattr(error, "reason", None) or error
        return RayUnreachable(f"no Ray Jobs API answers at {self.address}: is the Ray head running (`bliss up`)? ({reason!r})")


_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def entrypoint(command: Sequence[str]) -> str:
    """The command as Ray wants it, one line for a shell, quoted so that the shell finds the same arguments in it again.

    Raises:
        ValueError: an argument contains a NUL character, which no process can be given.
    """
    if wrong := [argument for argument in command if "\0" in argument]:
        raise ValueError(f"a NUL character in an argument: {wrong[0]!r}")
    return shlex.join(command)


def as_job(found: Mapping[str, Any]) -> Job:
    """A job from the API's own words."""
    return Job(
        submission_id=found["submission_id"],
        status=found["status"],
        entrypoint=found.get("entrypoint") or "",
        message=found.get("message") or "",
        metadata=found.get("metadata") or {},
    )


def environment_token() -> str | None:
    """The token that Ray's own client would send: RAY_AUTH_TOKEN, or the file RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return None
    if token := os.environ.get("RAY_AUTH_TOKEN", "").strip():
        return token
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return (path.read_text().strip() or None) if path.is_file() else None


def patiently(call: Callable[[], T], seconds: float = HEAD_WAIT_SECONDS) -> T:
    """Make a call until Ray answers; gives up `seconds` after it first did not.

    Raises:
        RayUnreachable: it did not answer all the time.
    """
    deadline, delay = None, 0.5
    while True:
        try:
            return call()
        except RayUnreachable as error:
            if deadline is None:
                deadline = time.monotonic() + seconds
                log.warning("%s; waiting up to %.0f s for it", error, seconds)
            if time.monotonic() + delay > deadline:
                raise RayUnreachable(f"{error}; waited {seconds:.0f} s") from error
        time.sleep(delay)
        delay = min(MOST_DELAY_SECONDS, delay * 1.5)
