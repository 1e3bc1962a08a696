"""Guards of bilevel training: what is certain to be wrong stops the job with its cause, what looks wrong is said early.

A score model fails quietly: its file is written, its scores are finite, and a selection can be made of them. So every step is held
against what a working one looks like, and the message names the setting to change.
"""

import logging
import math
from collections import deque
from dataclasses import dataclass, field

from bliss_ops.bilevel import ihvp
from bliss_ops.config import BilevelConfig

log = logging.getLogger(__name__)

MIN_VALIDATION_ROWS = 8
MAX_LOSS_INCREASE = 1.0  # nats above the first step's proxy loss
MAX_SPREAD = 30.0  # standard deviation of a batch's scores, in temperatures: exp(30) leaves every other sequence nothing
MAX_GROWTH = 10.0  # |z| over |grad f| / delta, which a solver that converges hardly exceeds
PATIENCE = 3  # steps in a row, so that one odd batch is not a verdict
MIN_SEQUENCES = 1.5  # effective number of sequences of a batch, on average over the last NUM_RECENT steps
NUM_RECENT = 10
STEPPING = ("warm_start", "neumann")  # solvers with a step size
SETTLED_STEPS = 50  # looks before this many steps are not judged


def check_validation_rows(num_rows: int) -> None:
    """Raise ValueError when the guide part is too small to stand for anything."""
    if num_rows < MIN_VALIDATION_ROWS:
        raise ValueError(
            f"the guide part of the validation set has {num_rows} rows, bilevel training takes at least {MIN_VALIDATION_ROWS}: the score "
            "model would learn one text by heart; give ingest.validation.source more documents"
        )


@dataclass
class Guards:
    """Watches one job; `title` begins every message."""

    config: BilevelConfig
    title: str
    first_loss: float | None = None
    strikes: dict[str, int] = field(default_factory=dict)
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=NUM_RECENT))  # effective numbers of sequences
    said: set[str] = field(default_factory=set)

    def check_step(self, step: int, numbers: dict[str, float]) -> None:
        """Hold one step's metrics against what a working job has.

        Raises:
            ValueError: a number is not finite, the proxy diverges, or the weights have collapsed; nothing of this step is kept.
        """
        config = self.config
        self._check_finite(step, numbers)
        self.first_loss = numbers["proxy_loss"] if self.first_loss is None else self.first_loss
        if self._strike("proxy", numbers["proxy_loss"] > self.first_loss + MAX_LOSS_INCREASE):
            self._stop(
                step,
                f"the proxy's loss rose from {self.first_loss:.2f} to {numbers['proxy_loss']:.2f}",
                f"lower bilevel.proxy_learning_rate ({config.proxy_learning_rate:g})",
            )
        spread = max(numbers["score_std"], numbers["batch_temperature"])  # the floor's temperature tells of a single outlier, too
        if self._strike("spread", spread > MAX_SPREAD * config.temperature):
            self._stop(
                step,
                f"the scores of a batch have a standard deviation of {numbers['score_std']:.3g}, far too much for weights at temperature "
                f"{config.temperature:g}: one sequence would have all the weight",
                f"raise bilevel.temperature, or lower bilevel.score_learning_rate ({config.score_learning_rate:g})",
            )
        self.recent.append(numbers["effective_sample_size"] * config.batch_sequences)
        few = len(self.recent) == NUM_RECENT and sum(self.recent) < MIN_SEQUENCES * NUM_RECENT
        if few and config.batch_sequences > 2 * MIN_SEQUENCES:
            self._stop(
                step,
                f"one or two of {config.batch_sequences} sequences have all the weight, on average over {NUM_RECENT} steps",
                "set bilevel.min_effective_sample_size above 0, raise bilevel.temperature, or lower bilevel.score_learning_rate "
                f"({config.score_learning_rate:g})",
            )
        limit = MAX_GROWTH * numbers["validation_gradient_norm"] / (ihvp.damping(config) or math.inf)
        if config.ihvp in STEPPING and self._strike("solver", numbers["z_norm"] > limit):
            self._stop(
                step,
                f"the inverse-Hessian step diverges: |z| is {numbers['z_norm']:.3g} at |grad f| {numbers['validation_gradient_norm']:.3g}",
                f"lower bilevel.solver_learning_rate ({config.solver_learning_rate:g}), or take ihvp = 'adam_diagonal'",
            )

    def check_look(self, step: int, numbers: dict[str, float]) -> None:
        """Warn, once each, of a score model that says nothing, says the opposite, or says the same of many.

        Raises:
            ValueError: a number is not finite: this step's update has broken a model.
        """
        self._check_finite(step, numbers)
        if step < min(SETTLED_STEPS, self.config.num_steps):
            return
        if numbers["probe_score_std"] < 1e-3:
            self._warn("constant", "the scores are nearly constant: raise bilevel.score_learning_rate or bilevel.num_steps")
        if numbers.get("probe_correlation", 1.0) < -0.1:
            self._warn("inverted", "the scores run against the measured alignments: lower bilevel.score_learning_rate, train longer")
        elif numbers.get("probe_correlation", 1.0) < 0.05:
            self._warn(
                "unlearned",
                "the scores do not follow the measured alignments: lower bilevel.proxy_learning_rate, or train longer",
            )
        if numbers["probe_tied"] > 0.2:
            self._warn("tied", "many candidates share a score: raise bilevel.distillation_weight, or take score_head = 'linear'")
        if numbers.get("shift_error", 0.0) > 0.2:
            self._warn("shift", "central differences depend on their shift: set bilevel.shift_norm, or alignment = 'double_backward'")

    def _check_finite(self, step: int, numbers: dict[str, float]) -> None:
        config = self.config
        if bad := [name for name, value in numbers.items() if not math.isfinite(value)]:
            rates = ["score_learning_rate", "proxy_learning_rate", *(["solver_learning_rate"] if config.ihvp in STEPPING else [])]
            advice = " or ".join(f"bilevel.{name} ({getattr(config, name):g})" for name in rates)
            self._stop(step, f"{', '.join(bad)} not finite", f"lower {advice}")

    def _strike(self, name: str, is_bad: bool) -> bool:
        self.strikes[name] = self.strikes.get(name, 0) + 1 if is_bad else 0
        return self.strikes[name] >= PATIENCE

    def _stop(self, step: int, what: str, advice: str) -> None:
        raise ValueError(f"{self.title}: at step {step} {what}; {advice}. The last checkpoint is left as it was.")

    def _warn(self, name: str, message: str) -> None:
        if name not in self.said:
            self.said.add(name)
            log.warning("%s: %s", self.title, message)
