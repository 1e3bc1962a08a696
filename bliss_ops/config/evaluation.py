"""Settings of the evaluation: which tasks, from where, and how they are asked."""

from bliss_ops.config.settings import Settings


class EvaluationConfig(Settings):
    """Zero-shot tasks a round's target is measured on, beside the held-out validation loss."""
