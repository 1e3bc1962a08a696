"""Are the documents a method picks within a source better than any others of it? The selection beside random ones of the same mix.

    .venv/bin/python benchmarks/within_source.py --recipe small --seeds 0 1 2 --method bliss --lake quality-lake

Takes the finished runs that `selection_quality.py` or `word_order.py` left in the lake. For each seed a second run trains the same
target, from the same weights, on random sequences with exactly as many of every source as the method selected: what is left of the
gain then is the choice of sources, and the difference of the two is the choice within them. Above zero, the method picks atypical
documents. Ends with one line of JSON.
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial

import numpy as np
from selection_quality import Row, Scored, mean_and_error, print_row, read_scores

from bliss_ops import pipeline, scoring
from bliss_ops.lake import Lake, Run, write_json
from bliss_ops.manifest import Artifact, read_manifest
from bliss_ops.sharding import ROWS_PER_SHARD, ShardRecord


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="small")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--method", default="bliss")
    parser.add_argument("--lake", required=True, help="the lake with the finished runs")
    arguments = parser.parse_args()
    lake = Lake.open(arguments.lake)
    rows: list[Row] = []
    for seed in arguments.seeds:
        method, random = (lake.run(f"{arguments.recipe}-{name}-s{seed}") for name in (arguments.method, "random"))
        same_mix = same_mix_run(lake, method, random)
        loss = {name: held_out_loss(run) for name, run in {"selected": method, "same_mix": same_mix, "random": random}.items()}
        gains = {"sources": loss["same_mix"] - loss["random"], "within_sources": loss["selected"] - loss["same_mix"]}
        rows.append({"seed": seed} | loss | gains)
        print_row(rows[-1])
    summary = {name: mean_and_error([row[name] for row in rows]) for name in ("sources", "within_sources")}
    print(json.dumps({"recipe": arguments.recipe, "method": arguments.method, "seeds": arguments.seeds, "rows": rows} | summary))
    return 0


def same_mix_run(lake: Lake, method: Run, random: Run) -> Run:
    """Train and evaluate the target of `random` on random sequences with the source mix of the selection of `method`."""
    run = lake.run(f"{method.name}-same-mix")
    config = random.config.model_copy(update={"name": run.name, "compare_with": ()})
    write_json(run.path / "config.json", config.model_dump(mode="json"))
    pipeline.warm_up(run)
    pipeline.fit(run, 1)
    scored = read_scores(lake, method)
    selection = read_manifest(method.round(1) / "selection", made_by=f"bliss select {method.name} --round 1")
    here = run.round(1)
    identity = {"same_mix_as": method.name, "seed": config.seed}
    artifact = Artifact(lake, here / "scores", stage="score", identity=identity, inputs=[selection])
    draw = same_mix(scored, config.seed)
    shards = np.unique(scored.sequence_id_N // ROWS_PER_SHARD).tolist()
    artifact.produce_shards(lambda: partial(write_shard, run, scored.sequence_id_N, draw), shards, check=scoring.check)
    stages: list[Callable[[Run, int], object]] = [pipeline.select, pipeline.materialize, pipeline.pretrain, pipeline.evaluate]
    for stage in stages:
        stage(run, 1)
    return run


def same_mix(scored: Scored, seed: int) -> np.ndarray:
    """Random scores (N), one higher for as many sequences of each source, chosen at random, as are selected of it."""
    generator = np.random.default_rng([seed, 0x6D6978])
    score_N = generator.random(len(scored.score_N))
    for source in np.unique(scored.source_N):
        of_source = np.flatnonzero(scored.source_N == source)
        count = int(scored.selected_N[of_source].sum())
        score_N[of_source[np.argsort(score_N[of_source])[len(of_source) - count :]]] += 1
    return score_N.astype(np.float32)


def write_shard(run: Run, sequence_id_N: np.ndarray, score_N: np.ndarray, shard: int) -> ShardRecord:
    """The scores of that shard's sequences, as `bliss score` writes them."""
    mine = sequence_id_N // ROWS_PER_SHARD == shard
    return scoring.write_shard(run.round(1) / "scores", shard, sequence_id_N[mine], score_N[mine])


def held_out_loss(run: Run) -> float:
    return float(read_manifest(run.round(1) / "evaluation", made_by=f"bliss evaluate {run.name} --round 1").metrics["validation_loss"])


if __name__ == "__main__":
    sys.exit(main())
