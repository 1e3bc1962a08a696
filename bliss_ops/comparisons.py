"""A comparison: selectors x seeds on the same corpus, target, schedule and token budget, and the one report of it.

`configure` writes the config of every run and `comparisons/<name>/comparison.json`, after everything that can be checked has been. The
runs are ordinary ones (`<name>-<method>-s<seed>`): what is finished is not done again, so a killed comparison goes on where it was and a
method or a seed that is added later costs its own runs only. Per seed one run warms up proxy and target and the others start from there.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field
from upath import UPath

from bliss_ops import pipeline, rounds
from bliss_ops.config import Name, RunConfig, Settings, parse
from bliss_ops.configure import config_differences, configure_corpus, configure_run, run_config
from bliss_ops.lake import Lake, Run, write_json
from bliss_ops.manifest import find_manifest
from bliss_ops.recipes import load_recipe
from bliss_ops.selectors import check_method
from bliss_ops.training import sharing

log = logging.getLogger(__name__)

BASELINE = "random"
FAILURES = (ValueError, ArithmeticError, OSError, RuntimeError)  # of one run: data, NaN, disk, memory and workers; the others go on


class Member(Settings):
    """One run of a comparison."""

    run: Name
    method: Name
    seed: int
    warmup: Name = Field(description="The run that has its warm-up: itself, or another one of its seed.")

    @property
    def label(self) -> str:
        return f"{self.method} s{self.seed}"


class Comparison(Settings):
    """The content of `comparisons/<name>/comparison.json`."""

    name: Name
    recipe: str
    corpus: Name
    baseline: Name
    num_rounds: int
    runs: tuple[Member, ...]

    @property
    def warmups(self) -> list[str]:
        """The runs that warm up for all of them."""
        return list(dict.fromkeys(member.warmup for member in self.runs))


def read(lake: Lake, name: str) -> Comparison:
    """A configured comparison.

    Raises:
        ValueError: there is none of that name.
    """
    path = lake.comparison(name) / "comparison.json"
    try:
        return parse(Comparison, path.read_bytes(), where=str(path))
    except FileNotFoundError:
        raise ValueError(f"there is no comparison {name!r} in the lake {lake.root}: run `bliss compare --recipe ...` first") from None


def configure(
    lake: Lake,
    recipe: str,
    methods: Sequence[str],
    seeds: Sequence[int],
    *,
    name: str | None = None,
    baseline: str = BASELINE,
    overrides: Mapping[str, Any] | None = None,
) -> Comparison:
    """Check everything, then write the configs of the corpus and of every run, and the comparison's own.

    Args:
        lake: where the runs are to be.
        recipe: their recipe, by name or path.
        methods: selectors or variants, two or more.
        seeds: of initial weights and data order; every method runs with each of them.
        name: of the comparison and the beginning of its runs' names; the recipe's unless given.
        baseline: the method that the others are held against.
        overrides: dotted settings that count more than the recipe and the variants.

    Raises:
        ValueError: a method, seed or setting is wrong, or a run of that name is there with other settings; nothing has been written.
    """
    _check_choice(methods, seeds, baseline)
    stem = Path(recipe).stem
    name = name or stem
    configs = {
        (method, seed): run_config(lake, recipe, method, seed, overrides=overrides, name=f"{name}-{method}-s{seed}")
        for seed in seeds
        for method in methods
    }
    shared = load_recipe(recipe, dict(overrides or {}))
    _check_unchanged(lake, list(configs.values()), shared.ingest.corpus)
    for config in configs.values():
        rounds.check(config, lake.run(config.name))
    warmups = _assign_warmups(lake, list(configs.values()))

    corpus = configure_corpus(lake, shared)
    by_owner_first = sorted(configs.values(), key=lambda config: warmups[config.name] != config.name)
    for config in by_owner_first:
        shared_with = warmups[config.name]
        configure_run(
            lake,
            recipe,
            config.method,
            config.seed,
            overrides=overrides,
            name=config.name,
            compare_with=() if config.method == baseline else (f"{name}-{baseline}-s{config.seed}",),
            warmup_of=None if shared_with == config.name else shared_with,
        )
    members = tuple(
        Member(run=configs[method, seed].name, method=method, seed=seed, warmup=warmups[configs[method, seed].name])
        for method in methods
        for seed in seeds
    )
    comparison = Comparison(name=name, recipe=stem, corpus=corpus.name, baseline=baseline, num_rounds=shared.num_rounds, runs=members)
    write_json(lake.comparison(name) / "comparison.json", comparison.model_dump(mode="json"))
    return comparison


def run(lake: Lake, comparison: Comparison, work: pipeline.Work = pipeline.EVERYTHING) -> UPath:
    """Every run of the comparison in this process, one after the other, then the report; returns the address of its page.

    A run that fails is logged and the others go on; what is missing is said on the page.
    """
    pipeline.ingest(lake, comparison.corpus, work)
    check_data(lake, comparison)
    for member in unfinished(lake, comparison):
        try:
            for round_number in range(1, comparison.num_rounds + 1):
                pipeline.run_round(lake, member.run, round_number, work)
        except FAILURES as error:
            log.error("%s failed, the others go on: %s: %s", member.run, type(error).__name__, error)  # noqa: TRY400 - a person's lines
    return report(lake, comparison)


def check_data(lake: Lake, comparison: Comparison) -> None:
    """Return when the corpus has data for every run, which is only known once it is ingested.

    Raises:
        ValueError: it has not; the message says for which run, how much there is and what to change.
    """
    for member in unfinished(lake, comparison):
        rounds.check(lake.run(member.run).config, lake.run(member.run))


def report(lake: Lake, comparison: Comparison) -> UPath:
    """Write the comparison's page, `summary.json` and `table.md` about the runs that are there; returns the page's address.

    Raises:
        ValueError: there are not two runs with results.
    """
    from bliss_ops.report.comparison import compare

    missing = {member.run: how_far(lake.run(member.run), comparison.num_rounds) for member in unfinished(lake, comparison)}
    there = [member.run for member in comparison.runs if find_manifest(lake.run(member.run).round(1) / "evaluation")]
    if len(there) < 2:
        listing = "\n".join(f"  {name}: {state}" for name, state in missing.items())
        raise ValueError(f"comparison {comparison.name!r} has {len(there)} runs with results, a report needs two:\n{listing}")
    return compare(
        lake,
        there,
        output=lake.comparison(comparison.name),
        baseline=comparison.baseline,
        missing=missing,
        title=comparison.name,
    )


def unfinished(lake: Lake, comparison: Comparison) -> list[Member]:
    """The runs with something left to do."""
    return [member for member in comparison.runs if not is_finished(lake.run(member.run), comparison.num_rounds)]


def is_finished(run: Run, num_rounds: int) -> bool:
    """Whether every round is evaluated and the run has its own report."""
    return all(find_manifest(run.round(number) / "evaluation") for number in range(1, num_rounds + 1)) and bool(find_manifest(run.report))


def how_far(run: Run, num_rounds: int) -> str:
    """The last artifact of an unfinished run, in words."""
    if find_manifest(run.warmup) is None:
        return "nothing is done"
    last = "warm-up is done"
    for number in range(1, num_rounds + 1):
        for artifact in ("selector", "scores", "fidelity", "selection", "subset", "pretrain", "evaluation"):
            if find_manifest(run.round(number) / artifact) is None:
                return f"{last}, {artifact} of round {number} is not there"
            last = f"{artifact} of round {number} is done"
    return f"{last}, its report is not there"


def _check_choice(methods: Sequence[str], seeds: Sequence[int], baseline: str) -> None:
    for method in methods:
        check_method(method)
    for what, values in (("method", methods), ("seed", seeds)):
        if twice := sorted({value for value in values if list(values).count(value) > 1}, key=str):
            raise ValueError(f"{what} {', '.join(map(str, twice))} is named twice: every run of a comparison is one method with one seed")
    if len(methods) < 2:
        raise ValueError(f"a comparison needs two methods or more, got {', '.join(methods) or 'none'}: for example random,dsir")
    if not seeds:
        raise ValueError("a comparison needs a seed or more: for example 0,1,2")
    if wrong := [seed for seed in seeds if not 0 <= seed < 2**31]:
        raise ValueError(f"seeds: {', '.join(map(str, wrong))} is out of range; seeds are 0 to {2**31 - 1}")
    if baseline not in methods:
        raise ValueError(f"the baseline {baseline!r} is not among the methods ({', '.join(methods)}): add it, or choose one of them")


def _check_unchanged(lake: Lake, configs: Sequence[RunConfig], corpus: str) -> None:
    """Raise ValueError with every difference from configs that are there already."""
    found = {config.name: config_differences(lake.run(config.name).path / "config.json", config) for config in configs}
    for config in configs:  # another number of rounds extends a run, or leaves one that was extended before (rounds.py)
        if config.window_shards is not None and all(line.startswith("num_rounds:") for line in found[config.name]):
            found[config.name] = []
    found = {f"corpus {corpus}": config_differences(lake.corpus(corpus).path / "config.json", configs[0].ingest)} | found
    if changed := {name: lines for name, lines in found.items() if lines}:
        listing = "\n".join(f"  {name}:\n" + "\n".join(f"    {line}" for line in lines) for name, lines in changed.items())
        raise ValueError(
            f"{', '.join(changed)} of the lake {lake.root} was written with other settings:\n{listing}\n"
            "Put the settings back, or give the comparison another name (and another corpus where its own settings differ)."
        )


def _assign_warmups(lake: Lake, configs: Sequence[RunConfig]) -> dict[str, str]:
    """Run -> the run that has its warm-up. What is configured already stays; else whoever has a proxy warms up for its seed."""
    there = {config.name for config in configs if (lake.run(config.name).path / "config.json").is_file()}
    found = {config.name: config.warmup_of or config.name for config in configs if config.name in there}
    owners = [config for config in configs if found.get(config.name) == config.name]
    needs_proxy = {config.name: "proxy" in sharing.warmup_settings(config) for config in configs}
    owners.sort(key=lambda config: not needs_proxy[config.name])
    for config in sorted((c for c in configs if c.name not in there), key=lambda config: not needs_proxy[config.name]):
        owner = next((other for other in owners if not sharing.obstacles(config, other)), None)
        found[config.name] = owner.name if owner else config.name
        owners += [] if owner else [config]
    return found
