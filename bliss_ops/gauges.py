"""What work says about itself while it goes on: numbers for whoever exports them, such as bliss_ops/ray/exporting.py.

Nobody listens unless a runner says `export_to`, and then a call costs some microseconds, so calls belong to batches and log lines, not to
tokens. What is exact is in the manifests; these numbers are for curves and alarms, and the last seconds of a process may be missing.

Tags are few, and their values are names of runs and corpora: a lake with a thousand runs of ten rounds has some ten thousand series in all,
and at any time only those of the work that goes on.
"""

import re
from collections.abc import Callable, Mapping

Tags = Mapping[str, str]
Sink = Callable[[str, float, Tags], None]

TAGS = ("run", "round", "corpus", "stage")
COUNTERS = {
    "tokens": "Tokens that went through a model, or through a shard's worker.",
    "rows": "Rows of finished shards.",
    "shards": "Finished shards.",
}
GAUGES = {
    "tokens_per_second": "Of a training job, between its last two log lines.",
    "mfu": "Model FLOPs utilisation of a training job, from 0 to 1.",
    "loss": "Training loss, nats per token.",
    "validation_loss": "Loss on the validation set, nats per token.",
    "progress": "Share of a training job's steps that is done.",
}

_ADDRESS = re.compile(
    r"(?:^|/)(?:runs/(?P<run>[^/]+)/(?:round-0*(?P<round>\d+)/)?|(?:corpora|scores)/(?P<corpus>[^/]+)/)"
    r"(?P<artifact>warmup|selector|scores|contamination|subset|pretrain|documents|sequences-[^/]+|[^/]+$)(?:/|$)"
)
_STAGE = {
    "warmup": "warm_up", "selector": "fit", "scores": "score", "contamination": "check_contamination", "subset": "materialize",
    "pretrain": "pretrain", "documents": "extract",
}  # fmt: skip

_sink: Sink | None = None


def export_to(sink: Sink | None) -> None:
    """From now on this process's numbers go to `sink`; None ends that."""
    global _sink
    _sink = sink


def emit(name: str, value: float, tags: Tags) -> None:
    """Add to a counter, or set a gauge: one of those above."""
    if _sink is not None:
        _sink(name, value, tags)


def tags_of(address: str, stage: str = "") -> Tags:
    """Whose work it is, from the address of its artifact or of a file in it."""
    found = _ADDRESS.search(address)
    parts = found.groupdict() if found else {}
    known = {name: value for name in ("run", "round", "corpus") if (value := parts.get(name))}
    artifact = parts.get("artifact") or ""
    other = "pack" if artifact.startswith("sequences-") else "rescore" if artifact else ""
    return known | {"stage": stage or _STAGE.get(artifact, other)}
