"""The dashboard's and the alarms' queries, and the metrics they name."""

import json
import re
from pathlib import Path
from typing import Any

import yaml

DOCKER = Path(__file__).parents[2] / "docker"
_NAME = re.compile(r"\b(?:airflow|ray)_[A-Za-z0-9_]+|\bup\b")


def dashboard() -> dict[str, Any]:
    return json.loads((DOCKER / "grafana" / "bliss.json").read_text())  # type: ignore[no-any-return]


def panels() -> list[dict[str, Any]]:
    """Those that show something, without the titles of rows."""
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def alarms() -> list[dict[str, Any]]:
    groups = yaml.safe_load((DOCKER / "prometheus" / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions(*, alarms: bool = True) -> list[str]:
    asked = [target["expr"] for panel in panels() for target in panel["targets"]]
    return asked + ([rule["expr"] for rule in globals()["alarms"]()] if alarms else [])


def metric_names(expression: str) -> set[str]:
    return set(_NAME.findall(re.sub(r'"[^"]*"', '""', expression)))
