"""Held-out validation loss and perplexity of a round's target model."""

import logging
from typing import Any

import numpy as np
import pyarrow as pa
from upath import UPath

from bliss_ops import schemas
from bliss_ops.lake import Run, write_parquet

log = logging.getLogger(__name__)

RESULTS = "results.parquet"


def evaluate(run: Run, round_number: int, directory: UPath) -> tuple[list[str], dict[str, Any]]:
    """Write `results.parquet`: loss (nats per token, standard error over rows) and perplexity on the held-out part."""
    from bliss_ops.corpus import validation
    from bliss_ops.models import language
    from bliss_ops.training.device import choose_device
    from bliss_ops.training.loop import mean_token_loss

    device = choose_device(run.config.compute)
    model = language.load(run.round(round_number) / "pretrain", "model").to(device)
    loss, sum_N, count_N = mean_token_loss(model, *validation.read(run.corpus.validation, "holdout"))
    perplexity = float(np.exp(loss))
    residual_N = sum_N - loss * count_N  # ratio estimator: rows have unequal numbers of tokens
    error = float(np.sqrt((residual_N**2).sum()) / count_N.sum())
    log.info("evaluate %s round %d: validation loss %.4f +- %.4f, perplexity %.2f", run.name, round_number, loss, error, perplexity)
    rows = {
        "task": ["validation", "validation"],
        "metric": ["loss", "perplexity"],
        "value": [loss, perplexity],
        "standard_error": [error, perplexity * error],
        "num_examples": [len(sum_N), len(sum_N)],
    }
    write_parquet(directory / RESULTS, pa.table(rows, schema=schemas.EVALUATION))
    return [RESULTS], {"validation_loss": loss, "perplexity": perplexity}
