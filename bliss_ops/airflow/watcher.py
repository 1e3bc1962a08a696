"""The watched folder as Airflow sees it: an asset that gets an event when new files have come to rest.

The trigger only looks, with listings, and remembers nothing outside this process: after a restart it may announce once more what has been
landed meanwhile, and that DAG run finds nothing to do. What is taken in, and what is not, is decided by `bliss land`.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset, AssetWatcher
from airflow.triggers.base import BaseEventTrigger, TriggerEvent

if TYPE_CHECKING:
    from bliss_ops.landed import Memory
    from bliss_ops.landing import Folders

LANDING = "BLISS_LANDING"  # the folder or bucket prefix; nothing is watched without it
POLL_SECONDS = "BLISS_LANDING_SECONDS"


class LandingTrigger(BaseEventTrigger):
    """Fires when files that belong to no corpus yet were the same in two looks, once for each state of the folder."""

    def __init__(self, prefix: str, poll_seconds: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.prefix = prefix
        self.poll_seconds = poll_seconds

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return f"{__name__}.LandingTrigger", {"prefix": self.prefix, "poll_seconds": self.poll_seconds}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        memory: Memory = {}
        before = announced = None
        while True:
            try:
                now = await asyncio.to_thread(self._look, memory)
            except (ValueError, OSError) as error:  # a mount or store that is away for a while must not end the watch
                self.log.warning("%s cannot be looked at: %s", self.prefix, error)
                now = None
            if now and any(now) and now == before and now != announced:
                announced = now
                num_new_files = {folder: len(files) for folder, files in now[0].items()}
                yield TriggerEvent({"prefix": self.prefix, "num_new_files": num_new_files})  # type: ignore[no-untyped-call]
            before = now
            await asyncio.sleep(self.poll_seconds)

    def _look(self, memory: "Memory") -> "tuple[Folders, list[str]]":
        """What belongs to no corpus yet, and what never can: that `bliss land` says why is an event, too."""
        from bliss_ops.lake import Lake
        from bliss_ops.landed import Lists
        from bliss_ops.landing import look, unlanded

        found = look(self.prefix)
        return unlanded(Lists(Lake.open(), memory), found.folders), found.problems


def landing_schedule() -> list[Asset] | None:
    """On new files below BLISS_LANDING; never, where that is not set."""
    prefix = os.environ.get(LANDING)
    if not prefix:
        return None
    watcher = AssetWatcher(name="bliss_landing", trigger=LandingTrigger(prefix, float(os.environ.get(POLL_SECONDS, "30"))))
    return [Asset(name="bliss_landing", uri="bliss://landing", group="bliss", watchers=[watcher])]
