"""One run of a comparison: everything that is read of it, once; and what the settings of several runs do not share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bliss_ops.config import RunConfig
from bliss_ops.corpus.arrays import Float64s, Int64s
from bliss_ops.lake import Run
from bliss_ops.manifest import find_manifest
from bliss_ops.report import page
from bliss_ops.report.comparison.costs import RunCost, run_cost
from bliss_ops.report.comparison.curves import Curve, read_curve
from bliss_ops.report.comparison.losses import Key
from bliss_ops.report.comparison.rows import Row
from bliss_ops.report.comparison.tasks import task_rows
from bliss_ops.report.curves import Result, read_run
from bliss_ops.report.facts import Distribution, Facts, Source

SAMPLE = 50_000  # sequences whose ranks are correlated: a standard error of 0.004
SAMPLED = "select sequence_id, score::double as score from candidates where hash(sequence_id) % $one_of::ubigint = 0 order by sequence_id"
NOT_SETTINGS = ("name", "recipe", "description", "method", "seed", "compare_with", "warmup_of")


@dataclass
class Member:
    """One run of the comparison."""

    number: int
    run: Run
    config: RunConfig
    curve: Curve
    result: Result | None
    fidelity: dict[str, Any] | None
    sequences: str | None  # digest of the sequences it chose among
    tasks: list[Row] = field(default_factory=list)
    cost: RunCost | None = None
    distribution: Distribution | None = None
    counts: dict[str, Any] = field(default_factory=dict)
    sources: dict[str, Source] = field(default_factory=dict)
    sample: tuple[Int64s, Float64s] | None = None

    @property
    def label(self) -> str:
        return f"{self.number} {self.run.name}"

    @property
    def key(self) -> tuple[str, Key]:
        """Method, and what makes it a pair with a run of another one: corpus and seed."""
        return self.config.method, (self.config.ingest.corpus, self.config.seed)


def read_member(number: int, run: Run, round_number: int, scratch: Path) -> Member:
    """What a round of the run has finished so far; `scratch` takes a database."""
    here, compared = run.round(round_number), read_run(run, round_number)
    fidelity = find_manifest(here / "fidelity")
    sequences = find_manifest(run.corpus.sequences)
    member = Member(
        number=number,
        run=run,
        config=run.config,
        curve=read_curve(run, round_number),
        result=compared.results.get(round_number),
        fidelity=fidelity.metrics if fidelity and fidelity.metrics["measured"] else None,
        sequences=sequences.digest if sequences else None,
        tasks=task_rows(run, round_number),
        cost=run_cost(run, round_number),
    )
    if find_manifest(here / "scores") and find_manifest(here / "selection"):
        with Facts(run, round_number, str(scratch / str(number))) as facts:
            member.distribution, member.counts = facts.distribution(), facts.counts
            member.sources = {source.name: source for source in facts.sources()}
            one_of = math.ceil(member.distribution.num_sequences / SAMPLE)
            columns = facts.con.execute(SAMPLED, {"one_of": one_of}).fetchnumpy()
            member.sample = columns["sequence_id"], columns["score"]
    return member


def methods_of(members: Sequence[Member]) -> list[str]:
    """The methods, in the order of the runs."""
    return list(dict.fromkeys(member.config.method for member in members))


def with_the_same_sequences(members: Sequence[Member]) -> list[Member]:
    """The largest group of runs that chose among the same sequences."""
    groups: dict[str | None, list[Member]] = {}
    for member in members:
        if member.distribution is not None:
            groups.setdefault(member.sequences, []).append(member)
    return max(groups.values(), key=len, default=[])


def differing_settings(members: Sequence[Member]) -> list[tuple[str, list[tuple[str, list[int]]]]]:
    """Settings that are not the same everywhere: each value with the numbers of the runs that have it."""
    of_run = {member.number: {row["name"]: row["value"] for row in page.settings(member.config)} for member in members}
    names = [name for name in next(iter(of_run.values())) if name not in NOT_SETTINGS]
    found = []
    for name in names:
        values: dict[str, list[int]] = {}
        for number, settings in of_run.items():
            values.setdefault(settings[name], []).append(number)
        if len(values) > 1:
            found.append((name, list(values.items())))
    return found
