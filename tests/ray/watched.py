"""A directory in which processes say that they are in the middle of their work, and wait until a node is lost.

Without Ray, which must not be imported by the process that collects the tests.
"""

import os
import time
from pathlib import Path


def pause(watched: Path, name: object) -> None:
    """Say that this process is in the middle of its work, and wait there until the node is lost."""
    if not (watched / "lost").exists():
        (watched / f"paused-{name}-{os.getpid()}").touch()
    while not (watched / "lost").exists():
        time.sleep(0.02)


def paused(watched: Path) -> set[str]:
    """The processes that wait, by their ids; one may have more than one shard in hand."""
    return {file.name.rsplit("-", 1)[1] for file in watched.glob("paused-*")}
