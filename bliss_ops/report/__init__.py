"""The report of a run: an HTML file per round that needs nothing else, and `summary.json` with the headline numbers of the last.

Asked of the run's own files (facts.py, curves.py), drawn as inline SVG (charts.py), laid out by template.html and style.css.
What is missing (a comparison that is not finished, a method without training curves) is said in one line where it would have been.
"""

import json
import tempfile
from typing import Any

from upath import UPath

from bliss_ops import gates
from bliss_ops.lake import Run, write_bytes, write_json
from bliss_ops.manifest import find_manifest
from bliss_ops.report import biases, changes, charts, fidelity, navigation, page, spending, tasks
from bliss_ops.report.curves import Compared, equal_steps, read_rows, read_run
from bliss_ops.report.documents import DocumentFacts
from bliss_ops.report.facts import Facts, Source
from bliss_ops.report.outer_loop import training_charts

MOST_SOURCES = 40
STAGES = ("selector", "scores", "fidelity", "selection", "subset", "pretrain", "evaluation")


def headline(run: Run) -> str:
    """Three lines for a terminal from the run's `summary.json`: what came out, how faithful the scores are, where the page is."""
    summary = json.loads((run.report / "summary.json").read_text())
    line = f"{run.name}: held-out loss {summary['validation_loss']:.3f} (perplexity {summary['perplexity']:.1f})"
    if summary["difference"] is not None:
        line += f", {abs(summary['difference']):.3f} {'below' if summary['difference'] < 0 else 'above'} {summary['compared_with']}"
    line += f"; {summary['num_selected']:,} of {summary['num_candidates']:,} sequences kept"
    return f"{line}\n  {fidelity.headline(summary['fidelity'])}\n  report {run.report / 'index.html'}\n"


def write(run: Run, round_number: int, directory: UPath) -> tuple[list[str], dict[str, Any]]:
    """Write a page for every finished round up to `round_number`, the last one as `index.html` too, and `summary.json` about that.

    The page of an earlier round whose artifacts have been deleted since stays as it is.

    Returns:
        The files of the report and the summary.

    Raises:
        ValueError: a round has no finished scores or selection.
    """
    made = navigation.pages_made(directory)
    rounds = navigation.rounds_shown(run, round_number, made)
    pages = {navigation.page_of(number): navigation.made_from(run, number) for number in rounds}
    for number, page_name in zip(rounds, pages, strict=True):
        path = directory / page_name
        stays = number < round_number and (made.get(page_name) == pages[page_name] or not navigation.is_whole(run, number))
        if not (stays and navigation.link_again(path, number, rounds)):
            html, summary = _page(run, number, rounds=rounds)
            write_bytes(path, html.encode())
    write_bytes(directory / navigation.INDEX, html.encode())
    write_json(directory / "summary.json", summary | {"pages": pages})
    return [*pages, navigation.INDEX, "summary.json"], summary | {"pages": pages}


def _page(run: Run, round_number: int, *, rounds: list[int]) -> tuple[str, dict[str, Any]]:
    """A round's page and its headline numbers."""
    config = run.config
    ours = read_run(run, round_number)
    others = [read_run(run.lake.run(name), round_number) for name in config.compare_with]
    with tempfile.TemporaryDirectory(prefix="bliss-report-") as scratch, Facts(run, round_number, scratch) as facts:
        distribution, sources, counts = facts.distribution(), facts.sources(), facts.counts
        texts = _texts(facts, counts["threshold"]) if config.method != "random" else None
        changed = changes.since_the_round_before(run, round_number, facts, sources)
        overlap = changes.overlap_chart(facts.con, [run, *(other.run for other in others)], round_number)
        faithful, bias = fidelity.read(run, round_number, facts), biases.measure(facts, distribution)
    cautions = bias.warnings(config.method, faithful.summary)
    spent, asked = spending.read(run, round_number), tasks.read(run, round_number)
    outer = read_rows(run.round(round_number) / "selector" / "metrics.jsonl")
    summary = _summary(run, round_number, ours, others, counts) | {
        "score_mean": distribution.mean,
        "score_standard_deviation": distribution.standard_deviation,
        "num_distinct_scores": distribution.num_distinct,
        "share_tied": distribution.num_tied / distribution.num_sequences,
        "warning": distribution.warning,
        "fidelity": faithful.summary,
        "cautions": [f"{what} {advice}" for what, advice in cautions],
        "flops": spent.flops,
        "seconds": spent.seconds,
        "selection_flops": spent.selection_flops,
        "selection_seconds": spent.selection_seconds,
        "tasks": asked.summary,
        **bias.summary,
    }
    limits = charts.padded([value for source in sources for value in (*source.quantiles, source.mean)], 0.03)
    threshold = counts["threshold"]
    html = page.render(
        "template.html",
        run=run,
        config=config,
        round_number=round_number,
        summary=summary,
        counts=counts,
        distribution=distribution,
        digits=charts.digits_for(distribution.standard_deviation),
        histogram=charts.histogram(
            distribution.edges, distribution.counts, distribution.counts_selected, threshold, title="How many sequences have which score"
        ),
        sources=sources[:MOST_SOURCES],
        num_sources=len(sources),
        strips={source.name: charts.strip(source.quantiles, source.mean, limits, threshold) for source in sources[:MOST_SOURCES]},
        largest_share=_largest_share(sources),
        fidelity=faithful,
        bias=bias,
        cautions=cautions,
        training=training_charts(outer),
        num_outer_steps=len(outer),
        race=_race_chart(ours, others),
        race_tables=[(other, _milestones(equal_steps(ours, other, round_number))) for other in others],
        unfair={other.run.name: other.differences_from(config) for other in others},
        ours=ours,
        others=others,
        texts=texts,
        changes=changed,
        overlap=overlap,
        settings=page.settings(config),
        spent=spent,
        tasks=asked,
        verdicts=gates.read_report(run.corpus.gates) + gates.read_report(run.round(round_number) / "check_round"),
        links=navigation.links(round_number, rounds),
        provenance=_provenance(run, round_number),
    )
    return html, summary


def _texts(facts: Facts, threshold: float | None) -> dict[str, Any]:
    """Everything of the page that is about documents and their texts."""
    documents = DocumentFacts(facts)
    best, worst = documents.extremes()
    chosen, rest = documents.sides()
    lengths = charts.bands(documents.lengths(), threshold, title="Score by length of the document", x_label="tokens of the document")
    return {
        "best": best,
        "worst": worst,
        "chosen": chosen,
        "rest": rest,
        "deciles": documents.deciles(),
        "domains": documents.leaderboard(),
        "lengths": lengths,
    }


def _summary(run: Run, round_number: int, ours: Compared, others: list[Compared], counts: dict[str, Any]) -> dict[str, Any]:
    """The headline numbers; what is not measured yet is None."""
    result = ours.results.get(round_number)
    baseline = next((other for other in others if other.config and other.config.method == "random"), others[0] if others else None)
    theirs = baseline.results.get(round_number) if baseline else None
    pairs = equal_steps(ours, baseline, round_number) if baseline else []
    return {
        "run": run.name,
        "round": round_number,
        "method": run.config.method,
        "seed": run.config.seed,
        "num_candidates": counts["num_candidates"],
        "num_selected": counts["num_selected"],
        "num_tokens": counts["num_tokens"],
        "threshold": counts["threshold"],
        "share_of_ties_kept": counts["num_ties_kept"] / max(counts["num_ties_at_threshold"], 1),
        "validation_loss": result.loss if result else None,
        "validation_loss_standard_error": result.standard_error if result else None,
        "validation_losses": result.loss_of_set if result else {},
        "perplexity": result.perplexity if result else None,
        "compared_with": baseline.run.name if baseline else None,
        "compared_validation_loss": theirs.loss if theirs else None,
        "compared_perplexity": theirs.perplexity if theirs else None,
        "difference": result.loss - theirs.loss if result and theirs else None,
        "equal_steps": pairs[-1][0] if pairs else None,
        "difference_at_equal_steps": pairs[-1][1] - pairs[-1][2] if pairs else None,
    }


def _race_chart(ours: Compared, others: list[Compared]) -> Any:
    """Validation loss of the target over its optimizer steps, this run and those beside it; a line per round."""
    series = [
        charts.Series(compared.run.name, pieces, style, markers=True)
        for compared, style in zip([ours, *others], ("first", "second", "third", "fourth", "fifth"), strict=False)
        if (pieces := [curve for _, curve in sorted(compared.curves.items()) if curve])
    ]
    if not series:
        return None
    return charts.line_chart(series, title="Validation loss of the target", x_label="optimizer step", width=1080, height=320, right=170)


def _milestones(pairs: list[tuple[float, float, float]], most: int = 6) -> list[tuple[float, float, float]]:
    """A few evenly spaced rows of the comparison, the last one always."""
    if len(pairs) <= most:
        return pairs
    return [pairs[round(k * (len(pairs) - 1) / (most - 1))] for k in range(most)]


def _largest_share(sources: list[Source]) -> float:
    """The longest bar of the composition: every bar is drawn relative to it."""
    pool, subset = (sum(getattr(source, name) for source in sources) or 1 for name in ("num_sequences", "num_selected"))
    return max(max(source.num_sequences / pool, source.num_selected / subset) for source in sources)


def _provenance(run: Run, round_number: int) -> dict[str, Any]:
    """Fingerprints of everything the round is made of, and what made it."""
    places = [run.corpus.documents, run.corpus.sequences, run.corpus.validation, run.warmup]
    places += [run.round(round_number) / name for name in STAGES]
    manifests = [manifest for place in places if (manifest := find_manifest(place))]
    return {"manifests": manifests, "last": manifests[-1]}
