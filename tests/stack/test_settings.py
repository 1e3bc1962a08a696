"""What `.env` may say: the example, the compose files and the code know the same settings and the same defaults."""

import re
from pathlib import Path

import pytest

from bliss_ops.stack import deployment
from tests.stack.compose_file import REPOSITORY, VARIABLE, dotenv

FILES = ("docker-compose.yml", "docker/gpu.yml", "docker/monitoring.yml")
EXAMPLE = dotenv((REPOSITORY / ".env.example").read_text())
PACKAGE = Path(deployment.__file__).parents[1]

# Read in bliss_ops as if they were not set where they are empty, or by Docker's build and Alertmanager alone.
EMPTY_IS_UNSET = {
    "BLISS_GIT_COMMIT", "BLISS_LANDING", "BLISS_PRIVATE_HOSTS", "BLISS_S3_CONNECTION", "BLISS_SOURCE_ROOTS", "BLISS_WEBHOOK_FORMAT",
    "BLISS_WEBHOOK_SECRET", "BLISS_WEBHOOK_URL", "S3_SESSION_TOKEN", "TORCH_INDEX_URL",
}  # fmt: skip
COMPOSES_OWN = {"BLISS_TRAINING_CPUS"}  # a cluster that is shared needs a claim, a command line none


def uses(*files: str) -> list[tuple[str, str, str]]:
    """Every `${NAME:-word}` and `${NAME:?word}` of the files: name, kind, word."""
    texts = [(REPOSITORY / file).read_text() for file in files]
    return [
        (match["name"], match["kind"] or "", match["word"] or "") for text in texts for match in VARIABLE.finditer(text) if match["name"]
    ]


def test_the_example_and_the_files_name_the_same_settings() -> None:
    assert {name for name, _, _ in uses(*FILES)} == set(EXAMPLE)


def test_every_setting_is_needed_or_has_a_default() -> None:
    assert {kind for _, kind, _ in uses(*FILES)} == {"-", "?"}


def test_the_example_proposes_the_defaults() -> None:
    """An empty line takes the default, whichever file it is in: GPUs are one more with docker/gpu.yml."""
    defaults = {(name, word) for name, kind, word in uses(*FILES) if kind == "-"}
    assert [(name, word) for name, word in sorted(defaults) if EXAMPLE[name] not in ("", word)] == []
    several = {name for name, word in defaults for other in defaults if other[0] == name and other[1] != word}
    assert several == {"BLISS_TRAINING_GPUS"}
    assert {name for name, word in defaults if not word} == EMPTY_IS_UNSET


def test_secrets_are_empty_in_the_example() -> None:
    secret = {name for name in EXAMPLE if re.search(r"PASSWORD|SECRET|TOKEN|_KEY$|WEBHOOK_URL", name)}
    assert secret >= {*deployment.SECRETS, *deployment.WHERE_USED}
    assert {name for name in secret if EXAMPLE[name]} == set()


def test_defaults_are_the_codes() -> None:
    from bliss_ops import object_store

    code = code_defaults() | {
        object_store.RETRY_SECONDS: f"{object_store.DEFAULT_RETRY_SECONDS:g}",
        object_store.TIMEOUT_SECONDS: f"{object_store.DEFAULT_TIMEOUT_SECONDS:g}",
        object_store.ADDRESSING_STYLE: "auto",
    }
    ours = {name: word for name, kind, word in uses("docker-compose.yml") if kind == "-" and word}
    assert {name: ours[name] for name in code.keys() & ours.keys() - COMPOSES_OWN} == {
        name: code[name] for name in code.keys() & ours.keys() - COMPOSES_OWN
    }
    untold = {name for name in ours if name.startswith("BLISS_")} - code.keys()
    assert untold == {"BLISS_WEBHOOK_EVENTS"}


def code_defaults() -> dict[str, str]:
    """Every default of a variable that the package's source gives beside its name, or beside the constant that has it."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        constants = dict(re.findall(r'^([A-Z_]+) = "(BLISS_\w+)"', text, re.MULTILINE))
        found |= {name: word for name, word in re.findall(r'"(BLISS_\w+)", "([^"]+)"', text) if not word.startswith("BLISS_")}
        found |= {constants[key]: word for key, word in re.findall(r'environ\.get\(([A-Z_]+), "([^"]+)"', text) if key in constants}
    return found


def test_the_webhooks_events_are_the_codes() -> None:
    """Empty would be none of them, so that the file must have them."""
    pytest.importorskip("airflow")
    from bliss_ops.airflow import notifications

    (events,) = {word for name, _, word in uses("docker-compose.yml") if name == notifications.EVENTS}
    assert tuple(events.split(",")) == notifications.DEFAULT_EVENTS


def test_an_empty_session_token_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither for the lake's file system nor for botocore, which finds it by itself where the bucket is made."""
    import botocore.session

    from bliss_ops import object_store

    for name, value in {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_SESSION_TOKEN": ""}.items():
        monkeypatch.setenv(name, value)
    assert "AWS_SESSION_TOKEN" not in object_store.environment()
    assert not botocore.session.Session().get_credentials().token


def test_an_empty_webhook_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("airflow")
    from bliss_ops.airflow import webhook

    for name in (webhook.URL, webhook.SECRET, webhook.FORMAT):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("AIRFLOW_CONN_BLISS_WEBHOOK", '{"conn_type": "http", "extra": {"url": "http://127.0.0.1/hook"}}')
    found = webhook.configured()
    assert found is not None
    assert (found.url, found.secret, found.format) == ("http://127.0.0.1/hook", "", webhook.GENERIC)
