"""What happened when: one JSON line per event in `timeline.jsonl`, one line for a person on the terminal."""

import json
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

QUIET = frozenset({"sample", "read"})  # kinds that are not worth a line on the terminal


class Timeline:
    """Appends events from many threads; `seconds` counts from its beginning."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.begun = time.time()
        self._lock = threading.Lock()

    @property
    def now(self) -> float:
        return time.time() - self.begun

    def write(self, kind: str, **facts: Any) -> None:
        event = {"seconds": round(self.now, 2), "at": datetime.now(UTC).isoformat(timespec="milliseconds"), "kind": kind, **facts}
        with self._lock:
            with self.path.open("a") as file:
                file.write(json.dumps(event, default=str) + "\n")
            if kind not in QUIET:
                words = " ".join(f"{name}={value}" for name, value in facts.items())
                sys.stdout.write(f"{event['seconds']:8.1f}s  {kind:10} {words[:230]}\n")
                sys.stdout.flush()


def read(path: Path, *kinds: str) -> list[dict[str, Any]]:
    """The events of these kinds (of all, when none is named), in order."""
    with path.open() as file:
        events = [json.loads(line) for line in file]
    return [event for event in events if not kinds or event["kind"] in kinds]
