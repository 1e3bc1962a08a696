"""One warm-up for several runs: those of one seed train the same proxy and target on the same random data, so once is enough.

A run whose config names another one in `warmup_of` reads that one's `warmup/`. It may do so where everything that decides a warm-up
is equal: corpus, target, schedule, seed, and the proxy for methods that have one. Then the files are bit for bit what its own would be.
"""

from typing import Any

from bliss_ops import selectors
from bliss_ops.config import RunConfig, identity
from bliss_ops.lake import Run
from bliss_ops.manifest import differences


def warmup_settings(config: RunConfig) -> dict[str, Any]:
    """What the warm-up of such a run depends on, beside its corpus."""
    sections = ["target", "pretraining", "compute"] + ["proxy"] * selectors.uses_proxy(config.method)
    return {name: identity(getattr(config, name)) for name in sections} | {"seed": config.seed}


def obstacles(config: RunConfig, other: RunConfig) -> list[str]:
    """Why a run of `config` cannot start from the warm-up of `other`; empty where it can."""
    ours = warmup_settings(config) | {"corpus": config.ingest.corpus}
    theirs = warmup_settings(other) | {"corpus": other.ingest.corpus}
    if "proxy" not in theirs and "proxy" in ours:
        return [f"the method {other.method} of {other.name} has no proxy, {config.method} needs one"]
    found = differences({name: theirs[name] for name in ours}, ours)
    if other.warmup_of:
        found.append(f"{other.name} starts from the warm-up of {other.warmup_of} itself: name that one")
    return found


def owner(run: Run) -> Run:
    """The run whose directory the warm-up of `run` is in: itself, or the one that its config names.

    Raises:
        ValueError: that one's warm-up is not what this one's own would be; the message lists what differs.
    """
    if run.config.warmup_of is None:
        return run
    other = run.lake.run(run.config.warmup_of)
    check(run.config, other.config)
    return other


def check(config: RunConfig, other: RunConfig) -> None:
    """Return when a run of `config` may start from the warm-up of `other`, else raise ValueError with what differs."""
    if found := obstacles(config, other):
        listing = "\n".join(f"  {line}" for line in found)
        raise ValueError(f"run {config.name!r} cannot start from the warm-up of {other.name!r}:\n{listing}\nLeave out warmup_of.")
