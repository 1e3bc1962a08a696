"""Servers that lead a request elsewhere, send too much, or hand out lists of addresses that nobody here typed."""
# ruff: noqa: E501 - tables

import gzip
import http.server
import threading
from collections.abc import Iterator
from urllib.parse import unquote

import pytest

from bliss_ops.corpus import redirects
from bliss_ops.corpus.readers import Document, read_records
from bliss_ops.corpus.source import expand
from bliss_ops.names import RefusedHostError, check_reachable

BOMB = gzip.compress(b" " * (16 << 20))
LINES = b'{"text": "a"}\n'
TARGETS = {
    "file:///etc/passwd": "cannot be reached or read", "ftp://127.0.0.1/a.jsonl": "cannot be reached or read", "gopher://h/a": "cannot be reached",
    "http://127.0.0.1:1/a.jsonl": "not a public address", "http://localhost:1/a.jsonl": "not a public address", "http://0.0.0.0/a": "not a public address",
    "http://[::1]/a.jsonl": "not a public address", "http://[::ffff:127.0.0.1]/a": "not a public address", "http://169.254.169.254/latest/": "not a public",
    "http://10.0.0.1/a": "not a public address", "http://172.16.0.1/a": "not a public address", "http://192.168.0.1/a": "not a public address",
    "http://100.64.0.1/a": "not a public address", "http://[fd00::1]/a": "not a public address", "http://[fe80::1]/a": "not a public address",
    "http://2130706433/a": "is not read|cannot be reached", "http://0x7f000001/a": "is not read|cannot be reached", "http://127.1/a": "is not read|cannot be reached",
    "http://224.0.0.1/a": "not a public address", "http://[64:ff9b::7f00:1]/a": "not a public address", "//127.0.0.1:1/a.jsonl": "not a public address",
}  # fmt: skip


class Handler(http.server.BaseHTTPRequestHandler):
    """`/to?<address>` redirects there; `/again` to itself; `/bomb` is encoded; `/list` is a list; everything else are two documents."""

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        content = LINES
        if path.startswith("/to"):
            return self.lead(unquote(query))
        if path.startswith("/again"):
            return self.lead(self.path)
        if path.startswith("/list"):
            content = query.removesuffix("&.list").replace("%0A", "\n").encode()
        self.send_response(200)
        if path.startswith("/bomb"):
            self.send_header("Content-Encoding", "gzip")
            content = BOMB
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)
        return None

    do_HEAD = do_GET

    def lead(self, where: str) -> None:
        self.send_response(302)
        self.send_header("Location", where)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_an_address_that_somebody_typed_may_be_private(host: str) -> None:
    assert [type(record) for record in read_records(f"{host}/a.jsonl", 1000)] == [Document]
    assert [type(record) for record in read_records(f"{host}/to.jsonl?{host}/b.jsonl", 1000)] == [Document]  # it leads back to itself


@pytest.mark.parametrize("target", TARGETS)
def test_a_redirect_does_not_lead_inside(host: str, target: str) -> None:
    with pytest.raises(ValueError, match=TARGETS[target]) as caught:
        list(read_records(f"{host}/to.jsonl?{target}", 1000))
    assert host in str(caught.value)


def test_exceptions_are_named(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    other = host.replace("127.0.0.1", "localhost")
    with pytest.raises(ValueError, match="not a public address"):
        list(read_records(f"{host}/to.jsonl?{other}/a.jsonl", 1000))
    monkeypatch.setenv("BLISS_PRIVATE_HOSTS", "10.0.0.0/8 localhost")
    assert list(read_records(f"{host}/to.jsonl?{other}/a.jsonl", 1000))


def test_redirects_are_counted(host: str) -> None:
    with pytest.raises(ValueError, match=r"again\.jsonl cannot be reached or read"):
        list(read_records(f"{host}/again.jsonl", 1000))


def test_an_encoding_of_the_transport_is_not_unpacked(host: str) -> None:
    records = list(read_records(f"{host}/bomb.jsonl", 1000))  # 16 kB of gzip, as they came
    assert records
    assert not any(isinstance(record, Document) for record in records)


@pytest.mark.parametrize(
    "line",
    [
        "/etc/passwd.jsonl",
        "http://169.254.169.254/a.jsonl",
        "s3://bucket/a.jsonl",
        "hf://datasets/o/n/a.jsonl",
        "https://127.0.0.1/a.jsonl",
    ],
)
def test_a_list_from_elsewhere_names_files_of_its_own_host(host: str, line: str) -> None:
    own = f"{host}/b.jsonl"
    assert expand(f"{host}/list?{own}&.list") == [own]
    with pytest.raises(ValueError, match="a fetched list may only name files of its own host"):
        expand(f"{host}/list?{line}%0A{own}&.list")


def test_a_name_is_looked_up_once_and_every_address_counts() -> None:
    check_reachable("example.org", ["93.184.216.34", "2606:2800:220:1::1"])
    with pytest.raises(RefusedHostError, match=r"example\.org \(127\.0\.0\.1\)"):
        check_reachable("example.org", ["93.184.216.34", "127.0.0.1"])
    with pytest.raises(RefusedHostError, match="from https to http"):
        redirects._check_scheme("https", "http", "example.org")


def test_a_name_that_resolves_to_a_private_address_is_refused_before_the_connection(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from aiohttp.resolver import DefaultResolver

    asked = []

    async def resolve(_: object, name: str, port: int = 0, family: int = 0) -> list[dict[str, object]]:
        asked.append(name)
        return [{"hostname": name, "host": "127.0.0.1", "port": port, "family": 2, "proto": 0, "flags": 0}]

    monkeypatch.setattr(DefaultResolver, "resolve", resolve)
    with pytest.raises(ValueError, match=r"rebinds\.example \(127\.0\.0\.1\), which is not a public address"):
        list(read_records(f"{host}/to.jsonl?http://rebinds.example/a.jsonl", 1000))
    assert set(asked) == {"rebinds.example"}
