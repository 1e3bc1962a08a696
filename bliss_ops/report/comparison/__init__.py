"""`bliss compare`: one page of several runs, their held-out losses, what they cost, their scores, and what each of them keeps.

Runs of one method with several seeds are told as a mean with its standard error; differences from the baseline are taken seed by seed,
because runs of one seed share their initial weights and differ by their data alone. Scores and selections are only held against each
other where the sequences are the same; what cannot be compared is said on the page. Each part of the page has a file beside this one.
"""

import hashlib
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from markupsafe import Markup
from upath import UPath

from bliss_ops.config import RunConfig
from bliss_ops.corpus.arrays import Float64s, Int64s
from bliss_ops.lake import Lake, Run, write_bytes, write_json
from bliss_ops.manifest import find_manifest
from bliss_ops.report import charts, page
from bliss_ops.report.comparison import overlap as overlaps
from bliss_ops.report.comparison import table
from bliss_ops.report.comparison.costs import RunCost, costs_by_method, run_cost
from bliss_ops.report.comparison.curves import Curve, SpeedUp, comparable, read_curve, speed_up
from bliss_ops.report.comparison.lines import lines_by_tokens, styles_of
from bliss_ops.report.comparison.losses import Key, MethodLoss, against, losses_by_method
from bliss_ops.report.comparison.rows import Row
from bliss_ops.report.comparison.summary import caveats, method_rows
from bliss_ops.report.comparison.tasks import METRICS, TaskResult, pair, task_results, task_rows
from bliss_ops.report.curves import Result, read_run
from bliss_ops.report.facts import Distribution, Facts, Source

BASELINE = "random"
SAMPLE = 50_000  # sequences whose ranks are correlated: a standard error of 0.004
SAMPLED = "select sequence_id, score::double as score from candidates where hash(sequence_id) % $one_of::ubigint = 0 order by sequence_id"
NOT_SETTINGS = ("name", "recipe", "description", "method", "seed", "compare_with", "warmup_of")
SHARED = ("num_rounds", "window_shards", "target.", "pretraining.", "compute.", "selection.", "ingest.", "evaluation.")


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


def compare(
    lake: Lake,
    names: Sequence[str],
    round_number: int | None = None,
    output: UPath | None = None,
    *,
    baseline: str = BASELINE,
    missing: Mapping[str, str] | None = None,
    title: str | None = None,
) -> UPath:
    """Write `index.html`, `summary.json` and `table.md` about several runs and return the page's address.

    Args:
        lake: the lake they are in.
        names: two runs or more.
        round_number: which round; none takes the last one that every run has evaluated, else the last any has.
        output: directory to write; none takes `comparisons/<names>` of the lake.
        baseline: the method that the others are held against.
        missing: runs that belong to the comparison and are not done, with how far they are.
        title: the comparison's name, where it has one.

    Raises:
        ValueError: fewer than two runs, or one of them is not in the lake or has nothing finished.
    """
    if len(set(names)) < 2:
        raise ValueError("name two runs or more: there is nothing to compare with one")
    runs = [lake.run(name) for name in dict.fromkeys(names)]
    round_number = round_number or _round_of(runs)
    with tempfile.TemporaryDirectory(prefix="bliss-compare-") as scratch:
        members = [_read(number, run, round_number, Path(scratch)) for number, run in enumerate(runs, start=1)]
        if not any(member.result or member.distribution for member in members):
            raise ValueError(f"none of {', '.join(names)} has finished scores or an evaluation in round {round_number}: run them first")
        directory = output or lake.comparison(_name([run.name for run in runs]))
        html, summary, markdown = _render(members, round_number, baseline, missing or {}, title)
    write_bytes(directory / "index.html", html.encode())
    write_json(directory / "summary.json", summary)
    write_bytes(directory / "table.md", markdown.encode())
    return directory / "index.html"


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


def speed_ups_of(members: Sequence[Member], baseline: str) -> tuple[str, list[SpeedUp]]:
    """Which points are comparable, and every run against the baseline's run of its seed."""
    measured = {member.key: member for member in members if member.curve.stable or member.curve.decayed}
    kind = comparable([member.curve for member in measured.values()])
    found = []
    for (method, key), member in measured.items():
        other = measured.get((baseline, key))
        if other is None or method == baseline:
            continue
        runs = (member.run, other.run) if member.cost and other.cost else None
        one = speed_up(method, key[1], getattr(member.curve, kind), getattr(other.curve, kind), runs, are_decayed=kind == "decayed")
        found += [one] if one else []
    return kind, found


def _read(number: int, run: Run, round_number: int, scratch: Path) -> Member:
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


def _round_of(runs: Sequence[Run]) -> int:
    """The last round that all have evaluated, else the last that any has."""
    finished = [
        {number for number in range(1, run.config.num_rounds + 1) if find_manifest(run.round(number) / "evaluation")} for run in runs
    ]
    return max(set.intersection(*finished) or set.union(*finished), default=1)


def _render(
    members: list[Member], round_number: int, baseline: str, missing: Mapping[str, str], title: str | None
) -> tuple[str, dict[str, Any], str]:
    together = _with_the_same_sequences(members)
    of_runs = {member.key: member.result.loss for member in members if member.result}
    losses = losses_by_method(of_runs, baseline)
    settings = differing_settings(members)
    costs = costs_by_method({member.key: member.cost for member in members if member.cost})
    kind, speed_ups = speed_ups_of(members, baseline)
    rows = method_rows(losses, speed_ups, costs, baseline)
    tasks = _tasks(members, round_number, baseline)
    overlap, overlap_of_methods = overlaps.overlap(together, round_number)
    methods = list(dict.fromkeys(member.config.method for member in members))
    said = caveats(losses, baseline, missing)
    unfair = [(name, values) for name, values in settings if name.startswith(SHARED)]
    summary = {
        "round": round_number,
        "baseline": baseline,
        "runs": [member.run.name for member in members],
        "missing": dict(missing),
        "validation_losses": {member.run.name: member.result.loss for member in members if member.result},
        "methods": [_summary(loss) for loss in losses],
        "speed_up": {
            "points": kind,
            "runs": [
                vars(one) | {"crossing": vars(one.crossing), "by_tokens": one.by_tokens, "by_flops": one.by_flops} for one in speed_ups
            ],
        },
        "costs": [vars(cost) for cost in costs],
        "tasks": [_plain(result) for result in tasks],
        "overlap": {"methods": list(dict.fromkeys(member.config.method for member in together)), "jaccard": overlap_of_methods},
        "differing_settings": {name: dict(values) for name, values in settings},
        "caveats": said,
    }
    share = together[0].counts["num_selected"] / together[0].counts["num_candidates"] if together else 0.0
    html = page.render(
        "comparison.html",
        title=title,
        members=members,
        methods=methods,
        round_number=round_number,
        rows=rows,
        second=against(of_runs, losses[0].method, losses[1].method) if len(losses) > 1 else None,
        baseline=baseline,
        missing=missing,
        caveats=said,
        kind=kind,
        speed_ups=speed_ups,
        costs=costs,
        tasks=tasks,
        task_charts=_task_charts(members, methods),
        curves=_curves(members, kind),
        spreads=[(member, _histogram(member)) for member in _examples(members)],
        left_out=sum(member.distribution is not None for member in members) - len(_examples(members)),
        together=together,
        numbered=overlaps.numbered(together)[0] if together else [],
        in_full=len(together) <= overlaps.MOST_RUNS,
        by_chance=overlaps.by_chance(share),
        other_windows=any(member.config.num_rounds > 1 or member.config.window_shards for member in together)
        and len({member.config.seed for member in together}) > 1,
        apart=[member for member in members if member.distribution is not None and member not in together],
        unscored=[member for member in members if member.distribution is None],
        kept=overlaps.kept(together),
        overlap=overlap,
        correlation=overlaps.correlation(together),
        settings=settings,
        unfair=unfair,
        recipes=list(dict.fromkeys(member.config.recipe for member in members)),
        with_error=table.with_error,
        flops=table.flops,
        seconds=table.seconds,
        memory=table.memory,
    )
    return html, summary, table.markdown(rows, baseline, said)


def _with_the_same_sequences(members: Sequence[Member]) -> list[Member]:
    """The largest group of runs that chose among the same sequences."""
    groups: dict[str | None, list[Member]] = {}
    for member in members:
        if member.distribution is not None:
            groups.setdefault(member.sequences, []).append(member)
    return max(groups.values(), key=len, default=[])


def _tasks(members: Sequence[Member], round_number: int, baseline: str) -> list[TaskResult]:
    of_baseline = {member.key[1]: member.run for member in members if member.config.method == baseline}
    pairs = {
        member.key: pair(member.run, of_baseline[member.key[1]], round_number)
        for member in members
        if member.config.method != baseline and member.key[1] in of_baseline
    }
    return task_results({member.key: member.tasks for member in members if member.tasks}, pairs, baseline)


def _curves(members: Sequence[Member], kind: str) -> Markup | None:
    """A line per run, by training tokens; several seeds of a method are thin lines under their mean."""
    lines: dict[str, list[tuple[str, list[tuple[float, float]]]]] = {}
    for member in members:
        lines.setdefault(member.config.method, []).append((member.run.name, getattr(member.curve, kind)))
    return lines_by_tokens(lines, styles_of(list(lines)), title="Held-out loss of the targets by training tokens")


def _task_charts(members: Sequence[Member], methods: Sequence[str]) -> list[tuple[str, Markup]]:
    """Curves of the tasks (of their average, where there are several) where models between the first and the last were evaluated."""
    tasks = list(dict.fromkeys(row.task for member in members for row in member.tasks))
    found = []
    for task in tasks[-1:]:  # the average, or the only one
        for metric in METRICS:
            lines: dict[str, list[tuple[str, list[tuple[float, float]]]]] = {method: [] for method in methods}
            for member in members:
                points = [(float(row.num_tokens or 0), row.value) for row in member.tasks if (row.task, row.metric) == (task, metric)]
                lines[member.config.method].append((member.run.name, sorted(points)))
            if max((len(points) for runs in lines.values() for _, points in runs), default=0) > 1:
                chart = lines_by_tokens(lines, styles_of(methods), title=f"{task}, {metric} by training tokens")
                found += [(f"{task}: {metric}", chart)] if chart is not None else []
    return found


def _examples(members: Sequence[Member]) -> list[Member]:
    """Runs whose scores are drawn: all of a few, else the first of each method."""
    scored = [member for member in members if member.distribution is not None]
    if len(scored) <= overlaps.MOST_RUNS:
        return scored
    return list({member.config.method: member for member in reversed(scored)}.values())[::-1]


def _histogram(member: Member) -> Markup:
    shown = member.distribution
    assert shown is not None
    threshold = member.counts["threshold"]
    title = f"Scores of {member.run.name}"
    return charts.histogram(shown.edges, shown.counts, shown.counts_selected, threshold, title=title, width=520, height=220)


def _summary(loss: MethodLoss) -> dict[str, Any]:
    return {name: value for name, value in vars(loss).items() if name != "differences"} | {
        "differences": {str(seed): value for seed, value in loss.differences.items()}
    }


def _plain(result: TaskResult) -> dict[str, Any]:
    return vars(result) | {"value": vars(result.value), "difference": vars(result.difference) if result.difference else None}


def _name(names: Sequence[str]) -> str:
    """A directory name for a comparison: the runs', or the first one's and a hash where they are too many."""
    together = "-vs-".join(names)
    if len(together) <= 80:
        return together
    return f"{names[0][:50]}-and-{len(names) - 1}-others-{hashlib.sha256(together.encode()).hexdigest()[:8]}"
