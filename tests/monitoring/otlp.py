"""What an OTLP receiver is sent, as the names and labels that Prometheus makes of it (its translation `UnderscoreEscapingWithSuffixes`)."""

import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

UNITS = {"ms": "_milliseconds", "s": "_seconds", "By": "_bytes", "1": "", "": ""}


@dataclass
class OtlpReceiver:
    """Takes OTLP metrics over HTTP, as a context manager; `series` are the names Prometheus would have, each with its last labels."""

    series: dict[str, dict[str, str]] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}/api/v1/otlp/v1/metrics"

    def __enter__(self) -> "OtlpReceiver":
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                for name, kind, labels in translated(body):
                    receiver.series[name], receiver.kinds[name] = labels, kind
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


def translated(body: bytes) -> Iterator[tuple[str, str, dict[str, str]]]:
    """(name, kind, labels) of every point of a request."""
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    request = ExportMetricsServiceRequest.FromString(body)
    for of_process in request.resource_metrics:
        resource = _attributes(of_process.resource.attributes)
        whose = {"job": resource.get("service.name", ""), "instance": resource.get("service.instance.id", "")}
        for scope in of_process.scope_metrics:
            for metric in scope.metrics:
                kind = str(metric.WhichOneof("data"))
                data = getattr(metric, kind)
                name = prometheus_name(metric.name, metric.unit, is_counter=kind == "sum" and data.is_monotonic)
                for point in data.data_points:
                    yield name, kind, whose | {_escaped(key): value for key, value in _attributes(point.attributes).items()}


def prometheus_name(name: str, unit: str = "", *, is_counter: bool = False) -> str:
    return _escaped(name) + UNITS[unit] + ("_total" if is_counter else "")


def _escaped(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_]", "_", name)


def _attributes(pairs: Any) -> dict[str, str]:
    return {pair.key: str(getattr(pair.value, str(pair.value.WhichOneof("value")))) for pair in pairs}
