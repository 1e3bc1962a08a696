"""What a manifest says of the code that made an artifact: versions, and the commit."""

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGE = "bliss-ops"
LIBRARIES = ("torch", "transformers", "pyarrow", "duckdb")


def versions() -> dict[str, str]:
    """Python's version and those of the libraries that results may depend on."""
    return {"python": platform.python_version()} | {name: version_of(name) for name in LIBRARIES}


def version_of(package: str) -> str:
    """Version of an installed package; empty when there is none."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


@cache
def git_commit() -> str:
    """Commit of the code, from BLISS_GIT_COMMIT (images) or the checkout; empty when there is neither."""
    if commit := os.environ.get("BLISS_GIT_COMMIT"):
        return commit
    try:
        result = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip()
