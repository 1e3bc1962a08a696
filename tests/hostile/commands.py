"""Running a `bliss` command that has to be refused, and what a refusal is."""

from pathlib import Path

import pytest

from bliss_ops.cli import main

Said = pytest.CaptureFixture[str]


def refused(said: Said, lake: Path, *command: str, names: str) -> str:
    """Run a command on an empty lake: it has to end with an error that names what was wrong, without a traceback, writing nothing.

    Args:
        said: what the command prints.
        lake: where the lake would be; it must not be made.
        command: what was typed.
        names: what the message has to contain.
    """
    try:
        code = main([*command, "--lake", str(lake)])
    except SystemExit as ended:  # argparse's own refusals
        code = int(ended.code or 0)
    message = said.readouterr().err
    assert code in (1, 2)
    assert "Traceback" not in message
    assert names in message
    assert not [path for path in lake.rglob("*") if path.is_file()]
    return message
