"""What an OTLP receiver is sent, as the names and labels that Prometheus makes of it (its translation `UnderscoreEscapingWithSuffixes`)."""

import re
from collections.abc import Iterator
from typing import Any

from tests.monitoring.receiver import Receiver

UNITS = {"ms": "_milliseconds", "s": "_seconds", "By": "_bytes", "1": "", "": ""}


class OtlpReceiver(Receiver):
    """Takes OTLP metrics over HTTP."""

    @property
    def endpoint(self) -> str:
        return f"{self.url}/api/v1/otlp/v1/metrics"

    @property
    def series(self) -> dict[str, dict[str, str]]:
        """The names that Prometheus would have, each with its last labels."""
        return {name: labels for name, _, labels in self._points()}

    @property
    def kinds(self) -> dict[str, str]:
        return {name: kind for name, kind, _ in self._points()}

    def _points(self) -> Iterator[tuple[str, str, dict[str, str]]]:
        for _, _, body in list(self.requests):
            yield from translated(body)


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
