"""The rows of an evaluation's `results.parquet`, of every model that was evaluated."""

from dataclasses import dataclass

from upath import UPath


@dataclass(frozen=True)
class Row:
    """One number of one model."""

    task: str
    metric: str
    value: float
    standard_error: float | None
    num_examples: int
    step: int | None  # None in results of former versions
    num_tokens: int | None


def evaluation_rows(directory: UPath) -> list[Row]:
    """All rows, by model, in the order they were written."""
    import pyarrow.parquet as pq

    with (directory / "results.parquet").open("rb") as file:
        rows = pq.read_table(file).to_pylist()
    return [
        Row(row["task"], row["metric"], row["value"], row["standard_error"], row["num_examples"], row.get("step"), row.get("num_tokens"))
        for row in rows
    ]
