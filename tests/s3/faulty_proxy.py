"""An HTTP proxy before an S3 server that fails on purpose: by rule, for a time or a number of requests.

    with FaultyProxy(upstream) as proxy:              # upstream: "http://127.0.0.1:9000"; clients are given proxy.endpoint
        proxy.fail(503, seconds=30)                   # every request is answered 503
        proxy.fail(500, method="PUT", path=r"shard-00001", count=2)
        proxy.reset(count=3)                          # the connection is reset, nothing is answered
        proxy.hang(method="GET", seconds=10)          # nothing is answered at all, until the client gives up
        proxy.cut_upload(path=r"partNumber=2", count=1)  # half of the body reaches the upstream, then both connections are reset
        proxy.cut_download(count=1)                   # half of the answer reaches the client, then its connection is reset

The headers are passed on as they are, the host too, because requests are signed with it. What came through is counted by operation
(`proxy.counts()`: HEAD, GET, LIST, PUT, ...), and every request is in `proxy.requests`. Listens on the loopback interface alone.
"""

import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

CHUNK = 1 << 16
UPSTREAM_SECONDS = 60.0
SETTLE_SECONDS = 1.0
HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "expect", "content-length")
CODES = {500: "InternalError", 503: "SlowDown"}
RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER without patience: closing sends RST

Kind = Literal["status", "reset", "hang", "cut_upload", "cut_download"]


@dataclass
class Rule:
    """What goes wrong, with which requests, and how often or how long."""

    kind: Kind
    method: str | None = None
    path: str = ""  # regular expression, searched in path and query
    count: int | None = None  # of requests; None: without end
    seconds: float | None = None  # from now on; None: without end
    status: int = 503
    code: str = ""  # of the error; what S3 says with that status, when empty
    more: str = ""  # XML elements beside it
    headers: dict[str, str] = field(default_factory=dict)
    num_hits: int = 0
    begun: float = field(default_factory=time.monotonic)

    @property
    def is_over(self) -> bool:
        return (self.count is not None and self.num_hits >= self.count) or (
            self.seconds is not None and time.monotonic() - self.begun > self.seconds
        )

    def fits(self, method: str, path: str) -> bool:
        return not self.is_over and self.method in (None, method) and re.search(self.path, path) is not None


@dataclass(frozen=True)
class Request:
    """One request as it came through; `status` 0: nothing was answered."""

    operation: str
    method: str
    path: str
    status: int
    num_bytes_in: int
    num_bytes_out: int
    seconds: float


class FaultyProxy:
    """The proxy, listening from the beginning; `close()` or leaving the context ends it."""

    def __init__(self, upstream: str, *, port: int = 0) -> None:
        parts = urlsplit(upstream)
        self.upstream = (parts.hostname or "", parts.port or 80)
        self.requests: list[Request] = []
        self._rules: list[Rule] = []
        self._lock = threading.Condition()
        self._num_open = 0  # requests that are not yet counted
        self._server = _Server(("127.0.0.1", port), self)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def __enter__(self) -> "FaultyProxy":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.clear()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def fail(self, status: int = 503, **which: Any) -> Rule:
        """Answer with that status; `which`: method, path, count, seconds, and what is in the answer: code, more, headers."""
        return self._add(Rule("status", status=status, **which))

    def reset(self, **which: Any) -> Rule:
        """Reset the connection once the request has been read."""
        return self._add(Rule("reset", **which))

    def hang(self, **which: Any) -> Rule:
        """Do not answer, until the client gives up or the rule is over; nothing reaches the upstream."""
        return self._add(Rule("hang", **which))

    def cut_upload(self, **which: Any) -> Rule:
        """Pass half of the body on, then reset both connections."""
        return self._add(Rule("cut_upload", **which))

    def cut_download(self, **which: Any) -> Rule:
        """Give the client half of the answer's body, then reset its connection."""
        return self._add(Rule("cut_download", **which))

    def clear(self) -> None:
        """Everything works again."""
        with self._lock:
            self._rules.clear()

    def counts(self) -> Counter[str]:
        """Requests by operation since the beginning or `forget()`."""
        with self._lock:
            self._lock.wait_for(lambda: not self._num_open, SETTLE_SECONDS)  # a client has its answer before the request is counted
            return Counter(request.operation for request in self.requests)

    def forget(self) -> None:
        """Begin to count anew."""
        with self._lock:
            self._lock.wait_for(lambda: not self._num_open, SETTLE_SECONDS)
            self.requests.clear()

    def holds(self, rule: Rule) -> bool:
        with self._lock:
            return rule in self._rules and not (rule.seconds is not None and rule.is_over)

    def rule_for(self, method: str, path: str) -> Rule | None:
        """The first rule that fits, which counts this request; `add_request` follows when it is answered."""
        with self._lock:
            self._num_open += 1
            for rule in self._rules:
                if rule.fits(method, path):
                    rule.num_hits += 1
                    return rule
        return None

    def add_request(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)
            self._num_open -= 1
            self._lock.notify_all()

    def _add(self, rule: Rule) -> Rule:
        with self._lock:
            self._rules.append(rule)
        return rule


def operation_of(method: str, path: str) -> str:
    """The S3 operation in a word: `LIST` and multipart requests are told from plain ones by their query."""
    parts = urlsplit(path)
    query = parse_qs(parts.query, keep_blank_values=True)
    if "uploadId" in query:
        return {"PUT": "UPLOAD_PART", "POST": "COMPLETE", "DELETE": "ABORT"}.get(method, method)
    if "uploads" in query:
        return "CREATE_UPLOAD" if method == "POST" else "LIST_UPLOADS"
    if "delete" in query:
        return "DELETE_MANY"
    if method == "GET" and ("list-type" in query or "prefix" in query):
        return "LIST"
    return method if parts.path.strip("/").count("/") else f"{method}_BUCKET"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], proxy: FaultyProxy) -> None:
        self.proxy = proxy
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server
    num_out = 0

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Say nothing."""

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (ConnectionError, TimeoutError):
            self.close_connection = True

    def _handle(self) -> None:
        begun = time.monotonic()
        self.num_out = 0
        length = int(self.headers.get("Content-Length") or 0)
        rule = self.server.proxy.rule_for(self.command, self.path)
        status = 0
        try:
            status = self._pass_on(length, None) if rule is None else self._go_wrong(rule, length)
        finally:
            operation = operation_of(self.command, self.path)
            seconds = time.monotonic() - begun
            self.server.proxy.add_request(Request(operation, self.command, self.path, status, length, self.num_out, seconds))

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _handle

    def _go_wrong(self, rule: Rule, length: int) -> int:
        if rule.kind in ("cut_upload", "cut_download"):
            return self._pass_on(length, rule.kind)
        self._read_body(length, lambda chunk: None)
        if rule.kind == "hang":
            self.connection.settimeout(0.1)
            while self.server.proxy.holds(rule) and not self._client_is_gone():
                pass
        if rule.kind in ("hang", "reset"):
            self._reset()
            return 0
        code = rule.code or CODES.get(rule.status, "ServiceUnavailable")
        body = f"<Error><Code>{code}</Code><Message>made to fail</Message>{rule.more}</Error>".encode()
        self.send_response_only(rule.status)
        headers = {"Date": self.date_time_string(), "Content-Type": "application/xml", "Content-Length": str(len(body))} | rule.headers
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        return rule.status

    def _pass_on(self, length: int, cut: Kind | None) -> int:
        connection = HTTPConnection(*self.server.proxy.upstream, timeout=UPSTREAM_SECONDS)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in HOP_BY_HOP:
                    connection.putheader(name, value)
            if "Content-Length" in self.headers:
                connection.putheader("Content-Length", str(length))
            connection.endheaders()
            self._read_body(length // 2 if cut == "cut_upload" else length, connection.send)
            if cut == "cut_upload":
                assert connection.sock is not None
                connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                self._reset()
                return 0
            return self._answer(connection.getresponse(), cut)
        except (OSError, HTTPException):  # the upstream is not there, or went away: so is this connection
            self._reset()
            return 0
        finally:
            connection.close()

    def _answer(self, response: HTTPResponse, cut: Kind | None) -> int:
        has_length = response.getheader("Content-Length") is not None
        body = b"" if has_length or self.command == "HEAD" else response.read()
        self.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        length = int(response.getheader("Content-Length") or len(body))
        if response.status not in (204, 304):
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command == "HEAD":
            return response.status
        left = length // 2 if cut else length
        while left and (chunk := body[:left] or response.read(min(CHUNK, left))):
            self.wfile.write(chunk)
            self.num_out += len(chunk)
            left -= len(chunk)
            body = body[len(chunk) :]
        if cut or left:
            self.wfile.flush()
            self._reset()
        return response.status

    def _read_body(self, length: int, take: Callable[[bytes], Any]) -> None:
        while length > 0:
            chunk = self.rfile.read(min(CHUNK, length))
            if not chunk:
                raise ConnectionResetError("the client went away in the middle of its request")
            take(chunk)
            length -= len(chunk)

    def _client_is_gone(self) -> bool:
        try:
            return not self.connection.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            return False

    def _reset(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        self.rfile.close()  # the socket is closed with its last user
        self.connection.close()
