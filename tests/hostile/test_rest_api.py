"""Hostile values through Airflow's real REST API: what the form's schema refuses never becomes a run; nobody triggers without a login."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import httpx
import pytest

from tests.explorer.airflow_server import Server, airflow_server

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_spec("airflow") is None, reason="Airflow is not installed")]
ROUNDS = "/api/v2/dags/bliss_round/dagRuns"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with airflow_server(str(tmp_path_factory.mktemp("lake")), tmp_path_factory.mktemp("airflow"), with_dags=True) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60, headers={"authorization": f"Bearer {server.token('admin')}"}) as client:
        yield client


def trigger(client: httpx.Client, conf: Any, **fields: Any) -> httpx.Response:
    return client.post(ROUNDS, json={"logical_date": None, "conf": conf} | fields)


def bodies() -> list[Any]:
    from tests.hostile.test_forms import REFUSED_BY_THE_FORM

    return REFUSED_BY_THE_FORM


@pytest.mark.parametrize(("key", "value"), bodies() if find_spec("airflow") else [])
def test_what_the_form_refuses_never_becomes_a_run(client: httpx.Client, key: str, value: Any) -> None:
    answer = trigger(client, {key: value})
    assert answer.status_code in (400, 422), answer.text
    assert key.rpartition(".")[2] in answer.text or "Failed validating" in answer.text or "Invalid input" in answer.text
    assert "Traceback" not in answer.text
    assert client.get(ROUNDS).json()["total_entries"] == 0


@pytest.mark.parametrize("conf", ["x", 1, [], [1], True, "{{ 7*7 }}"], ids=repr)
def test_a_conf_that_is_no_object(client: httpx.Client, conf: Any) -> None:
    assert trigger(client, conf).status_code == 422


@pytest.mark.parametrize("run_id", ["../x", "a/b", "a;id", "$(id)", "a b", "a\nb", "x" * 300], ids=repr)
def test_a_run_id(client: httpx.Client, run_id: str) -> None:
    assert trigger(client, {"recipe": "../x"}, dag_run_id=run_id).status_code in (400, 422)


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 10_000, b"\xff", b'{"conf": ' + b'{"a":' * 2000])
def test_a_body_that_is_no_json(client: httpx.Client, body: bytes) -> None:
    answer = client.post(ROUNDS, content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422)
    assert client.get("/api/v2/version").status_code == 200  # it is still there


@pytest.mark.parametrize("user", [None, "viewer", "nobody"])
def test_who_may_not_trigger(server: Server, client: httpx.Client, user: str | None) -> None:
    headers = {"authorization": f"Bearer {server.token(user)}"} if user else {}
    answer = httpx.post(f"{server.url}{ROUNDS}", json={"logical_date": None, "conf": {}}, headers=headers, timeout=60)
    assert answer.status_code in (401, 403)
    assert client.get(ROUNDS).json()["total_entries"] == 0
