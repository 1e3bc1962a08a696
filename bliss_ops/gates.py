"""Data-quality gates: is this corpus good enough to be announced, this round to be selected from, this target to go on with?

A gate holds one number of finished manifests against one bound of the settings. Nothing is computed here and no data is read, so a check
takes milliseconds and runs in Airflow itself. All verdicts are written to `report.json`, also where one fails; then the stage ends with an
error that has the number, the bound, the setting, and the two ways out: mend what was measured, or move the bound.
"""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from upath import UPath

from bliss_ops import selection
from bliss_ops.config import CorpusGatesConfig, GatesConfig, RunConfig
from bliss_ops.lake import Corpus, Run, remove, write_json
from bliss_ops.manifest import Manifest, find_manifest, read_manifest
from bliss_ops.sharding import Metrics

REPORT = "report.json"
CORPUS_SECTION, ROUND_SECTION = "ingest.gates", "gates"


class GateFailed(ValueError):  # noqa: N818 - what happened, as the log shows it
    """A gate failed: the same check fails again until the data or the bound has changed."""


@dataclass(frozen=True)
class Verdict:
    """What one gate found. `value` is None where nothing was measured: by a former version, or because there is nothing to measure."""

    gate: str
    passed: bool
    value: float | None
    bound: float | None
    setting: str
    says: str  # the number and what it is a number of
    remedy: str = ""  # how to mend what was measured

    def line(self) -> str:
        if self.value is None:
            return f"{self.gate}: {self.says}"
        if self.bound is None:
            return f"{self.gate}: {self.says}; no bound is set ({self.setting})"
        return f"{self.gate}: {self.says}; {self.setting} is {_shown(self.bound)}"


def check_corpus(corpus: Corpus, directory: UPath) -> tuple[list[str], Metrics]:
    """The artifact `check_corpus`.

    Raises:
        GateFailed: a gate failed.
    """
    again = f"bliss check-corpus {corpus.name}"
    return _conclude(directory, corpus_verdicts(corpus), f"corpus {corpus.name}", f"bliss gates {corpus.name} --corpus", again)


def check_round(run: Run, round_number: int, directory: UPath) -> tuple[list[str], Metrics]:
    """The artifact `check_round`: the scores, before anything is selected from them.

    Raises:
        GateFailed: a gate failed.
    """
    again = f"bliss check-round {run.name} --round {round_number}"
    return _conclude(directory, round_verdicts(run, round_number), f"{run.name} round {round_number}", f"bliss gates {run.name}", again)


def check_target(run: Run, round_number: int, directory: UPath) -> tuple[list[str], Metrics]:
    """The artifact `check_target`: the trained target, before the next round goes on from it.

    Raises:
        GateFailed: a gate failed.
    """
    again = f"bliss check-target {run.name} --round {round_number}"
    return _conclude(directory, target_verdicts(run, round_number), f"{run.name} round {round_number}", f"bliss gates {run.name}", again)


def corpus_verdicts(corpus: Corpus) -> list[Verdict]:
    """The gates of a corpus."""
    bounds = corpus.config.gates
    documents = read_manifest(corpus.documents, made_by=f"bliss extract {corpus.name}").metrics
    packed = read_manifest(corpus.sequences, made_by=f"bliss pack {corpus.name}")
    sequences = packed.metrics
    num_documents, num_rejects = documents.get("num_documents", 0), documents.get("num_rejects", 0)
    num_sequences = sequences.get("num_sequences", 0)
    reasons = sorted(((count, name.removeprefix("rejected: ")) for name, count in documents.items() if "rejected: " in name), reverse=True)
    why = f" ({', '.join(f'{count:,} {reason}' for count, reason in reasons[:3])})" if reasons else ""
    make_again = f"mend the source, delete {corpus.path} and ingest it again"
    files = _source_files(corpus)
    checksums = [file["checksum"] for file in files if file.get("checksum") and file.get("bytes")]
    return [
        _at_least(bounds, "min_documents", "documents", num_documents, f"{num_documents:,} documents were accepted", "ingest more text"),
        _at_least(
            bounds,
            "min_sequences",
            "sequences",
            num_sequences,
            f"{num_sequences:,} sequences were packed",
            "ingest more text, or set a smaller ingest.sequence_length for a corpus of another name",
        ),
        _share(
            bounds,
            "max_rejected_share",
            "rejected lines",
            num_rejects,
            num_rejects + num_documents,
            f"lines were rejected{why}",
            make_again,
        ),
        _share(
            bounds,
            "max_empty_shards_share",
            "empty shards",
            sequences.get("num_empty_shards"),
            len(packed.shards),
            "shards fill no sequence",
            make_again,
        ),
        _share(
            bounds,
            "max_duplicate_files_share",
            "duplicate files",
            len(checksums) - len(set(checksums)),
            len(checksums),
            "source files have the content of another one",
            make_again,
        ),
    ]


def round_verdicts(run: Run, round_number: int) -> list[Verdict]:
    """The gates between the scores of a round and its selection."""
    bounds, here = run.config.gates, run.round(round_number)
    scores = read_manifest(here / "scores", made_by=f"bliss score {run.name} --round {round_number}").metrics
    fit_again = f"look at the curves of the fit, change its settings, delete {here} and run the round again"
    return [
        *_score_verdicts(bounds, scores, fit_again),
        *_drift_verdicts(bounds, scores, find_manifest(run.round(round_number - 1) / "scores"), fit_again),
        _contamination_verdict(bounds, find_manifest(here / "contamination")),
        _selection_verdict(run.config, scores, find_manifest(here / "contamination")),
        _loss_verdict(bounds, "loss of the fit", *_fit_losses(here / "selector"), fit_again),
    ]


def target_verdicts(run: Run, round_number: int) -> list[Verdict]:
    """The gate on the target's validation loss, against the former round's or, in the first, the first that was measured in training."""
    here = run.round(round_number)
    after = read_manifest(here / "evaluation", made_by=f"bliss evaluate {run.name} --round {round_number}").metrics.get("validation_loss")
    former = find_manifest(run.round(round_number - 1) / "evaluation")
    if former is not None:
        before = former.metrics.get("validation_loss")
    else:
        before = next(iter(_losses(here / "pretrain" / "metrics.jsonl")), None)
    remedy = f"lower pretraining.learning_rate or look at what was selected; delete {here / 'pretrain'} and what follows, and run it again"
    return [_loss_verdict(run.config.gates, "loss of the target", before, after, remedy)]


def read_report(directory: UPath) -> list[Verdict]:
    """The verdicts that a check wrote last, also of one that failed; none where nothing was checked."""
    try:
        return [Verdict(**values) for values in json.loads((directory / REPORT).read_bytes())["verdicts"]]
    except FileNotFoundError:
        return []


def has_failed(directory: UPath) -> bool:
    """Whether the last check there failed."""
    return any(not verdict.passed for verdict in read_report(directory))


def _conclude(directory: UPath, verdicts: list[Verdict], what: str, move: str, again: str) -> tuple[list[str], Metrics]:
    failed = [verdict for verdict in verdicts if not verdict.passed]
    # Without the remedies: they name paths, and an artifact's bytes are the same wherever its lake is.
    of_report = [{name: value for name, value in asdict(verdict).items() if name != "remedy"} for verdict in verdicts]
    write_json(directory / REPORT, {"passed": not failed, "of": what, "verdicts": of_report})
    if not failed:
        return [REPORT], {"num_gates": len(verdicts), "num_measured": sum(verdict.value is not None for verdict in verdicts)}
    remove(directory / "manifest.json")  # of a check that passed with other bounds
    lines = [f"{what}: {len(failed)} of {len(verdicts)} gates failed"]
    for verdict in failed:
        field = verdict.setting.rpartition(".")[2]
        assert verdict.bound is not None
        value = _bound_that_passes(field, verdict.value)
        lines += [
            f"  {verdict.line()}",
            f"    either {verdict.remedy};",
            f"    or, if it is meant to be so, move the bound: `{move} --set {field}{value}`, then `{again}` or clear this task"
            if value
            else "    no bound lets this through",
        ]
    raise GateFailed("\n".join(lines))


def _score_verdicts(bounds: GatesConfig, scores: Metrics, remedy: str) -> list[Verdict]:
    """Do the scores tell sequences apart?"""
    count, mean, deviation = scores["num_sequences"], scores.get("mean"), scores.get("standard_deviation")
    spread = None if mean is None or deviation is None else deviation / max(1.0, abs(mean))
    low, high = scores.get("minimum"), scores.get("maximum")
    is_bounded = low is not None and high is not None and low >= 0 and high <= 1
    if spread is None:
        said = "the spread of the scores is not in their record"
    else:
        said = f"the scores have a standard deviation of {deviation:.4g} around {mean:.4g} ({_shown(spread)})"
    return [
        _at_least(bounds, "min_score_spread", "score spread", spread, said, remedy),
        _share(
            bounds,
            "max_identical_share",
            "identical scores",
            scores.get("num_identical"),
            count,
            "candidates have one and the same score",
            remedy,
        ),
        _share(
            bounds,
            "max_saturated_share",
            "saturated scores",
            scores.get("num_at_ends") if is_bounded else None,
            count,
            "scores are at 0 or 1",
            remedy,
            unknown="scores that are not from 0 to 1 do not saturate" if low is not None else "",
        ),
    ]


def _drift_verdicts(bounds: GatesConfig, scores: Metrics, former: Manifest | None, remedy: str) -> list[Verdict]:
    """Are they like those of the round before? Their scale is, where their place need not be: a constant added to all changes nothing."""
    before = former.metrics if former else {}
    factor = shift = None
    if min(scores.get("standard_deviation", 0), before.get("standard_deviation", 0)) > 0:
        ratio = scores["standard_deviation"] / before["standard_deviation"]
        factor = max(ratio, 1 / ratio)
        shift = abs(scores["mean"] - before["mean"]) / before["standard_deviation"]
    nothing = "there is no former round" if former is None else "the spread of one of the two rounds is not known, or is zero"
    return [
        _at_most(
            bounds,
            "max_spread_change",
            "score drift, spread",
            factor,
            nothing
            if factor is None
            else f"the standard deviation of the scores changed by a factor of {factor:.4g} since the former round",
            remedy,
        ),
        _at_most(
            bounds,
            "max_mean_shift",
            "score drift, mean",
            shift,
            nothing if shift is None else f"the mean of the scores moved by {shift:.4g} of the former round's standard deviations",
            remedy,
        ),
    ]


def _contamination_verdict(bounds: GatesConfig, contamination: Manifest | None) -> Verdict:
    is_measured = contamination is not None and bool(contamination.shards)
    metrics = contamination.metrics if contamination is not None else {}
    return _share(
        bounds,
        "max_contaminated_share",
        "contamination",
        metrics.get("num_contaminated") if is_measured else None,
        metrics.get("num_sequences", 0),
        "candidates share text with the tasks",
        "take the tasks' text out of the corpus; evaluation.exclude_contaminated=true keeps it out of the selection",
        unknown="there are no tasks to share text with",
    )


def _selection_verdict(config: RunConfig, scores: Metrics, contamination: Manifest | None) -> Verdict:
    """What is going to be selected, by the same rule that selects it."""
    batch = config.pretraining.batch_sequences
    bounds = (
        config.gates
        if config.gates.min_selected_sequences is not None
        else config.gates.model_copy(update={"min_selected_sequences": batch})
    )
    keep = selection.num_to_keep(config, scores["num_sequences"])
    if config.evaluation.exclude_contaminated and contamination is not None:
        keep = min(keep, scores["num_sequences"] - contamination.metrics["num_contaminated"])
    said = f"{keep:,} of {scores['num_sequences']:,} candidates are going to be selected"
    return _at_least(bounds, "min_selected_sequences", "selection size", keep, said, "select more, or ingest more text")


def _loss_verdict(bounds: GatesConfig, gate: str, before: float | None, after: float | None, remedy: str) -> Verdict:
    setting = f"{ROUND_SECTION}.max_loss_increase"
    if after is None:
        return Verdict(gate, True, None, bounds.max_loss_increase, setting, "no validation loss was measured")
    if not math.isfinite(after):
        return Verdict(gate, False, after, bounds.max_loss_increase, setting, f"the validation loss is {after}", remedy)
    if before is None or not math.isfinite(before):
        return Verdict(
            gate, True, None, bounds.max_loss_increase, setting, f"the validation loss is {after:.4g}; there is none to compare it with"
        )
    rise = after - before
    said = f"the validation loss went from {before:.4g} to {after:.4g} ({rise:+.4g})"
    return Verdict(gate, rise <= bounds.max_loss_increase, rise, bounds.max_loss_increase, setting, said, remedy)


def _fit_losses(selector: UPath) -> tuple[float | None, float | None]:
    """The validation loss at the beginning and at the end of a fit that measures one."""
    losses = _losses(selector / "metrics.jsonl")
    return (losses[0], losses[-1]) if losses else (None, None)


def _losses(path: UPath) -> list[float]:
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    except FileNotFoundError:
        return []
    return [row["validation_loss"] for row in rows if "validation_loss" in row]


def _source_files(corpus: Corpus) -> list[dict[str, Any]]:
    try:
        files: list[dict[str, Any]] = json.loads((corpus.source / "shards.json").read_bytes())
    except FileNotFoundError:
        return []
    return files


def _at_least(bounds: GatesConfig | CorpusGatesConfig, field: str, gate: str, value: float | None, says: str, remedy: str) -> Verdict:
    bound = getattr(bounds, field)
    return Verdict(gate, value is None or bound is None or value >= bound, value, bound, _setting(bounds, field), says, remedy)


def _at_most(bounds: GatesConfig | CorpusGatesConfig, field: str, gate: str, value: float | None, says: str, remedy: str) -> Verdict:
    bound = getattr(bounds, field)
    return Verdict(gate, value is None or bound is None or value <= bound, value, bound, _setting(bounds, field), says, remedy)


def _share(
    bounds: GatesConfig | CorpusGatesConfig,
    field: str,
    gate: str,
    count: int | None,
    total: int,
    of: str,
    remedy: str,
    *,
    unknown: str = "",
) -> Verdict:
    """`count` of `total` things are bad."""
    share = None if count is None or not total else count / total
    says = (unknown or f"it was not counted how many {of}") if share is None else f"{count:,} of {total:,} {of} ({share:.2%})"
    return _at_most(bounds, field, gate, share, says, remedy)


def _setting(bounds: GatesConfig | CorpusGatesConfig, field: str) -> str:
    return f"{CORPUS_SECTION if isinstance(bounds, CorpusGatesConfig) else ROUND_SECTION}.{field}"


def _bound_that_passes(field: str, value: float | None) -> str:
    """`=0.6667` for 2/3: four digits, rounded to the side that lets the value through; nothing for what no bound lets through."""
    if value is None or not math.isfinite(value):
        return ""
    if isinstance(value, int):
        return f"={value}"
    digits = 3 - (math.floor(math.log10(abs(value))) if value else 0)
    rounded = (math.ceil if field.startswith("max_") else math.floor)(value * 10.0**digits) / 10.0**digits
    return f"={rounded:.4g}"


def _shown(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
