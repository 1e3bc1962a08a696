"""`bliss run --airflow` and `bliss compare --airflow`: a recipe through the DAGs of the local Airflow, every method beside the others."""

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bliss_ops import comparisons, pipeline, report
from bliss_ops.lake import Lake
from bliss_ops.recipes import RECIPES, load_recipe
from bliss_ops.stack.airflow_api import AirflowApi
from bliss_ops.stack.follow import follow
from bliss_ops.stack.state import read_state

log = logging.getLogger(__name__)


def run_in_airflow(recipe: str, methods: Sequence[str], seed: int, overrides: Mapping[str, Any], lake: Lake, state_dir: Path) -> int:
    """Ingest the recipe's corpus, then run all rounds of all methods at once; 0 when every DAG run is green.

    Each method's run is compared with the methods named before it, so the baseline comes first.

    Raises:
        ValueError: nothing is up, it is up over another lake, or a setting is wrong.
    """
    api = _api(recipe, lake, state_dir)
    settings = load_recipe(recipe, dict(overrides))
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


def compare_in_airflow(recipe: str, choice: Mapping[str, Any], overrides: Mapping[str, Any], lake: Lake, state_dir: Path) -> int:
    """A comparison through its DAG, with a live display; 0 when every run and the report are there.

    Args:
        recipe: its recipe, by name.
        choice: `methods`, `seeds`, `name` and `baseline` of the trigger form.
        overrides: dotted settings.
        lake: the lake that the stack is up over.
        state_dir: the stack's directory.

    Raises:
        ValueError: nothing is up, it is up over another lake, or a setting is wrong; a run of that name is there with other settings.
    """
    api = _api(recipe, lake, state_dir)
    comparison = comparisons.configure(  # at once, and in words, what the DAG's first task would say later
        lake, recipe, choice["methods"], choice["seeds"], name=choice["name"], baseline=choice["baseline"], overrides=overrides
    )
    for dag_id in ("bliss_ingest", "bliss_round", "bliss_compare"):
        api.unpause(dag_id)
    run_id = api.trigger("bliss_compare", f"compare-{comparison.name}", {"recipe": recipe, **choice, **overrides})
    is_green = follow(api, [("bliss_compare", run_id)])
    directory = lake.comparison(comparison.name)
    if (directory / "index.html").exists():
        sys.stdout.write(f"{(directory / 'table.md').read_text()}\n{directory / 'index.html'}\n")
    return 0 if is_green else 1


def _api(recipe: str, lake: Lake, state_dir: Path) -> AirflowApi:
    """A session with the Airflow that is up over `lake`.

    Raises:
        ValueError: nothing is up, it is up over another lake, or its forms do not know the recipe.
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
    return state.api


def _trigger_runs(api: AirflowApi, recipe: str, methods: Sequence[str], seed: int, overrides: Mapping[str, Any]) -> dict[str, str]:
    """Trigger round 1 of every method; returns run name -> DAG run id."""
    names: dict[str, str] = {}
    for method in methods:
        name = f"{recipe}-{method}-s{seed}"
        conf = {"recipe": recipe, "method": method, "seed": seed, "round": 1, "name": name, "compare_with": list(names), **overrides}
        names[name] = api.trigger("bliss_round", f"{name}-round-01", conf)
    return names
