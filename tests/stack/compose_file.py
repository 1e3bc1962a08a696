"""`docker-compose.yml` as Docker would run it, without Docker: values filled in, the images' environment added."""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).parents[2]
VARIABLE = re.compile(r"\$(?:(?P<escaped>\$)|\{(?P<name>[A-Z_0-9]+)(?::(?P<kind>[-?])(?P<word>[^}]*))?\})")


@dataclass
class ComposeService:
    """One service: what a container of it would be started with."""

    name: str
    image: str
    command: list[str]
    environment: dict[str, str]
    mounts: dict[str, str] = field(default_factory=dict)  # path inside -> named volume; empty for one of its own
    depends_on: dict[str, str] = field(default_factory=dict)
    restart: str = "no"
    is_hardened: bool = False  # of our images: read-only root, no capabilities, no new privileges, user 50000
    healthcheck: list[str] = field(default_factory=list)


def read(environment: dict[str, str], *overrides: str) -> dict[str, ComposeService]:
    """Every service by name, with `environment` (the content of `.env`) filled in.

    Args:
        environment: variables by name.
        overrides: further files, relative to the repository; their services' environment and commands replace.

    Raises:
        KeyError: a variable is needed and not there.
    """
    services: dict[str, dict[str, Any]] = {}
    for file in ("docker-compose.yml", *overrides):
        document = _interpolated(yaml.safe_load((REPOSITORY / file).read_text()), environment)
        for name, service in document["services"].items():
            before = services.setdefault(name, {})
            variables = before.get("environment", {}) | service.get("environment", {})
            before |= service | {"environment": variables}
    return {name: _service(name, service) for name, service in services.items()}


def dotenv(text: str) -> dict[str, str]:
    """The variables of an `.env` file."""
    pairs = (line.partition("=") for line in text.splitlines() if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}


def _interpolated(value: Any, environment: dict[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _interpolated(item, environment) for key, item in value.items()}
    if isinstance(value, list):
        return [_interpolated(item, environment) for item in value]
    return VARIABLE.sub(lambda match: _value(match, environment), value) if isinstance(value, str) else value


def _value(match: re.Match[str], environment: dict[str, str]) -> str:
    if match["escaped"]:
        return "$"
    if found := environment.get(match["name"]):
        return found
    if match["kind"] == "?":
        raise KeyError(f"{match['name']}: {match['word']}")
    return match["word"] or ""


def _service(name: str, service: dict[str, Any]) -> ComposeService:
    variables = _image(service)
    volumes = [volume.split(":") for volume in service.get("volumes", ())]
    mounts = {parts[1]: parts[0] for parts in volumes if len(parts) > 1} | {parts[0]: "" for parts in volumes if len(parts) == 1}
    mounts |= {path.partition(":")[0]: "" for path in service.get("tmpfs", ())}
    return ComposeService(
        name=name,
        image=service["image"],
        command=list(service.get("command", ())),
        environment=variables | {key: str(value) for key, value in service.get("environment", {}).items()},
        mounts=mounts,
        depends_on={other: wanted["condition"] for other, wanted in service.get("depends_on", {}).items()},
        restart=service.get("restart", "no"),
        is_hardened=bool(service.get("read_only")) and service.get("cap_drop") == ["ALL"] and "build" in service,
        healthcheck=list(service.get("healthcheck", {}).get("test", ())),
    )


def _image(service: dict[str, Any]) -> dict[str, str]:
    """The environment that the service's Dockerfile gives it; nothing for an image that is not ours."""
    if "build" not in service:
        return {}
    text = (REPOSITORY / service["build"]["dockerfile"]).read_text().replace("\\\n", " ")
    variables: dict[str, str] = {}
    for line in text.splitlines():
        instruction, _, rest = line.partition(" ")
        assert instruction != "ENTRYPOINT", "commands are whole in the compose file"
        if instruction == "ENV":
            variables |= {key: value for key, _, value in (word.partition("=") for word in shlex.split(rest)) if "$" not in value}
    return variables
