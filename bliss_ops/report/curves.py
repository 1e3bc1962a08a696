"""What the jobs logged and what was measured: outer steps, validation-loss curves, results, and runs beside each other."""

import json
from dataclasses import dataclass, field

from upath import UPath

from bliss_ops.config import RunConfig, identity
from bliss_ops.lake import Run
from bliss_ops.manifest import find_manifest

Row = dict[str, float]


@dataclass(frozen=True)
class Result:
    """Held-out validation loss (nats per token) and perplexity of one round's target."""

    loss: float
    standard_error: float | None
    perplexity: float
    num_examples: int
    loss_of_set: dict[str, float] = field(default_factory=dict)  # of each validation set alone, where there are several


@dataclass(frozen=True)
class Compared:
    """One run as its comparison sees it: per round the points of its curve and its final result."""

    run: Run
    config: RunConfig | None = None  # None: named in compare_with, not configured
    curves: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    results: dict[int, Result] = field(default_factory=dict)

    def differences_from(self, config: RunConfig) -> list[str]:
        """Settings other than the method that would make the comparison unfair."""
        if self.config is None:
            return []
        sections = ("target", "pretraining", "compute", "selection", "ingest")
        names = [name for name in sections if identity(getattr(self.config, name)) != identity(getattr(config, name))]
        return names + [name for name in ("seed", "num_rounds") if getattr(self.config, name) != getattr(config, name)]


def read_run(run: Run, num_rounds: int) -> Compared:
    """The curve and the results of a run's rounds, as far as they are finished."""
    if not (run.path / "config.json").is_file():
        return Compared(run)
    compared = Compared(run, run.config)
    for number in range(1, num_rounds + 1):
        here = run.round(number)
        if find_manifest(here / "pretrain"):
            rows = read_rows(here / "pretrain" / "metrics.jsonl")
            points = [row for row in rows if "validation_loss" in row and "branch" not in row]
            compared.curves[number] = [(row["step"], row["validation_loss"]) for row in points]
        if find_manifest(here / "evaluation"):
            compared.results[number] = _read_result(here / "evaluation" / "results.parquet")
    return compared


def equal_steps(ours: Compared, theirs: Compared, round_number: int) -> list[tuple[float, float, float]]:
    """(step, our validation loss, their validation loss) wherever both were measured."""
    other = dict(theirs.curves.get(round_number, []))
    return [(step, loss, other[step]) for step, loss in ours.curves.get(round_number, []) if step in other]


def read_rows(path: UPath) -> list[Row]:
    """The objects of a `metrics.jsonl`, none when there is no such file."""
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()] if path.is_file() else []


def _read_result(path: UPath) -> Result:
    import pyarrow.parquet as pq

    with path.open("rb") as file:
        rows = {(row["task"], row["metric"]): row for row in pq.read_table(file).to_pylist()}
    loss = rows["validation", "loss"]
    of_set = {task.partition(":")[2]: row["value"] for (task, metric), row in rows.items() if ":" in task and metric == "loss"}
    return Result(loss["value"], loss["standard_error"], rows["validation", "perplexity"]["value"], loss["num_examples"], of_set)
