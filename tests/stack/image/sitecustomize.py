"""What an image does not have cannot be imported: Python reads this first, in the processes of `tests/stack/cluster.py`."""

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

ABSENT = frozenset(filter(None, os.environ.get("BLISS_ABSENT", "").split(",")))


class Absent:
    """A finder that is asked before all others."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name.partition(".")[0] in ABSENT:
            raise ModuleNotFoundError(f"No module named {name!r} (not in this image)", name=name)
        return None


sys.meta_path.insert(0, Absent)
