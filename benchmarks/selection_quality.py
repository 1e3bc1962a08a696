"""Does selection help? BLISS beside random, paired by seed: held-out loss of the two targets, and the AUC of the scores by source.

    .venv/bin/python benchmarks/selection_quality.py                                   # the embedded corpus, minutes
    .venv/bin/python benchmarks/selection_quality.py --recipe small --seeds 0 1 2 \\
        --source 'corpora/*.json.gz' --validation lambada.jsonl --near books,speeches --far github

Equal seeds share initial weights, schedule and number of steps, so a difference of losses is a difference of data. Finished runs in
the lake are not done again. Ends with one line of JSON.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
from pathlib import Path

import duckdb

from bliss_ops.cli import main as bliss
from bliss_ops.lake import Lake
from bliss_ops.manifest import read_manifest

AUC_BY_SOURCE = """
with labelled as (
    select s.score, p.source in (select unnest($near)) as near
    from all_scores s
    join score_runs r using (score_run_id)
    join (select distinct sequence_set, sequence_id, source from sequence_documents) p
        on p.sequence_set = r.sequence_set and p.sequence_id = s.sequence_id
    where s.score_run_id = $score_run and (p.source in (select unnest($near)) or p.source in (select unnest($far)))
), ranked as (
    select near, rank() over (order by score) + (count(*) over (partition by score) - 1) / 2.0 as midrank from labelled
)
select (sum(midrank) filter (near) - count(*) filter (near) * (count(*) filter (near) + 1) / 2.0)
       / (count(*) filter (near) * count(*) filter (not near)) as auc
from ranked
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--source", help="C4-format shards; none takes the recipe's")
    parser.add_argument("--validation", help="JSON lines with a `text` key")
    parser.add_argument("--corpus", help="name of the corpus in the lake")
    parser.add_argument("--near", default="documentation,docstrings", help="sources like the validation set, comma-separated")
    parser.add_argument("--far", default="code,data,licences", help="sources unlike it")
    parser.add_argument("--lake", help="a lake to keep; none uses a temporary one")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bliss-quality-") as scratch:
        root = arguments.lake or scratch
        rows = [measure(seed, root, arguments) for seed in arguments.seeds]
    differences = [row["difference"] for row in rows]
    error = statistics.stdev(differences) / math.sqrt(len(rows)) if len(rows) > 1 else None
    mean = statistics.mean(differences)
    print(json.dumps({"recipe": arguments.recipe, "seeds": rows, "mean_difference": mean, "standard_error": error}))
    return 0


def measure(seed: int, root: str, arguments: argparse.Namespace) -> dict[str, float]:
    """Run both methods of one seed and compare them."""
    command = ["run", arguments.recipe, "--seed", str(seed), "--lake", root]
    for option in ("source", "validation", "corpus"):
        if value := getattr(arguments, option):
            command += [f"--{option}", value]
    if bliss(command) != 0:
        sys.exit(1)
    lake = Lake.open(root)
    stem = Path(arguments.recipe).stem
    loss = {
        method: read_manifest(lake.run(f"{stem}-{method}-s{seed}").round(1) / "evaluation", made_by="bliss run").metrics["validation_loss"]
        for method in ("random", "bliss")
    }
    names = {"near": arguments.near.split(","), "far": arguments.far.split(",")}
    with duckdb.connect(str(lake.score_store), read_only=True) as store:
        found = store.execute(AUC_BY_SOURCE, names | {"score_run": f"{stem}-bliss-s{seed}/round-01"}).fetchone()
    row = {"seed": seed, "random": loss["random"], "bliss": loss["bliss"], "difference": loss["bliss"] - loss["random"]}
    row["auc"] = float(found[0]) if found and found[0] is not None else math.nan
    print(" ".join(f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}" for name, value in row.items()), flush=True)
    return row


if __name__ == "__main__":
    sys.exit(main())
