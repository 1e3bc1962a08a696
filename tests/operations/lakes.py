"""What is in a lake, to be compared before and after."""

import hashlib
import os
from pathlib import Path

from bliss_ops.lake import Lake
from bliss_ops.manifest import find_manifest

RUN = "smoke-random-s0"


def contents(lake: Lake, below: str = "") -> dict[str, str]:
    """sha256 of every file, by address."""
    root = Path(lake.root.path)
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((root / below).rglob("*"))
        if path.is_file()
    }


def digests(lake: Lake, run: str = RUN) -> dict[str, tuple[str, str]]:
    """Fingerprint and digest of every artifact of a run: what later stages compare."""
    root = Path(lake.run(run).path.path)
    found = {
        str(path.parent.relative_to(root)): find_manifest(lake.root / "runs" / run / path.parent.relative_to(root))
        for path in root.rglob("manifest.json")
    }
    return {name: (manifest.fingerprint, manifest.digest) for name, manifest in sorted(found.items()) if manifest}


def age(lake: Lake, days: float, below: str = "") -> None:
    """Let every file look that old."""
    for path in (Path(lake.root.path) / below).rglob("*"):
        if path.is_file():
            at = path.stat().st_mtime - days * 86400
            os.utime(path, (at, at))
