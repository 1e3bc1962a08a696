"""From a recipe to the `config.json` of a corpus or run: written once, compared ever after."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from upath import UPath

from bliss_ops import rounds
from bliss_ops.config import IngestConfig, Recipe, RunConfig, identity, parse
from bliss_ops.lake import Corpus, Lake, Run, write_json
from bliss_ops.manifest import differences
from bliss_ops.models import architecture
from bliss_ops.recipes import load_recipe
from bliss_ops.selectors import check_method, uses_proxy

ConfigT = TypeVar("ConfigT", IngestConfig, RunConfig)


def configure_corpus(lake: Lake, recipe: Recipe) -> Corpus:
    """Write `corpora/<name>/config.json`, or check that the one there is the same."""
    corpus = lake.corpus(recipe.ingest.corpus)
    _write_config(corpus.path / "config.json", _with_moved_bounds(corpus.path / "config.json", recipe.ingest))
    return corpus


def configure_run(
    lake: Lake,
    recipe: str,
    method: str,
    seed: int,
    *,
    overrides: Mapping[str, Any] | None = None,
    name: str | None = None,
    compare_with: Sequence[str] = (),
    warmup_of: str | None = None,
) -> Run:
    """Write `runs/<name>/config.json`, or check that the one there is the same; more rounds than it has extend it (rounds.py).

    Args:
        lake: where the run is to be.
        recipe: its recipe, by name or path.
        method: a selector or a variant of one.
        seed: of initial weights and data order.
        overrides: dotted settings that count more than the recipe and the variant.
        name: of the run; `<recipe>-<method>-s<seed>` unless given.
        compare_with: runs drawn beside this one in its report.
        warmup_of: the run whose warm-up it starts from; none leaves what a config that is there already says.
    """
    config = run_config(lake, recipe, method, seed, overrides=overrides, name=name, compare_with=compare_with, warmup_of=warmup_of)
    run = lake.run(config.name)
    config = rounds.reconciled(run, config)
    rounds.check(config, run)
    _write_config(run.path / "config.json", _with_moved_bounds(run.path / "config.json", config))
    return run


def move_bounds(target: Corpus | Run, bounds: Mapping[str, Any]) -> list[str]:
    """Change bounds of the gates in the config of a corpus or run; returns what was changed, one line each.

    Raises:
        ValueError: there is no such bound, or the value is out of its range.
    """
    config, path = target.config, target.path / "config.json"
    gates = parse(type(config.gates), config.gates.model_dump() | dict(bounds), where=f"gates of {target.name}")
    write_json(path, config.model_copy(update={"gates": gates}).model_dump(mode="json"))
    return differences(config.gates.model_dump(), gates.model_dump())


def run_config(
    lake: Lake,
    recipe: str,
    method: str,
    seed: int,
    *,
    overrides: Mapping[str, Any] | None = None,
    name: str | None = None,
    compare_with: Sequence[str] = (),
    warmup_of: str | None = None,
) -> RunConfig:
    """The content of `runs/<name>/config.json`, with the warm-up of a run that is configured already; nothing is written.

    Raises:
        ValueError: a setting is wrong, a model cannot be built, or `warmup_of` names a run whose warm-up is another one.
    """
    from bliss_ops.training import sharing

    stem = Path(recipe).stem
    values = load_recipe(recipe, dict(overrides or {}), method=check_method(method)).model_dump() | {
        "name": name or f"{stem}-{method}-s{seed}",
        "recipe": stem,
        "method": method,
        "seed": seed,
        "compare_with": tuple(compare_with),
    }
    config = architecture.with_architectures(parse(RunConfig, values, where="run"))
    architecture.check_models(config, ["target", *["proxy"] * uses_proxy(method)])
    run = lake.run(config.name)
    if warmup_of is not None:
        sharing.check(config, lake.run(warmup_of).config)
    elif (run.path / "config.json").exists():
        warmup_of = run.config.warmup_of
    return config.model_copy(update={"warmup_of": warmup_of})


def config_differences(path: UPath, config: IngestConfig | RunConfig) -> list[str]:
    """What of a config that is there is other than in `config`; empty where there is none."""
    if not path.exists():
        return []
    return differences(identity(parse(type(config), path.read_bytes(), where=str(path))), identity(config))


def _with_moved_bounds(path: UPath, config: ConfigT) -> ConfigT:
    """`config` with the gates of the one there, where it asks for none itself: who moved a bound does not move it for every round."""
    if not path.exists() or config.gates != type(config.gates)():
        return config
    return config.model_copy(update={"gates": parse(type(config), path.read_bytes(), where=str(path)).gates})


def _write_config(path: UPath, config: IngestConfig | RunConfig) -> None:
    """Write `config`, or compare with the one there.

    Raises:
        ValueError: a different config is there; the message lists the fields.
    """
    if changes := config_differences(path, config):
        listing = "\n".join(f"  {change}" for change in changes)
        raise ValueError(f"{path} was written with other settings:\n{listing}\nPut the settings back, or choose another name.")
    write_json(path, config.model_dump(mode="json"))
