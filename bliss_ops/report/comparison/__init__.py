"""`bliss compare`: one page of several runs, their held-out losses, what they cost, their scores, and what each of them keeps.

Runs of one method with several seeds are told as a mean with its standard error; differences from the baseline are taken seed by seed,
because runs of one seed share their initial weights and differ by their data alone. Scores and selections are only held against each
other where the sequences are the same; what cannot be compared is said on the page.

    members.py   what is read of a run          findings.py  what is found about all of them, for page and summary
    losses.py    means, differences, verdicts   curves.py    loss by tokens, speed-up to the baseline's loss
    costs.py     what choosing costs            tasks.py     zero-shot results            overlap.py   who keeps what
    summary.py   a row per method, caveats      table.py     as Markdown                  lines.py, pictures.py   drawings
"""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup
from upath import UPath

from bliss_ops.lake import Lake, Run, write_bytes, write_json
from bliss_ops.manifest import find_manifest
from bliss_ops.report import page
from bliss_ops.report.comparison import overlap, pictures, table
from bliss_ops.report.comparison.findings import Findings
from bliss_ops.report.comparison.members import methods_of, read_member

BASELINE = "random"


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
        members = [read_member(number, run, round_number, Path(scratch)) for number, run in enumerate(runs, start=1)]
        if not any(member.result or member.distribution for member in members):
            raise ValueError(f"none of {', '.join(names)} has finished scores or an evaluation in round {round_number}: run them first")
        directory = output or lake.comparison(_name([run.name for run in runs]))
        found = Findings.of(members, round_number, baseline, missing or {})
        drawn, jaccard = overlap.overlap(found.together, round_number)
    write_bytes(directory / "index.html", _page(found, drawn, title).encode())
    write_json(directory / "summary.json", found.summary(jaccard))
    write_bytes(directory / "table.md", table.markdown(found.rows, baseline, found.caveats).encode())
    return directory / "index.html"


def _page(found: Findings, drawn_overlap: Markup | None, title: str | None) -> str:
    members, together, methods = found.members, found.together, methods_of(found.members)
    examples = pictures.examples(members)
    share = together[0].counts["num_selected"] / together[0].counts["num_candidates"] if together else 0.0
    return page.render(
        "comparison.html",
        **vars(found),
        title=title,
        methods=methods,
        unfair=found.unfair,
        recipes=list(dict.fromkeys(member.config.recipe for member in members)),
        curves=pictures.curves(members, found.kind),
        task_charts=pictures.task_charts(members, methods),
        spreads=[(member, pictures.histogram(member)) for member in examples],
        left_out=sum(member.distribution is not None for member in members) - len(examples),
        apart=[member for member in members if member.distribution is not None and member not in together],
        unscored=[member for member in members if member.distribution is None],
        in_full=len(together) <= overlap.MOST_RUNS,
        numbered=overlap.numbered(together)[0] if together else [],
        by_chance=overlap.by_chance(share),
        other_windows=any(member.config.num_rounds > 1 or member.config.window_shards for member in together)
        and len({member.config.seed for member in together}) > 1,
        kept=overlap.kept(together),
        overlap=drawn_overlap,
        correlation=overlap.correlation(together),
        with_error=table.with_error,
        flops=table.flops,
        seconds=table.seconds,
        memory=table.memory,
    )


def _round_of(runs: Sequence[Run]) -> int:
    """The last round that all have evaluated, else the last that any has."""
    finished = [
        {number for number in range(1, run.config.num_rounds + 1) if find_manifest(run.round(number) / "evaluation")} for run in runs
    ]
    return max(set.intersection(*finished) or set.union(*finished), default=1)


def _name(names: Sequence[str]) -> str:
    """A directory name for a comparison: the runs', or the first one's and a hash where they are too many."""
    together = "-vs-".join(names)
    if len(together) <= 80:
        return together
    return f"{names[0][:50]}-and-{len(names) - 1}-others-{hashlib.sha256(together.encode()).hexdigest()[:8]}"
