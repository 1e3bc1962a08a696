"""What selection costs: every method on the same corpus, window and budget, in one run; CPU seconds of one core, memory, model FLOPs.

    .venv/bin/python benchmarks/selection_cost.py                                            # the embedded corpus, minutes
    .venv/bin/python benchmarks/selection_cost.py --recipe small --source 'corpora/*.json.gz' --validation lambada.jsonl

Each method has a process of its own, pinned to one core, that fits, scores the whole candidate window and selects; the warm-up of the
proxy is done once before and is a row of its own. CPU seconds, not wall time, so that a busy machine changes little; peak memory is
that of the whole process, of which the libraries take about 0.3 GB. What a method costs is decided by its settings, so two further
tables have no measurement in them: the same FLOPs by formula (`flops` of each selector, which the tests hold against torch's own
counter) at the settings of `--arithmetic`, by default those of the paper with each method's published ones. Ends with one line of JSON.
"""

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from typing import Any

from bliss_ops import pipeline, selectors
from bliss_ops.cli.arguments import overrides
from bliss_ops.config import RunConfig
from bliss_ops.configure import configure_corpus, configure_run
from bliss_ops.lake import Lake, Run
from bliss_ops.manifest import read_manifest
from bliss_ops.recipes import load_recipe

METHODS = "random,dsir,classifier,perplexity,less,mates,bliss"
C4_WINDOW = 39_000_000  # sequences of 1,024 tokens in 160 shards of C4, about 40 billion tokens
PYTHIA_VOCABULARY = 50_277
LAMBADA_ROW_TOKENS = 82.2  # mean over its 2,576 test rows of the first half, Pythia's tokenizer, end-of-text included


@dataclass(frozen=True)
class Cost:
    """What one process took."""

    cpu_seconds: dict[str, float]  # by stage
    wall_seconds: float
    peak_bytes: int


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--methods", default=METHODS, help="comma-separated (default: %(default)s)")
    parser.add_argument("--source", help="C4-format shards; none takes the recipe's")
    parser.add_argument("--validation", help="JSON lines with a `text` key; none takes the recipe's")
    parser.add_argument("--corpus", help="name of the corpus in the lake")
    parser.add_argument("--lake", help="a lake to keep, in which a corpus may be there already; none uses a temporary one")
    parser.add_argument("--core", type=int, default=0, help="the core everything is pinned to")
    parser.add_argument("--arithmetic", default="pythia-410m", help="recipe of the table by formula")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="a setting of all runs; repeatable")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bliss-selectors-") as scratch:
        lake = Lake.open(arguments.lake or scratch)
        rows = measure(lake, arguments)
    computed = by_formula(arguments.arithmetic)
    print_measured(rows)
    print_computed(arguments.arithmetic, computed)
    print(json.dumps({"recipe": arguments.recipe, "measured": rows, "arithmetic": {"recipe": arguments.arithmetic, "rows": computed}}))
    return 0


# ---- measured --------------------------------------------------------------------------------------------------------


def measure(lake: Lake, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for the proxy's warm-up, one for each method."""
    changes = overrides(arguments, arguments.source)
    recipe = load_recipe(arguments.recipe, changes)
    configure_corpus(lake, recipe)
    print(f"ingest {recipe.ingest.corpus}", flush=True)
    pipeline.ingest(lake, recipe.ingest.corpus)
    methods = [name.strip() for name in arguments.methods.split(",")]
    first = next(method for method in [*methods, "perplexity"] if selectors.uses_proxy(method))
    shared = configure_run(lake, arguments.recipe, first, 0, overrides=changes, name="selectors-warmup")
    cost = in_a_process(arguments.core, lake, shared.name, ("warm_up",))
    rows = [_row("(proxy's warm-up)", cost, 0.0, 0.0)]
    for method in methods:
        name = f"selectors-{method}"
        run = configure_run(lake, arguments.recipe, method, 0, overrides=changes, name=name, warmup_of=shared.name)
        cost = in_a_process(arguments.core, lake, run.name, ("fit", "score", "select"))
        found = flops_of(run)
        rows.append(_row(method, cost, found.fit, found.score) | _spearman(run))
        print(f"{method}: {sum(cost.cpu_seconds.values()):.1f} CPU seconds, {cost.peak_bytes / 1e6:.0f} MB", flush=True)
    return rows


def in_a_process(core: int, lake: Lake, run_name: str, stages: tuple[str, ...]) -> Cost:
    """Run stages of a run's first round in a new process on one core."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sending, core, os.fspath(lake.root), run_name, stages))
    process.start()
    sending.close()
    try:
        cost: Cost = receiving.recv()
    except EOFError:
        sys.exit(f"{run_name}: its process ended without a result")
    finally:
        process.join()
    return cost


def _work(sending: Any, core: int, root: str, run_name: str, stages: tuple[str, ...]) -> None:
    os.sched_setaffinity(0, {core})
    run, begun = Lake.open(root).run(run_name), time.monotonic()
    seconds = {}
    for stage in pipeline.ROUND_STAGES:
        if stage.name in stages:
            before = time.process_time()
            stage.do(run, 1)
            seconds[stage.name] = time.process_time() - before
    sending.send(Cost(seconds, time.monotonic() - begun, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))


def flops_of(run: Run) -> selectors.SelectorFlops:
    """By formula, with the tokens that a validation row really has."""
    validation = read_manifest(run.corpus.validation, made_by="bliss prepare-validation").metrics
    candidates = read_manifest(run.round(1) / "scores", made_by="bliss score").metrics["num_sequences"]
    vocab_size = read_manifest(run.corpus.tokenizer, made_by="bliss train-tokenizer").metrics["vocab_size"]
    row_tokens = validation["num_guide_tokens"] / validation["num_guide_rows"]
    selector = selectors.load(run.config.method)
    return selector.flops(run.config, vocab_size=vocab_size, num_sequences=candidates, validation_row_tokens=row_tokens)


def _row(method: str, cost: Cost, fit_flops: float, score_flops: float) -> dict[str, Any]:
    return {"method": method, **asdict(cost), "fit_flops": fit_flops, "score_flops": score_flops}


def _spearman(run: Run) -> dict[str, Any]:
    metrics = read_manifest(run.round(1) / "selector", made_by="bliss fit").metrics
    return {name: metrics[name] for name in ("spearman", "spearman_standard_error") if name in metrics}


# ---- by formula ------------------------------------------------------------------------------------------------------


def by_formula(recipe: str) -> list[dict[str, Any]]:
    """FLOPs of one round at a recipe's settings, a window of C4 and LAMBADA as the validation set."""
    rows = []
    for method in ("perplexity", "bliss", "mates", "less"):
        config = RunConfig(**load_recipe(recipe, method=method).model_dump(), name="r", recipe=recipe, method=method)
        found = selectors.load(method).flops(
            config, vocab_size=PYTHIA_VOCABULARY, num_sequences=C4_WINDOW, validation_row_tokens=LAMBADA_ROW_TOKENS
        )
        rows.append({"method": method, "fit_flops": found.fit, "score_flops": found.score})
    return rows


# ---- tables ----------------------------------------------------------------------------------------------------------


def print_measured(rows: list[dict[str, Any]]) -> None:
    print(f"\n{'method':20s}{'fit':>10s}{'score':>10s}{'select':>10s}{'CPU s':>10s}{'/ bliss':>9s}{'peak MB':>10s}{'FLOPs':>12s}")
    bliss = next((sum(row["cpu_seconds"].values()) for row in rows if row["method"] == "bliss"), None)
    for row in rows:
        seconds = row["cpu_seconds"]
        total = sum(seconds.values())
        stages = "".join(f"{seconds[name]:10.1f}" if name in seconds else f"{'':10s}" for name in ("fit", "score", "select"))
        ratio = f"{total / bliss:9.2f}" if bliss else f"{'':9s}"
        print(
            f"{row['method']:20s}{stages}{total:10.1f}{ratio}{row['peak_bytes'] / 1e6:10.0f}{row['fit_flops'] + row['score_flops']:12.2e}"
        )


def print_computed(recipe: str, rows: list[dict[str, Any]]) -> None:
    print(f"\nFLOPs by formula: {recipe}, one round, {C4_WINDOW:,} candidate sequences")
    print(f"{'method':20s}{'fit':>12s}{'score':>12s}{'both':>12s}{'/ bliss':>9s}")
    bliss = next(row["fit_flops"] + row["score_flops"] for row in rows if row["method"] == "bliss")
    for row in rows:
        both = row["fit_flops"] + row["score_flops"]
        print(f"{row['method']:20s}{row['fit_flops']:12.2e}{row['score_flops']:12.2e}{both:12.2e}{both / bliss:9.2f}")


if __name__ == "__main__":
    sys.exit(main())
