"""One line for a person, one for a program: step lines in the log, the same numbers in `metrics.jsonl`.

`metrics.jsonl` holds only what the same settings give again; times and rates go to the log line, so that a repeated or resumed
job writes the same file.
"""

import json
import logging
import time

from upath import UPath

from bliss_ops.lake import write_bytes

log = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 3.0


class StepMetrics:
    """The metrics of one training job, kept in memory and written with its checkpoints."""

    def __init__(self, path: UPath, title: str, num_steps: int, tokens_per_step: int) -> None:
        self.path, self.title, self.num_steps, self.tokens_per_step = path, title, num_steps, tokens_per_step
        self.rows: list[dict[str, float]] = []
        self._begun = self._last_line = time.monotonic()
        self._done_here = 0

    def resume(self, step: int) -> None:
        """Keep the rows up to `step`: later ones belong to work that was lost and is done again."""
        if self.path.exists():
            rows = [json.loads(line) for line in self.path.read_text().splitlines()]
            self.rows = [row for row in rows if row["step"] <= step]

    def add(self, step: int, **values: float) -> None:
        self.rows.append({"step": step} | {name: float(f"{value:.6g}") for name, value in values.items()})

    def line(self, step: int, **values: float) -> None:
        """Count a step and now and then log `fit demo: step 120/300 (40%) loss 3.412 ... 41k tok/s eta 12s`."""
        self._done_here += 1
        now = time.monotonic()
        if now - self._last_line < SECONDS_BETWEEN_LINES and step < self.num_steps:
            return
        self._last_line = now
        rate = self._done_here / max(now - self._begun, 1e-9)
        numbers = " ".join(f"{name} {value:.4g}" for name, value in values.items())
        eta = (self.num_steps - step) / rate
        log.info(
            "%s: step %d/%d (%.0f%%) %s %.0fk tok/s eta %.0fs",
            self.title, step, self.num_steps, 100 * step / self.num_steps, numbers, rate * self.tokens_per_step / 1000, eta,
        )  # fmt: skip

    def write(self) -> None:
        write_bytes(self.path, "".join(json.dumps(row) + "\n" for row in self.rows).encode())
