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
    """Write `results.parquet`: loss (nats per token, standard error over rows) and perplexity on the held-out part.

    With several validation sets the loss is their weighted mean, and each one's own loss is a task of its own.
    """
    from bliss_ops.corpus import validation
    from bliss_ops.models import language
    from bliss_ops.training.device import choose_device
    from bliss_ops.training.loop import mean_token_loss

    device = choose_device(run.config.compute)
    model = language.load(run.round(round_number) / "pretrain", "model").to(device)
    held_out = validation.read(run.corpus.validation, "holdout")
    loss, sum_N, count_N = mean_token_loss(model, held_out)
    perplexity = float(np.exp(loss))
    names = validation.set_names(run.corpus.config.validation)
    of_set = {name: held_out.set_N == number for number, name in enumerate(names)}
    loss_of = {name: float(sum_N[rows].sum() / count_N[rows].sum()) for name, rows in of_set.items()}
    residual_N = sum_N - np.array(list(loss_of.values()))[held_out.set_N] * count_N  # ratio estimator: rows have unequal numbers of tokens
    error_of = {name: float(np.sqrt((residual_N[rows] ** 2).sum()) / count_N[rows].sum()) for name, rows in of_set.items()}
    error = float(np.sqrt(((held_out.weight_N * residual_N) ** 2).sum()) / (held_out.weight_N * count_N).sum())
    log.info("evaluate %s round %d: validation loss %.4f +- %.4f, perplexity %.2f", run.name, round_number, loss, error, perplexity)
    rows: dict[str, list[Any]] = {
        "task": ["validation", "validation"],
        "metric": ["loss", "perplexity"],
        "value": [loss, perplexity],
        "standard_error": [error, perplexity * error],
        "num_examples": [len(sum_N), len(sum_N)],
    }
    metrics: dict[str, Any] = {"validation_loss": loss, "perplexity": perplexity}
    if len(names) > 1:  # each set for itself, beside the weighted mean
        metrics["validation_losses"] = loss_of
        for name, of_this_set in of_set.items():
            values = (f"validation:{name}", "loss", loss_of[name], error_of[name], int(of_this_set.sum()))
            for column, value in zip(rows.values(), values, strict=True):
                column.append(value)
            log.info("evaluate %s round %d: %s %.4f +- %.4f", run.name, round_number, values[0], loss_of[name], error_of[name])
    num_rows = len(rows["task"])
    rows |= {"step": [None] * num_rows, "num_tokens": [None] * num_rows}
    write_parquet(directory / RESULTS, pa.table(rows, schema=schemas.EVALUATION))
    return [RESULTS], metrics
