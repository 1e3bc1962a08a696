"""The SQL console's server side: people's own statements, each in a process of its own that is killed when its time is over.

A thread could not be ended and a statement can take the whole processor, so nothing of it runs in the server, which only waits, without
holding a thread. Slots and cancellations are files in a private directory, so several server processes keep the same limits.
"""

import asyncio
import fcntl
import json
import os
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bliss_ops.explorer.snapshots import Snapshots, private_directory
from bliss_ops.names import check_token

_SECONDS_BETWEEN_LOOKS = 0.05


@dataclass(frozen=True)
class Limits:
    """What one statement may take."""

    seconds: float = 20.0
    memory: str = "512MB"
    threads: int = 2
    spill: str = "1GB"
    rows: int = 1_000
    csv_rows: int = 100_000
    characters: int = 2_000  # of a cell that is shown
    statements_at_once: int = 4
    statement_bytes: int = 20_000


class BusyError(ValueError):
    """All slots are taken."""


@dataclass(frozen=True)
class Answer:
    """What came of a statement: the fields of `answer.json`, or an `error`; and the CSV where that was asked for."""

    fields: dict[str, Any]
    csv: bytes | None = None


class Console:
    """Runs statements on the newest snapshot of one lake."""

    def __init__(self, snapshots: Snapshots, limits: Limits) -> None:
        self.snapshots, self.limits = snapshots, limits

    async def run(self, statement: str, identifier: str, *, as_csv: bool, is_gone: Callable[[], Awaitable[bool]]) -> Answer:
        """Run one statement to its end, its time limit, or its cancellation.

        Args:
            statement: what was typed.
            identifier: 32 hexadecimal digits, by which `cancel` finds it.
            as_csv: answer with a file instead of rows to show.
            is_gone: whether the one who asked has hung up.

        Raises:
            BusyError: too many statements run already.
            ValueError: the identifier is not one; NoSnapshotError when there is nothing to ask.
        """
        directory = _directory(identifier)
        file = await asyncio.to_thread(self.snapshots.file)
        with self._slot():
            directory.mkdir(mode=0o700)
            try:
                return await self._run(directory, file, statement, as_csv, is_gone)
            finally:
                await asyncio.to_thread(shutil.rmtree, directory)

    def cancel(self, identifier: str) -> bool:
        """End a running statement; False when it has ended already."""
        try:
            (_directory(identifier) / "cancel").touch()
        except FileNotFoundError:
            return False
        return True

    async def _run(self, directory: Path, file: Path, statement: str, as_csv: bool, is_gone: Callable[[], Awaitable[bool]]) -> Answer:
        limits = self.limits
        request = {
            "file": str(file.absolute()),
            "directory": str(directory),
            "statement": statement,
            "csv": as_csv,
            "rows": limits.csv_rows if as_csv else limits.rows,
            **{name: getattr(limits, name) for name in ("seconds", "memory", "threads", "spill", "characters")},
        }
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bliss_ops.explorer.statement"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            cwd=directory,
            env=_environment(),
            start_new_session=True,
        )
        try:
            assert process.stdin is not None
            process.stdin.write(json.dumps(request).encode())
            process.stdin.close()
            stopped = await self._wait(process, directory, is_gone)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if stopped:
            return Answer({"error": stopped})
        if not (directory / "answer.json").exists():
            return Answer(
                {"error": f"The statement's process ended ({_ending(process.returncode)}): most likely it needed too much memory."}
            )
        fields = json.loads((directory / "answer.json").read_bytes())
        return Answer(fields, (directory / "answer.csv").read_bytes() if as_csv and "error" not in fields else None)

    async def _wait(self, process: asyncio.subprocess.Process, directory: Path, is_gone: Callable[[], Awaitable[bool]]) -> str:
        """Wait until the process ends by itself; returns why it must not go on, or nothing."""
        deadline = time.monotonic() + self.limits.seconds
        ending = asyncio.ensure_future(process.wait())
        try:
            while True:
                await asyncio.wait([ending], timeout=_SECONDS_BETWEEN_LOOKS)
                if ending.done():
                    return ""
                if (directory / "cancel").exists():
                    return "Cancelled."
                if time.monotonic() > deadline:
                    return f"Stopped after {self.limits.seconds:g} s, the time limit: ask for less, or use `bliss sql`, which has none."
                if await is_gone():
                    return "Cancelled: the page was closed."
        finally:
            ending.cancel()

    @contextmanager
    def _slot(self) -> Iterator[None]:
        for number in range(self.limits.statements_at_once):
            with (private_directory() / f"slot-{number}").open("w") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                yield
                return
        raise BusyError(f"{self.limits.statements_at_once} statements are running already, the most at once: try again in a moment.")


def _directory(identifier: str) -> Path:
    return private_directory() / f"statement-{check_token(identifier)}"


def _environment() -> dict[str, str]:
    """The little that Python needs: the server's environment holds secrets."""
    names = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "HOME")
    return {name: os.environ[name] for name in names if name in os.environ}


def _ending(code: int | None) -> str:
    return f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
