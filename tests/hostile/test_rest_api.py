"""Hostile values through Airflow's real REST API: what the form's schema refuses never becomes a run; nobody triggers without a login."""
# ruff: noqa: E501 - tables

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


def trigger(client: httpx.Client, conf: Any, runs: str = ROUNDS, **fields: Any) -> httpx.Response:
    return client.post(runs, json={"logical_date": None, "conf": conf} | fields)


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


OF_OTHER_DAGS = {
    "bliss_ingest": [
        ("recipe", "../x"), ("recipe", "smoke; id"), ("ingest.source", ""), ("ingest.source", ["a"]), ("ingest.num_groups", 65), ("ingest.corpus", 1),
        ("ingest.vocab_size", "512; id"), ("ingest.validation.others", "a"), ("ingest.validation.others", ["a"]), ("ingest.tokenizer", {"a": 1}),
    ],
    "bliss_compare": [
        ("methods", "random"), ("methods", ["random"]), ("methods", ["random", "os.system"]), ("methods", ["random", "../bliss"]), ("seeds", []),
        ("seeds", [-1]), ("seeds", ["0; id"]), ("seeds", [0, 0]), ("baseline", "$(id)"), ("name", 1), ("name", ["x"]), ("recipe", "/etc/passwd"),
    ],
    "bliss_rescore": [
        ("corpus", 1), ("corpus", ["x"]), ("runs", "x"), ("runs", [1]), ("runs", [["x"]]), ("round", 0), ("round", "1; id"), ("groups", 0), ("groups", 65),
    ],
    "bliss_land": [
        ("prefix", 1), ("prefix", ["/x"]), ("prefix", {"a": 1}), ("settle_seconds", -1), ("settle_seconds", 601), ("settle_seconds", "5; id"), ("settle_seconds", None),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("dag_id", "key", "value"), [(dag_id, *case) for dag_id, cases in OF_OTHER_DAGS.items() for case in cases], ids=repr
)
def test_the_forms_of_the_other_dags_refuse_it_too(client: httpx.Client, dag_id: str, key: str, value: Any) -> None:
    runs = ROUNDS.replace("bliss_round", dag_id)
    answer = trigger(client, {key: value}, runs)
    assert answer.status_code in (400, 422), answer.text
    assert f"Invalid input for param {key}: " in answer.text
    assert "Traceback" not in answer.text
    assert client.get(runs).json()["total_entries"] == 0


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
