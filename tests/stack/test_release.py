"""A job of another release is refused before it touches anything."""

from pathlib import Path

import pytest

from bliss_ops import __version__, release
from bliss_ops.cli import main

OURS = "0123456789abcdef0123"


@pytest.fixture(autouse=True)
def no_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(release.COMMIT, raising=False)


@pytest.mark.parametrize("commit", ["", OURS])
def test_work_of_the_same_build_is_done(monkeypatch: pytest.MonkeyPatch, commit: str) -> None:
    monkeypatch.setenv(release.COMMIT, commit)
    for name, value in release.required_environment().items():
        monkeypatch.setenv(name, value)
    release.check()


def test_a_side_that_does_not_know_its_commit_is_taken_by_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(release.REQUIRED, f"{__version__}+{OURS[:12]}")
    release.check()
    monkeypatch.setenv(release.COMMIT, OURS)
    monkeypatch.setenv(release.REQUIRED, __version__)
    release.check()


@pytest.mark.parametrize("required", ["0.0.9", "9.9", f"{__version__}+ffffffffffff"])
def test_another_release_is_refused_and_both_are_named(
    monkeypatch: pytest.MonkeyPatch, required: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(release.COMMIT, OURS)
    monkeypatch.setenv(release.REQUIRED, required)
    assert main(["discover", "any", "--lake", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert f"bliss-ops {__version__}+{OURS[:12]}, and whoever sent the work {required}" in error
    assert list(tmp_path.iterdir()) == []
