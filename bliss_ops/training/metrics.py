"""One line for a person, one for a program: step lines in the log, the same numbers in `metrics.jsonl`, curves for TensorBoard.

`metrics.jsonl` holds only what the same settings give again; times and rates go to the log line and to TensorBoard, so that a repeated
or resumed job writes the same file.
"""

import json
import logging
import time
from dataclasses import dataclass

from upath import UPath

from bliss_ops import gauges
from bliss_ops.lake import write_bytes
from bliss_ops.training.tensorboard import Curves

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 3.0


@dataclass(frozen=True)
class Speed:
    """What model FLOPs utilisation is measured against."""

    flops_per_token: float  # of a training step: forward and backward (models/flops.py)
    peak_flops: float | None  # FLOP/s of all devices of the job together; None: not known

    def utilisation(self, tokens_per_second: float) -> float | None:
        """MFU: model FLOPs done per second over the most the devices could do."""
        return tokens_per_second * self.flops_per_token / self.peak_flops if self.peak_flops else None


class StepMetrics:
    """The metrics of one training job, kept in memory and written with its checkpoints.

    Args:
        path: `metrics.jsonl`.
        title: how step lines begin.
        num_steps: the last step.
        tokens_per_step: of all workers.
        speed: adds MFU to step lines.
        curves: where points are drawn, too.
        branch: step of the round that an extra decay branch left the main one at; it is in each of its rows.
    """

    def __init__(
        self,
        path: UPath,
        title: str,
        num_steps: int,
        tokens_per_step: int,
        *,
        speed: Speed | None = None,
        curves: Curves | None = None,
        branch: int | None = None,
    ) -> None:
        self.path, self.title, self.num_steps, self.tokens_per_step = path, title, num_steps, tokens_per_step
        self.speed, self.curves, self.branch = speed, curves, branch
        self.rows: list[dict[str, float]] = []
        self._tags = gauges.tags_of(str(path))
        self._begun = self._last_line = time.monotonic()
        self._done_here = self._done_at_last_line = 0

    def resume(self, step: int) -> None:
        """Keep the rows up to `step` of this job: later ones belong to work that was lost and is done again."""
        if self.path.is_file():
            rows = [json.loads(line) for line in self.path.read_text().splitlines()]
            self.rows = [row for row in rows if row["step"] <= step and row.get("branch") == self.branch]
        if self.curves is not None:
            self.curves.resume(step)

    def add(self, step: int, **values: float) -> None:
        row: dict[str, float] = {"step": step} if self.branch is None else {"step": step, "branch": self.branch}
        self.rows.append(row | {name: float(f"{value:.6g}") for name, value in values.items()})
        if "validation_loss" in values:
            gauges.emit("validation_loss", values["validation_loss"], self._tags)
        if self.curves is not None:
            self.curves.add(step, values)

    def line(self, step: int, **values: float) -> None:
        """Count a step and now and then log `fit demo: step 120/300 (40%) loss 3.412 ... 41k tok/s mfu 46% eta 12s`."""
        self._done_here += 1
        now = time.monotonic()
        seconds = now - self._last_line
        if seconds < SECONDS_BETWEEN_LINES and step < self.num_steps:
            return
        num_tokens = (self._done_here - self._done_at_last_line) * self.tokens_per_step
        tokens_per_second = num_tokens / max(seconds, 1e-9)
        utilisation = self.speed.utilisation(tokens_per_second) if self.speed else None
        eta = (self.num_steps - step) * (now - self._begun) / self._done_here
        self._last_line, self._done_at_last_line = now, self._done_here
        numbers = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        rate = f"{tokens_per_second / 1000:.0f}k tok/s" + ("" if utilisation is None else f" mfu {100 * utilisation:.1f}%")
        log.info(
            "%s: step %d/%d (%.0f%%) %s %s eta %.0fs", self.title, step, self.num_steps, 100 * step / self.num_steps, numbers, rate, eta
        )
        rates = {"tokens_per_second": tokens_per_second} | ({} if utilisation is None else {"mfu": utilisation})
        gauges.emit("tokens", num_tokens, self._tags)
        shown = {name: values[name] for name in ("loss",) if name in values}
        for name, value in (shown | rates | {"progress": step / self.num_steps}).items():
            gauges.emit(name, value, self._tags)
        if self.curves is not None:
            self.curves.add(step, rates)

    def encoded(self) -> bytes:
        """The content of `metrics.jsonl` as of now."""
        return "".join(json.dumps(row) + "\n" for row in self.rows).encode()

    def write(self) -> None:
        write_bytes(self.path, self.encoded())
        if self.curves is not None:
            self.curves.flush()

    def close(self) -> None:
        """End the curves; what is in memory stays."""
        if self.curves is not None:
            self.curves.close()
