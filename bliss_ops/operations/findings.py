"""Findings of `bliss doctor`: a check says what it found and what to do about it; checks run side by side and none can hang the others.

A check that does not end in its time is itself a finding. Its thread is left behind (a daemon: it does not keep the process alive), since
no thread can be ended from outside. Whatever a check says, no secret leaves: values of secret variables and credentials in addresses are
replaced in every text before anybody sees it.
"""

import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

Level = Literal["ok", "warning", "error"]
_SECRET_NAME = re.compile(r"SECRET|TOKEN|PASSWORD|PASSWD|_KEY$|_KEY_|CREDENTIAL|CONN_|SQL_ALCHEMY_CONN", re.IGNORECASE)
_PATH_NAME = re.compile(r"(_PATH|_FILE|_DIR|_ID)$")
_IN_ADDRESS = re.compile(r"(?<=://)[^/@\s]*:[^/@\s]*@")
SHORTEST_SECRET = 6  # shorter values would tear up ordinary words


@dataclass(frozen=True)
class Finding:
    """One line of the report."""

    check: str
    level: Level
    found: str
    fix: str = ""  # what to do; empty where nothing is to be done


Check = Callable[[], Iterable[Finding]]


def ok(check: str, found: str) -> Finding:
    return Finding(check, "ok", found)


def warning(check: str, found: str, fix: str) -> Finding:
    return Finding(check, "warning", found, fix)


def error(check: str, found: str, fix: str) -> Finding:
    return Finding(check, "error", found, fix)


def run_checks(checks: Mapping[str, Check], *, seconds: float) -> Iterator[Finding]:
    """The findings of all checks, in the order of `checks`; all run at once and have together that many seconds."""
    answers: dict[str, list[Finding]] = {}
    threads = {name: threading.Thread(target=_run, args=(name, check, answers), daemon=True) for name, check in checks.items()}
    deadline = time.monotonic() + seconds
    for thread in threads.values():
        thread.start()
    for name, thread in threads.items():
        thread.join(max(deadline - time.monotonic(), 0.01))
        late = error(
            name, f"no answer within {seconds:g} s", "look whether what it asks is overloaded or unreachable; give it longer with --seconds"
        )
        yield from (without_secrets(finding) for finding in answers.get(name, [late]))


def without_secrets(finding: Finding, environment: Mapping[str, str] = os.environ) -> Finding:
    """The same, with every secret that this process knows replaced by `***`."""
    return replace(finding, found=_redacted(finding.found, environment), fix=_redacted(finding.fix, environment))


def _run(name: str, check: Check, answers: dict[str, list[Finding]]) -> None:
    try:
        answers[name] = list(check())
    except Exception as problem:  # noqa: BLE001 - a check that fails in an unforeseen way is a finding, not the end of the others
        answers[name] = [error(name, f"{type(problem).__name__}: {problem}", "see what it says; with --traceback nothing is hidden")]


def _redacted(text: str, environment: Mapping[str, str]) -> str:
    for name, value in environment.items():
        if _SECRET_NAME.search(name) and not _PATH_NAME.search(name) and len(value) >= SHORTEST_SECRET:
            text = text.replace(value, "***")
    return _IN_ADDRESS.sub("***@", text)
