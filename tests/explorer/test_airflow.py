"""The plugin in Airflow's real API server: nobody sees anything of it without a login that may read the DAG."""

import subprocess
import sys
import uuid
from collections.abc import Iterator
from importlib.util import find_spec

import httpx
import pytest

from bliss_ops.lake import Lake
from tests.explorer.airflow_server import Server, airflow_server
from tests.explorer.test_guard import ADDRESSES, METHODS
from tests.lakes import SCRIPT

pytestmark = pytest.mark.skipif(find_spec("airflow") is None, reason="Airflow is not installed")
REFUSED = (401, 403)


@pytest.fixture(scope="module")
def server(lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with airflow_server(str(lake.root), tmp_path_factory.mktemp("airflow")) as server:
        yield server


@pytest.fixture
def stranger(server: Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{server.url}/bliss", timeout=30) as client:
        yield client


def test_without_a_login_every_address_answers_401(stranger: httpx.Client) -> None:
    for method in METHODS:
        for address in ADDRESSES:
            answer = stranger.request(method, address, headers={"x-bliss-explorer": "1"}, content=b"{" if method == "POST" else None)
            assert answer.status_code in REFUSED, (method, address, answer.status_code)
            assert "demo" not in answer.text, (method, address)


@pytest.mark.parametrize("credential", ["header", "cookie"])
@pytest.mark.parametrize("token", ["0", "x", "eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9."])
def test_with_a_made_up_token_too(server: Server, credential: str, token: str) -> None:
    given = {"headers": {"authorization": f"Bearer {token}"}} if credential == "header" else {"cookies": {"_token": token}}
    with httpx.Client(base_url=f"{server.url}/bliss", **given) as client:  # type: ignore[arg-type]
        for address in ("/", "/sql", "/static/explorer.js", "/nothing"):
            assert client.get(address).status_code in REFUSED, address


def test_a_user_who_may_not_read_the_dag_is_forbidden(server: Server, stranger: httpx.Client) -> None:
    headers = {"authorization": f"Bearer {server.token('nobody')}"}
    for address in ("/", "/document/tiny/1", "/static/explorer.js", "/nothing"):
        assert stranger.get(address, headers=headers).status_code == 403, address
    assert stranger.post("/sql/run", headers=headers | {"x-bliss-explorer": "1"}, json={}).status_code == 403


@pytest.mark.parametrize("credential", ["header", "cookie"])
def test_a_viewer_sees_the_pages_and_asks_the_console(server: Server, credential: str) -> None:
    token = server.token("viewer")
    given = {"headers": {"authorization": f"Bearer {token}"}} if credential == "header" else {"cookies": {"_token": token}}
    with httpx.Client(base_url=f"{server.url}/bliss", timeout=30, **given) as client:  # type: ignore[arg-type]
        home = client.get("/")
        assert home.status_code == 200
        assert 'href="/bliss/run/demo-bliss-s0/round-01"' in home.text
        assert 'src="/bliss/static/explorer.js' in home.text
        assert client.get("/static/explorer.css").status_code == 200
        assert client.get("/nothing").status_code == 404
        question = {"id": uuid.uuid4().hex, "statement": f"select '{SCRIPT.replace(chr(39), chr(39) * 2)}' as script"}
        answer = client.post("/sql/run", json=question, headers={"x-bliss-explorer": "1"})
        assert answer.json()["rows"] == [[SCRIPT]]
        assert answer.headers["content-type"] == "application/json"
        assert client.post("/sql/run", json=question).status_code == 403  # not from the console's own page


def test_airflow_lists_the_entry_and_the_tab(server: Server) -> None:
    answer = httpx.get(f"{server.url}/api/v2/plugins", headers={"authorization": f"Bearer {server.token('admin')}"}, timeout=30)
    (plugin,) = [plugin for plugin in answer.json()["plugins"] if plugin["name"] == "bliss"]
    assert {(view["destination"], view["href"]) for view in plugin["external_views"]} == {("nav", "bliss/"), ("dag", "bliss/dag/{DAG_ID}")}


def test_importing_the_plugin_is_light() -> None:
    code = (
        "import sys, airflow.plugins_manager; before = set(sys.modules); import bliss_ops.airflow.plugin; "
        "print(sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert result.stdout.splitlines()[-1] == "['bliss_ops']"
