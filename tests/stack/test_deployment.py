"""What a deployment is refused for, and the secrets that are made for it."""

import base64
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bliss_ops.stack import deployment
from tests.stack.compose_file import REPOSITORY, dotenv

GOOD = dotenv(deployment.fill((REPOSITORY / ".env.example").read_text()))
FERNET_OF_ZEROS = base64.urlsafe_b64encode(bytes(32)).decode()


def test_what_is_filled_in_is_accepted_anywhere() -> None:
    assert deployment.problems(GOOD) == []
    assert deployment.problems(GOOD | {"BIND_ADDRESS": "0.0.0.0"}) == []  # noqa: S104
    assert len({GOOD[name] for name in deployment.SECRETS}) == len(deployment.SECRETS)


@pytest.mark.parametrize("name", deployment.SECRETS)
@pytest.mark.parametrize("value", ["", "changeme", "password", "a" * 40, "0123456789abcde", "changeme-changeme"])
def test_no_secret_may_be_empty_short_or_an_example(name: str, value: str) -> None:
    found = deployment.problems(GOOD | {name: value})
    assert len(found) == 1
    assert found[0].startswith(f"{name} ({deployment.SECRETS[name]}) ")
    assert not value or value not in found[0], "a secret is not shown, not even a bad one"


@pytest.mark.parametrize("value", ["", "changeme", "password", "a" * 40, "0123456789abcde"])
def test_grafanas_password_is_checked_where_there_is_a_grafana(value: str) -> None:
    without = {name: value for name, value in GOOD.items() if name != "GRAFANA_PASSWORD"}
    assert deployment.problems(without) == []
    twenty = "0f9d2c71be04d8a6c35e"
    assert deployment.problems(GOOD | {"BIND_ADDRESS": "0.0.0.0", "GRAFANA_PASSWORD": twenty}) == []  # noqa: S104
    (found,) = deployment.problems(without | {"GRAFANA_PASSWORD": value})
    assert found.startswith("GRAFANA_PASSWORD (Grafana's user admin) ")
    (found,) = deployment.problems(without | {"GRAFANA_PASSWORD": GOOD["AIRFLOW_ADMIN_PASSWORD"]})
    assert found.startswith("AIRFLOW_ADMIN_PASSWORD, GRAFANA_PASSWORD have the same value")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"RAY_AUTH_TOKEN": GOOD["S3_SECRET_KEY"]}, "RAY_AUTH_TOKEN, S3_SECRET_KEY have the same value"),
        ({"POSTGRES_PASSWORD": "9f2c@71be/04d8a6c35e"}, "stands in an address"),
        ({"AIRFLOW_FERNET_KEY": "0f9d2c71be04d8a6c35e"}, "must be 32 random bytes"),
        ({"AIRFLOW_FERNET_KEY": FERNET_OF_ZEROS}, "easily guessed"),
        ({"S3_ACCESS_KEY": ""}, "S3_ACCESS_KEY (the object store's user) is empty"),
    ],
)
def test_each_refusal_says_what_is_wrong(changed: dict[str, str], says: str) -> None:
    (found,) = deployment.problems(GOOD | changed)
    assert says in found


@pytest.mark.parametrize("address", ["0.0.0.0", "192.168.1.5", "::", "example.org"])  # noqa: S104
def test_more_is_asked_for_where_others_can_reach_it(address: str) -> None:
    twenty = "0f9d2c71be04d8a6c35e"
    changed = GOOD | {"AIRFLOW_JWT_SECRET": twenty, "AIRFLOW_ADMIN_PASSWORD": twenty[::-1]}
    assert deployment.problems(changed) == []
    (found,) = deployment.problems(changed | {"BIND_ADDRESS": address})
    assert found.startswith("AIRFLOW_JWT_SECRET")
    assert "has 20 characters: at least 32 where BIND_ADDRESS is not the loopback address" in found


@pytest.mark.parametrize("address", ["", "127.0.0.1", "127.0.0.9", "::1", "[::1]", "localhost"])
def test_loopback_addresses_are_known(address: str) -> None:
    assert deployment.problems(GOOD | {"BIND_ADDRESS": address, "RAY_AUTH_TOKEN": "0f9d2c71be04d8a6c35e"}) == []


def test_fill_runs_from_a_fresh_clone_and_keeps_what_is_there(tmp_path: Path) -> None:
    """Without any package: -I hides the current directory, -S the installed ones."""
    file = tmp_path / "env"
    file.write_text("# a comment\nPOSTGRES_PASSWORD=\nRAY_AUTH_TOKEN=mine\nAIRFLOW_PORT=\n")
    file.chmod(0o644)
    script = REPOSITORY / "bliss_ops" / "stack" / "deployment.py"
    for _ in range(2):
        subprocess.run([sys.executable, "-I", "-S", str(script), "fill", str(file)], check=True)
        lines = file.read_text().splitlines()
        assert lines[0] == "# a comment"
        assert len(lines[1].removeprefix("POSTGRES_PASSWORD=")) == 64
        assert lines[2:] == ["RAY_AUTH_TOKEN=mine", "AIRFLOW_PORT="]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_missing_file_is_made_from_the_example(tmp_path: Path) -> None:
    assert deployment.main(["fill", str(tmp_path / "env")]) == 0
    found = dotenv((tmp_path / "env").read_text())
    assert found.keys() == GOOD.keys()
    assert deployment.problems(found) == []


def test_check_refuses_in_words(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (GOOD | {"RAY_AUTH_TOKEN": "changeme"}).items():
        monkeypatch.setenv(name, value)
    assert deployment.main(["check"]) == 1
    error = capsys.readouterr().err
    assert "nothing is started" in error
    assert "RAY_AUTH_TOKEN (Ray runs whatever is sent with it)" in error
    assert "deployment.py fill .env" in error
    monkeypatch.setenv("RAY_AUTH_TOKEN", GOOD["RAY_AUTH_TOKEN"])
    assert deployment.main(["check"]) == 0


def test_users_are_what_airflow_reads(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("AIRFLOW_ADMIN_PASSWORD", 'quote" and \\')
    assert deployment.main(["users"]) == 0
    assert json.loads(capsys.readouterr().out) == {"admin": 'quote" and \\'}


def test_the_bucket_is_made_once(s3: Any) -> None:
    for _ in range(2):
        assert deployment.main(["make-bucket", "new-bucket"]) == 0
    assert s3.exists("new-bucket")


def test_a_store_that_never_answers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    monkeypatch.setattr(deployment, "STORE_SECONDS", 0.0)
    for name, value in {"AWS_ENDPOINT_URL": "http://127.0.0.1:9", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(ValueError, match=r"no object store answers at http://127\.0\.0\.1:9 after 0 s"):
        deployment.make_bucket("any")
    s3fs.S3FileSystem.clear_instance_cache()
    assert "AWS_ENDPOINT_URL" in os.environ
