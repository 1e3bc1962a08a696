"""Does selection help? Every method beside random, paired by seed: held-out loss of the targets trained on each selection.

    .venv/bin/python benchmarks/selection_quality.py                                   # the embedded corpus, minutes
    .venv/bin/python benchmarks/selection_quality.py --recipe small --seeds 0 1 2 --methods random,dsir,bliss \\
        --source 'corpora/*.json.gz' --validation lambada.jsonl --near books,speeches --far github

Equal seeds share initial weights, schedule and number of steps, so a difference of losses is a difference of data. Beside the loss: how
well the scores separate near from far sources (AUC), their rank correlation with the measured influences of the seed's `bliss` run
(fidelity), the seconds they cost, and how much of the selection `bliss` selects too. Finished runs in the lake are not done again.
Ends with one line of JSON.
"""

import argparse
import json
import math
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq

from bliss_ops import rank_correlation, selectors
from bliss_ops.cli import main as bliss
from bliss_ops.lake import Lake, Run
from bliss_ops.manifest import Manifest, find_manifest, read_manifest

SCORES_AND_SOURCES = """
select s.sequence_id, s.score, p.source, c.sequence_id is not null as selected
from all_scores s
join score_runs r using (score_run_id)
join (select sequence_set, sequence_id, min(source) as source from sequence_documents group by all) p
    on p.sequence_set = r.sequence_set and p.sequence_id = s.sequence_id
left join selections c on c.score_run_id = s.score_run_id and c.sequence_id = s.sequence_id
where s.score_run_id = $score_run
order by s.sequence_id
"""

Row = dict[str, Any]


@dataclass(frozen=True)
class Scored:
    """Every candidate sequence of one run's first round, in the order of the ids (N sequences)."""

    sequence_id_N: np.ndarray
    score_N: np.ndarray
    source_N: np.ndarray
    selected_N: np.ndarray

    def scores_of(self, sources: Iterable[str]) -> np.ndarray:
        return self.score_N[np.isin(self.source_N, list(sources))]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser, recipe="demo")
    parser.add_argument("--source", help="C4-format shards; none takes the recipe's")
    parser.add_argument("--near", default="documentation,docstrings", help="sources like the validation set, comma-separated")
    parser.add_argument("--far", default="code,data,licences", help="sources unlike it")
    arguments = parser.parse_args()
    near, far = names(arguments.near), names(arguments.far)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="bliss-quality-") as scratch:
        root = arguments.lake or scratch
        for seed in arguments.seeds:
            for row, scored in measure(seed, root, arguments, source=arguments.source):
                row["auc"] = auc(scored.scores_of(near), scored.scores_of(far))
                rows.append(row)
                print_row(row)
    print_summary(rows, columns=("auc", "fidelity", "seconds", "overlap_with_bliss"))
    print(json.dumps(summary(rows, arguments)))
    return 0


def add_arguments(parser: argparse.ArgumentParser, recipe: str) -> None:
    """What every benchmark of whole runs takes."""
    parser.add_argument("--recipe", default=recipe)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--methods", default="random,bliss", help="selectors or variants of them, comma-separated (default: %(default)s)")
    parser.add_argument("--validation", help="JSON lines with a `text` key")
    parser.add_argument("--corpus", help="name of the corpus in the lake")
    parser.add_argument("--lake", help="a lake to keep; none uses a temporary one")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="a setting of all runs; repeatable")


def names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


# ---- one seed --------------------------------------------------------------------------------------------------------


def measure(seed: int, root: str, arguments: argparse.Namespace, *, source: str | None) -> list[tuple[Row, Scored]]:
    """Run every method of one seed; one row each, with the scores and the selection it was made from."""
    command = ["run", arguments.recipe, "--methods", arguments.methods, "--seed", str(seed), "--lake", root]
    options = {"source": source, "validation": arguments.validation, "corpus": arguments.corpus}
    command += [part for option, value in options.items() if value for part in (f"--{option}", value)]
    if bliss(command + [part for setting in arguments.set for part in ("--set", setting)]) != 0:
        sys.exit(1)
    lake, stem = Lake.open(root), Path(arguments.recipe).stem
    runs = {method: lake.run(f"{stem}-{method}-s{seed}") for method in names(arguments.methods)}
    measured = [(_row(run, seed, method), read_scores(lake, run)) for method, run in runs.items()]
    influences = _influences(runs)
    loss = {row["method"]: row["loss"] for row, _ in measured}
    selected = {row["method"]: set(scored.sequence_id_N[scored.selected_N].tolist()) for row, scored in measured}
    for row, scored in measured:
        method = row["method"]
        row["minus_random"] = row["loss"] - loss.get("random", math.nan)
        row["fidelity"] = fidelity(scored, influences)
        row["overlap_with_bliss"] = len(selected[method] & selected["bliss"]) / len(selected[method]) if "bliss" in selected else math.nan
    return measured


def read_scores(lake: Lake, run: Run) -> Scored:
    """The scores, sources and selection of a run's first round, from the score store."""
    with duckdb.connect(str(lake.score_store), read_only=True) as store:
        columns = store.execute(SCORES_AND_SOURCES, {"score_run": f"{run.name}/round-01"}).fetchnumpy()
    return Scored(columns["sequence_id"], np.asarray(columns["score"]), np.asarray(columns["source"], str), np.asarray(columns["selected"]))


def fidelity(scored: Scored, influences: tuple[np.ndarray, np.ndarray] | None) -> float:
    """Spearman correlation of the scores with measured influences (ids, values) of the same sequences; NaN without any."""
    if influences is None:
        return math.nan
    _, at, probes = np.intersect1d(scored.sequence_id_N, influences[0], return_indices=True)
    return spearman(scored.score_N[at], influences[1][probes])


def seconds(run: Run) -> float:
    """What the method's scores cost: warm-up where a proxy is needed, fit and score, by the whole seconds of their manifests."""
    here = run.round(1)
    manifests = [read_manifest(here / name, made_by="bliss run") for name in ("selector", "scores")]
    if selectors.uses_proxy(run.config.method):
        manifests.append(read_manifest(run.warmup, made_by="bliss run"))
    return sum(_seconds_of(manifest) for manifest in manifests)


def _row(run: Run, seed: int, method: str) -> Row:
    evaluation = read_manifest(run.round(1) / "evaluation", made_by="bliss run")
    return {"seed": seed, "method": method, "loss": evaluation.metrics["validation_loss"], "seconds": seconds(run)}


def _seconds_of(manifest: Manifest) -> float:
    return (datetime.fromisoformat(manifest.finished_at) - datetime.fromisoformat(manifest.begun_at)).total_seconds()


def _influences(runs: dict[str, Run]) -> tuple[np.ndarray, np.ndarray] | None:
    """Influences measured in the `bliss` run, where that stage exists and was done: the same probes and proxy for every method."""
    if "bliss" not in runs or find_manifest(directory := runs["bliss"].round(1) / "fidelity") is None:
        return None
    with (directory / "influences.parquet").open("rb") as stream:
        table = pq.read_table(stream, columns=["sequence_id", "influence"])
    return table["sequence_id"].to_numpy(), table["influence"].to_numpy()


# ---- ranks -----------------------------------------------------------------------------------------------------------


def auc(better: np.ndarray, worse: np.ndarray) -> float:
    """Probability that a score of `better` is above one of `worse`, ties counted half; NaN when either is empty."""
    if not (len(better) and len(worse)):
        return math.nan
    return rank_correlation.area_under_curve(better, worse)


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation; NaN where one side is constant or there are fewer than three pairs."""
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return math.nan
    return rank_correlation.spearman(a, b)


# ---- all seeds -------------------------------------------------------------------------------------------------------


def mean_and_error(values: Sequence[float]) -> Row:
    """Mean, standard error of the mean (None for one value) and the values themselves."""
    error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else None
    return {"mean": float(np.mean(values)), "standard_error": error, "values": list(values)}


def column(rows: Sequence[Row], method: str, name: str) -> list[float]:
    return [row[name] for row in rows if row["method"] == method]


def paired_differences(rows: Sequence[Row]) -> dict[str, Row]:
    """Loss differences of equal seeds for every ordered pair of methods, as "a - b": below zero, a is better."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    pairs = [(a, b) for a in methods for b in methods if a != b]
    return {
        f"{a} - {b}": mean_and_error([x - y for x, y in zip(column(rows, a, "loss"), column(rows, b, "loss"), strict=True)])
        for a, b in pairs
    }


def print_row(row: Row) -> None:
    print(" ".join(f"{name} {_cell(value)}" for name, value in row.items()), flush=True)


def print_summary(rows: Sequence[Row], columns: Sequence[str]) -> None:
    """Mean and standard error over seeds for each method, then what separates `bliss` and `random` from each other method."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    cells = [["method", "loss", "minus_random", *columns]]
    for method in methods:
        cells.append([method, *(_plus_minus(mean_and_error(column(rows, method, name))) for name in cells[0][1:])])
    differences = paired_differences(rows)
    for name in ("bliss", *(variant for variant in methods if variant.startswith("bliss-"))):
        cells += [[pair, _plus_minus(value)] for pair, value in differences.items() if pair.startswith(f"{name} - ")]
    print()
    for line in cells:
        print(f"{line[0]:28s}" + "".join(f"{cell:>24s}" for cell in line[1:]))
    print(flush=True)


def summary(rows: Sequence[Row], arguments: argparse.Namespace) -> Row:
    """The line of JSON: NaN becomes null."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    settings = {"recipe": arguments.recipe, "seeds": arguments.seeds, "methods": methods, "set": arguments.set}
    finite = [{name: None if isinstance(value, float) and math.isnan(value) else value for name, value in row.items()} for row in rows]
    return settings | {"rows": finite, "differences": paired_differences(rows)}


def _plus_minus(value: Row) -> str:
    return _cell(value["mean"]) if value["standard_error"] is None else f"{value['mean']:.4f} +- {value['standard_error']:.4f}"


def _cell(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
