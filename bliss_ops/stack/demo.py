"""`bliss run --airflow`: a recipe through the DAGs of the local Airflow, every method beside the others."""

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bliss_ops import pipeline, report
from bliss_ops.lake import Lake
from bliss_ops.recipes import RECIPES, load_recipe
from bliss_ops.stack.airflow_api import AirflowApi
from bliss_ops.stack.follow import follow
from bliss_ops.stack.local import read_state

log = logging.getLogger(__name__)


def run_in_airflow(recipe: str, methods: Sequence[str], seed: int, overrides: Mapping[str, Any], lake: Lake, state_dir: Path) -> int:
    """Ingest the recipe's corpus, then run all rounds of all methods at once; 0 when every DAG run is green.

    Each method's run is compared with the methods named before it, so the baseline comes first.

    Raises:
        ValueError: nothing is up, it is up over another lake, or a setting is wrong.
    """
    state = read_state(state_dir.absolute())
    if state is None:
        raise ValueError(f"nothing is up in {state_dir}: run `bliss up` first")
    if state.layout.lake != str(lake.root):
        raise ValueError(
            f"the stack is up over the lake {state.layout.lake}, not {lake.root}: give --lake, or `bliss down` and `bliss up` again"
        )
    if not (RECIPES / f"{recipe}.toml").is_file():
        raise ValueError(f"{recipe!r}: Airflow's forms know the recipes of {RECIPES} by name; give one of them with --set for what differs")
    settings = load_recipe(recipe, dict(overrides))
    api = state.api
    for dag_id in ("bliss_ingest", "bliss_round"):
        api.unpause(dag_id)

    of_corpus = {key: value for key, value in overrides.items() if key.startswith("ingest.")}
    ingest = api.trigger("bliss_ingest", f"ingest-{settings.ingest.corpus}", {"recipe": recipe, **of_corpus})
    if not follow(api, [("bliss_ingest", ingest)]):
        return 1
    names = _trigger_runs(api, recipe, methods, seed, overrides)
    if not follow(api, [("bliss_round", run_id) for run_id in names.values()]):
        return 1
    for name in names:  # a run may have ended before the ones it is compared with
        run = lake.run(name)
        pipeline.report(run, settings.num_rounds)
        sys.stdout.write(report.headline(run))
    return 0


def _trigger_runs(api: AirflowApi, recipe: str, methods: Sequence[str], seed: int, overrides: Mapping[str, Any]) -> dict[str, str]:
    """Trigger round 1 of every method; returns run name -> DAG run id."""
    names: dict[str, str] = {}
    for method in methods:
        name = f"{recipe}-{method}-s{seed}"
        conf = {"recipe": recipe, "method": method, "seed": seed, "round": 1, "name": name, "compare_with": list(names), **overrides}
        names[name] = api.trigger("bliss_round", f"{name}-round-01", conf)
    return names
