"""Who may come in: on every address, whatever the method, and whatever is there."""

import socket
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest
from fastapi import HTTPException
from starlette.requests import Request
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from bliss_ops.explorer.app import create_app
from bliss_ops.lake import Lake

ADDRESSES = [
    "/",
    "/run/demo-bliss-s0/round-01",
    "/examples/demo-bliss-s0/round-01",
    "/sources/demo-bliss-s0/round-01",
    "/domains/demo-bliss-s0/round-01",
    "/rounds/demo-bliss-s0/round-01",
    "/beside/demo-bliss-s0/round-01",
    "/overlap",
    "/document/tiny/1",
    "/dag/bliss_round",
    "/sql",
    "/sql/run",
    "/sql/csv",
    "/sql/cancel",
    "/static/explorer.css",
    "/static/explorer.js",
    "/static/icon.svg",
    "/static/nothing",
    "/nothing",
    "/nothing/at/all",
    "/docs",
    "/redoc",
    "/openapi.json",
    "//",
    "/%2e%2e/",
    "/?page=0",
]
METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"]


@pytest.fixture
def closed(lake: Lake) -> Iterator[TestClient]:
    async def authorize(request: Request) -> None:
        if request.headers.get("authorization") != "Bearer good":
            raise HTTPException(401, "Not authenticated")

    with TestClient(create_app(lake, authorize=authorize)) as client:
        yield client


@pytest.mark.parametrize("method", METHODS)
def test_strangers_get_401_everywhere_and_learn_nothing(closed: TestClient, method: str) -> None:
    for address in ADDRESSES:
        answer = closed.request(method, address, headers={"x-bliss-explorer": "1"}, content=b"{" if method == "POST" else None)
        assert answer.status_code == 401, address
        assert answer.text in ("", "Not authenticated: log in to Airflow first."), address


def test_every_route_of_the_application_is_in_the_list(closed: TestClient) -> None:
    app = closed.app
    known = {address.strip("/").split("/")[0].split("?")[0] for address in ADDRESSES}
    assert {route.path.strip("/").split("/")[0].split("{")[0] for route in app.routes} <= known  # type: ignore[attr-defined]


def test_a_websocket_is_refused(closed: TestClient) -> None:
    with pytest.raises(WebSocketDisconnect), closed.websocket_connect("/"):
        pass


def test_who_may_come_in_gets_in(closed: TestClient) -> None:
    headers = {"authorization": "Bearer good"}
    assert closed.get("/", headers=headers).status_code == 200
    assert closed.get("/nothing", headers=headers).status_code == 404


@pytest.mark.parametrize("address", ["/", "/nothing", "/static/explorer.js", "/?page=0"])
def test_every_answer_carries_the_headers(client: TestClient, address: str) -> None:
    headers = client.get(address).headers
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'self'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8090", 200),
        ("localhost", 200),
        ("[::1]:8090", 200),
        ("evil.example", 400),
        ("evil.example:8090", 400),
        ("127.0.0.1.evil.example", 400),
        ("localhost:80@evil.example", 400),
        ("", 400),
    ],
)
def test_the_server_alone_answers_to_loopback_names_only(client: TestClient, host: str, status: int) -> None:
    assert client.get("/", headers={"host": host}).status_code == status


def test_the_command_serves_on_loopback_only(lake: Lake) -> None:
    command = [sys.executable, "-m", "bliss_ops.cli", "explore", "--lake", str(lake.root), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().split()[4]
            assert address.startswith("http://127.0.0.1:")
            assert httpx.get(address).status_code == 200
            assert httpx.get(address, headers={"host": "evil.example"}).status_code == 400
            port = int(address.rstrip("/").rpartition(":")[2])
            with socket.socket() as probe:  # another address of this machine: nobody listens there
                probe.settimeout(2)
                assert probe.connect_ex(("127.0.0.2", port)) != 0
        finally:
            process.terminate()
            process.wait(10)


def test_a_taken_port_is_said_in_one_sentence(lake: Lake) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        command = [sys.executable, "-m", "bliss_ops.cli", "explore", "--lake", str(lake.root), "--port", str(taken.getsockname()[1])]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 1
    assert "choose another with --port" in result.stderr
    assert "Traceback" not in result.stderr
