"""What `bliss doctor` asks of the servers: Ray's Jobs API and Airflow."""

import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bliss_ops.operations.airflow_history import DATABASE
from bliss_ops.operations.findings import Finding, error, ok, warning

REQUEST_SECONDS = 15
USER, PASSWORD = "BLISS_AIRFLOW_USER", "BLISS_AIRFLOW_PASSWORD"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
UNAUTHORIZED = (401, 403)


def ray(state_dir: Path, address: str | None) -> Iterator[Finding]:
    """The Jobs API: reachable, guarded by a token, of the same version, with living nodes and a GPU where there should be one."""
    from bliss_ops.stack.state import read_state

    name, state = "ray", read_state(state_dir)
    url = address or _ray_address() or (state.layout.ray_url if state else None)
    if url is None:
        yield ok(name, "no Ray cluster is named: no stack is up here, RAY_ADDRESS and the connection ray_default are not set")
        return
    token = _ray_token(state.layout.ray_token if state else None)
    try:
        about = _get(f"{url}/api/version", token)
    except urllib.error.HTTPError as problem:
        fix = "set RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH) to the cluster's token, the same everywhere"
        yield error(name, f"{url} answers {problem.code}" + (" to our token" if token else ": it asks for a token"), fix)
        return
    except (OSError, ValueError) as problem:
        yield error(
            name,
            f"nobody answers at {url} ({problem})",
            "`bliss up` starts one here; else look whether the Ray head runs (`ray status` there)",
        )
        return
    ours = _version("ray")
    if ours and about.get("ray_version") != ours:
        yield error(
            name, f"the cluster has Ray {about.get('ray_version')}, here is {ours}", "the same image or constraints.txt on both sides"
        )
    else:
        yield ok(name, f"Jobs API at {url}, Ray {about.get('ray_version')}")
    yield from _guard(url)
    yield from _nodes(url, token)


def airflow(state_dir: Path, url: str | None) -> Iterator[Finding]:
    """Its four parts, DAG import errors, pools; and whether executor and database go together."""
    from bliss_ops.stack.airflow_api import AirflowApi, AirflowError
    from bliss_ops.stack.state import read_state

    name, state = "airflow", read_state(state_dir)
    yield from _settings(name)
    if state is None and url is None:
        yield ok(name, "no stack is up here; --airflow names another one")
        return
    user, secret = os.environ.get(USER, ""), os.environ.get(PASSWORD, "")
    api = AirflowApi(url, user, secret) if url else state.api  # type: ignore[union-attr]
    try:
        parts = api.health()
    except (OSError, ValueError, AirflowError) as problem:
        yield error(name, f"no answer at {api.url} ({problem})", "is the api-server up? `bliss up`, or `docker compose ps`, then its log")
        return
    for part, word in sorted(parts.items()):
        if word == "healthy":
            yield ok(name, f"{part} is healthy")
        elif word == "None" and part in ("triggerer", "dag_processor"):
            yield warning(name, f"{part} has never reported", f"start it: `airflow {part.replace('_', '-')}`")
        else:
            yield error(
                name,
                f"{part} is {word}",
                f"restart it and read its log: `airflow {part.replace('_', '-')}`; `metadatabase` is the database",
            )
    if url and not secret:
        yield ok(name, f"import errors and pools are not looked at: set {USER} and {PASSWORD}")
        return
    try:
        yield from _contents(name, api)
    except (OSError, ValueError, AirflowError) as problem:
        yield error(name, f"{api.url}: {problem}", f"look whether {USER} may log in")


def _contents(name: str, api: Any) -> Iterator[Finding]:
    from bliss_ops.airflow import GPU_POOL, SCORE_STORE_POOL, TRAINING_POOL

    errors = api.import_errors()
    for text in errors:
        yield error(
            name, f"a DAG cannot be imported: {text.strip().splitlines()[-1]}", "`airflow dags list-import-errors` has the whole of it"
        )
    num_dags = len([dag for dag in api.dag_ids() if dag.startswith("bliss_")])
    if num_dags and not errors:
        yield ok(name, f"{num_dags} DAGs of ours, no import error")
    elif not num_dags:
        yield error(name, "none of our DAGs is there", "AIRFLOW__CORE__DAGS_FOLDER has to be the dags/ of the repository")
    pools = api.pools()
    missing = [pool for pool in (SCORE_STORE_POOL, GPU_POOL, TRAINING_POOL) if pool not in pools]
    if missing:
        commands = ", ".join(f"`airflow pools set {pool} 1 ...`" for pool in missing)
        yield error(name, f"pools missing: {', '.join(missing)}: their tasks wait for ever", f"{commands} (slots: docs/airflow.md)")
    else:
        slots = ", ".join(f"{pool} {pools[pool]}" for pool in (SCORE_STORE_POOL, GPU_POOL, TRAINING_POOL))
        yield ok(name, f"pools: {slots}")
        if pools[SCORE_STORE_POOL] != 1:
            fix = f"`airflow pools set {SCORE_STORE_POOL} 1 'one writer'`"
            yield warning(name, f"the pool {SCORE_STORE_POOL} has {pools[SCORE_STORE_POOL]} slots; the store has one writer", fix)


def _settings(name: str) -> Iterator[Finding]:
    """Of this process's environment; nothing where it is not that of an Airflow."""
    database = os.environ.get(DATABASE, "")
    if not database:
        return
    kind = urlsplit(database).scheme.split("+")[0]
    deferrable = os.environ.get("AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE", "").lower() in ("1", "true", "t")
    if kind == "sqlite" and "timeout=" not in database:
        yield warning(name, "SQLite without a timeout: the API answers 500 under load", f"append ?timeout=60 to {DATABASE}")
    if kind == "sqlite" and deferrable:
        fix = "AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE=False, or Postgres"
        yield warning(name, "deferrable tasks on SQLite: a race of LocalExecutor has been seen to lose them", fix)
    if kind == "sqlite" and os.environ.get("AIRFLOW__CORE__EXECUTOR", "LocalExecutor") not in ("LocalExecutor", "SequentialExecutor"):
        yield error(name, f"{os.environ['AIRFLOW__CORE__EXECUTOR']} on SQLite", "Postgres, as in docker-compose.yml")
    if kind != "sqlite" and not os.environ.get("AIRFLOW__CORE__FERNET_KEY"):
        yield warning(name, "no AIRFLOW__CORE__FERNET_KEY: connections are stored in plain text", "set it in .env (.env.example says how)")


def _guard(url: str) -> Iterator[Finding]:
    """Whether the Jobs API, which runs what it is sent, answers somebody without a token."""
    try:
        _get(f"{url}/api/jobs/", "")
    except urllib.error.HTTPError as problem:
        if problem.code in UNAUTHORIZED:
            yield ok("ray", "the Jobs API refuses who has no token")
            return
        raise
    if urlsplit(url).hostname in LOOPBACK:
        fix = "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN at the head, its workers and Airflow"
        yield warning("ray", "the Jobs API asks for no token: every user of this machine can run commands there", fix)
    else:
        fix = "RAY_AUTH_MODE=token everywhere, and the port closed to other networks (docs/security.md)"
        yield error("ray", "the Jobs API asks for no token and is not on loopback: whoever reaches it runs commands there", fix)


def _nodes(url: str, token: str) -> Iterator[Finding]:
    nodes = _get(f"{url}/nodes?view=summary", token)["data"]["summary"]
    states = [node.get("raylet", {}).get("state", "unknown") for node in nodes]
    living = states.count("ALIVE")
    if living == 0:
        yield error("ray", "no living node", "start a worker: `ray start --address=HEAD:6379`")
    elif living < len(states):
        yield warning(
            "ray", f"{living} of {len(states)} nodes are alive", "restart the others; what they did is done again by those that live"
        )
    else:
        yield ok("ray", f"{living} nodes, all alive")


def _ray_address() -> str | None:
    """From RAY_ADDRESS, else from the Airflow connection `ray_default` in the environment."""
    address = os.environ.get("RAY_ADDRESS", "")
    if address.startswith(("http://", "https://")):
        return address.rstrip("/")
    if values := _connection():
        scheme = "https" if "https" in (values.get("conn_type"), values.get("schema")) else "http"
        return f"{scheme}://{values.get('host')}:{values.get('port') or 8265}"
    return None


def _ray_token(stack: Path | None) -> str:
    """From the variables that Ray itself reads, the connection's password, or the stack that is up."""
    if token := os.environ.get("RAY_AUTH_TOKEN") or _connection().get("password"):
        return str(token)
    file = Path(os.environ["RAY_AUTH_TOKEN_PATH"]) if "RAY_AUTH_TOKEN_PATH" in os.environ else stack
    return file.read_text().strip() if file and file.exists() else ""


def _connection() -> dict[str, Any]:
    text = os.environ.get("AIRFLOW_CONN_RAY_DEFAULT", "")
    return dict(json.loads(text)) if text.startswith("{") else {}


def _get(url: str, token: str) -> Any:
    if not url.startswith(("http://", "https://")):
        raise ValueError("an address begins with http:// or https://")
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})  # noqa: S310 - checked above
    with urllib.request.urlopen(request, timeout=REQUEST_SECONDS) as answer:  # noqa: S310
        return json.load(answer)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
