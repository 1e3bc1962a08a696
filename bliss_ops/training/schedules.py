"""Learning rates as functions of the optimizer step: warm-up, then stable; and the linear decay of an evaluation branch."""


def warmup_stable(step: int, *, peak: float, warmup_steps: int) -> float:
    """Linear from peak/warmup_steps at step 0 to `peak`, then constant."""
    return peak * min(1.0, (step + 1) / max(1, warmup_steps))


def linear_decay(step: int, *, peak: float, decay_steps: int) -> float:
    """From just below `peak` at step 0 to peak/(decay_steps + 1) at the last step."""
    return peak * (1 - (step + 1) / (decay_steps + 1))
