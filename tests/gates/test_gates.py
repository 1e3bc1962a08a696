"""The gates over a small finished lake: what is bad goes red with its number, and passes when the data or the bound has changed."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bliss_ops import cli, gates, pipeline, report, scoring
from bliss_ops.config import IngestConfig, Recipe, RunConfig, identity
from bliss_ops.configure import configure_corpus, move_bounds
from bliss_ops.gates import GateFailed
from bliss_ops.lake import Lake, Run, write_bytes, write_json
from bliss_ops.landing import is_ingested
from bliss_ops.manifest import find_manifest
from bliss_ops.sharding import ROWS_PER_SHARD
from tests.lakes import make_corpus, make_run, produce

NUM_SEQUENCES = 30


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return make_corpus(tmp_path / "lake", num_sequences=NUM_SEQUENCES)


@pytest.fixture
def run(lake: Lake) -> Run:
    """Two rounds with scores as the scoring stage writes them, an empty contamination check, and evaluations."""
    made = make_run(lake, num_rounds=2)
    for number in (1, 2):
        write_scores(made, number, np.random.default_rng(number).normal(size=(2, NUM_SEQUENCES)))
        produce(lake, made.round(number) / "contamination", "check_contamination", lambda _: ([], {}))
        evaluate(made, number, 4.0 - number)
    return lake.run(set_gates(made, min_selected_sequences=1).name)


def set_gates(run: Run, **bounds: Any) -> Run:
    move_bounds(run, bounds)
    return run.lake.run(run.name)


def write_scores(run: Run, round_number: int, score_SN: np.ndarray) -> None:
    """Scores of S shards by the real writer, with its statistics."""
    directory = run.round(round_number) / "scores"

    def make(_: Any) -> tuple[list[str], dict[str, Any]]:
        records = [
            scoring.write_shard(directory, shard, shard * ROWS_PER_SHARD + np.arange(len(score_N)), score_N.astype(np.float32))
            for shard, score_N in enumerate(score_SN)
        ]
        return [output.path for record in records for output in record.outputs], scoring.check(records)

    produce(run.lake, directory, "score", make, shards=(0, 1))


def evaluate(run: Run, round_number: int, loss: float) -> None:
    def make(directory: Any) -> tuple[list[str], dict[str, Any]]:
        write_json(directory / "results.json", {"loss": loss})
        return ["results.json"], {"validation_loss": loss}

    produce(run.lake, run.round(round_number) / "evaluation", "evaluate", make)


def contaminate(run: Run, num_contaminated: int) -> None:
    def make(directory: Any) -> tuple[list[str], dict[str, Any]]:
        write_json(directory / "ids.json", num_contaminated)
        return ["ids.json"], {"num_sequences": 2 * NUM_SEQUENCES, "num_contaminated": num_contaminated, "by_task": {}}

    produce(run.lake, run.round(1) / "contamination", "check_contamination", make, shards=(0, 1))


def failure(run: Run, round_number: int = 1, check: Any = pipeline.check_round) -> str:
    with pytest.raises(GateFailed) as failed:
        check(run, round_number)
    return str(failed.value)


def verdict(run: Run, gate: str, round_number: int = 1) -> gates.Verdict:
    (found,) = [one for one in gates.round_verdicts(run, round_number) if one.gate == gate]
    return found


def test_a_good_round_passes_and_says_what_was_measured(run: Run) -> None:
    manifest = pipeline.check_round(run, 2)
    report = json.loads((run.round(2) / "check_round" / "report.json").read_text())
    assert report["passed"]
    assert manifest.metrics == {"num_gates": 8, "num_measured": 6}, "no tasks, and unbounded scores do not saturate"
    assert [one.gate for one in gates.read_report(run.round(2) / "check_round")] == [one["gate"] for one in report["verdicts"]]
    assert pipeline.check_round(run, 2) == manifest, "a second time there is nothing to do"


def test_constant_scores_are_red_with_number_bound_setting_and_both_ways_out(run: Run) -> None:
    write_scores(run, 1, np.full((2, NUM_SEQUENCES), 0.25))
    said = failure(run)
    assert "2 of 8 gates failed" in said
    assert "standard deviation of 0 around 0.25" in said
    assert "gates.min_score_spread is 1e-06" in said
    assert "60 of 60 candidates have one and the same score (100.00%); gates.max_identical_share is 0.5" in said
    assert f"delete {run.round(1)}" in said
    assert f"`bliss gates {run.name} --set max_identical_share=1`, then `bliss check-round {run.name} --round 1`" in said
    assert find_manifest(run.round(1) / "check_round") is None
    assert not json.loads((run.round(1) / "check_round" / "report.json").read_text())["passed"]


def test_a_moved_bound_passes_at_the_next_try_and_the_old_one_fails_again(run: Run) -> None:
    half = np.random.default_rng(0).normal(size=(2, NUM_SEQUENCES))
    half[0, :20] = half[1, :21] = 0.5
    write_scores(run, 1, half)  # 41 of 60: 0.68333...
    (share,) = re.findall(r"--set max_identical_share=([\d.]+)", failure(run))
    moved = set_gates(run, max_identical_share=float(share))
    pipeline.check_round(moved, 1)
    assert find_manifest(run.round(1) / "check_round") is not None
    back = set_gates(moved, max_identical_share=0.5)
    failure(back)
    assert find_manifest(run.round(1) / "check_round") is None, "a check that passed with another bound does not count"


def test_identical_scores_are_counted_over_shards_and_as_the_share_they_are(run: Run) -> None:
    score_SN = np.arange(2.0 * NUM_SEQUENCES).reshape(2, -1)
    score_SN[0, :10] = score_SN[1, :5] = -1.0
    write_scores(run, 1, score_SN)
    assert verdict(run, "identical scores").value == 15 / 60


def test_saturation_counts_only_where_scores_are_from_0_to_1(run: Run) -> None:
    ends = np.linspace(0.2, 0.8, 2 * NUM_SEQUENCES).reshape(2, -1)
    ends[0] = 1 - np.linspace(1e-8, 5e-7, NUM_SEQUENCES)
    write_scores(run, 1, ends)
    assert verdict(run, "saturated scores").value == 0.5
    write_scores(run, 1, ends + 1)
    assert verdict(run, "saturated scores").value is None


def test_drift_is_a_changed_scale_and_a_moved_mean_only_where_that_is_asked_for(run: Run) -> None:
    write_scores(run, 2, 1000 * np.random.default_rng(1).normal(size=(2, NUM_SEQUENCES)))
    assert "changed by a factor of 1000 since the former round; gates.max_spread_change is 100" in failure(run, 2)
    write_scores(run, 2, 50 + np.random.default_rng(1).normal(size=(2, NUM_SEQUENCES)))
    pipeline.check_round(run, 2)
    assert "the mean of the scores moved by" in failure(set_gates(run, max_mean_shift=10), 2)


def test_contamination(run: Run) -> None:
    contaminate(run, 12)
    assert "12 of 60 candidates share text with the tasks (20.00%); gates.max_contaminated_share is 0.1" in failure(run)
    contaminate(run, 3)
    pipeline.check_round(run, 1)


def test_too_small_a_selection(run: Run) -> None:
    said = failure(set_gates(run, min_selected_sequences=None))
    batch = run.config.pretraining.batch_sequences
    assert f"12 of 60 candidates are going to be selected; gates.min_selected_sequences is {batch}" in said, "one batch of pretraining"


@pytest.mark.parametrize(("last", "fails"), [(4.9, False), (5.2, True), (float("nan"), True), (float("inf"), True)])
def test_the_loss_of_the_fit(run: Run, last: float, fails: bool) -> None:
    rows = [{"step": 1, "validation_loss": 4.0}, {"step": 2, "score_std": 1.0}, {"step": 3, "validation_loss": last}]
    write_bytes(run.round(1) / "selector" / "metrics.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    assert verdict(run, "loss of the fit").passed != fails


def test_no_bound_is_offered_for_a_loss_that_is_not_a_number(run: Run) -> None:
    evaluate(run, 2, float("nan"))
    said = failure(run, 2, pipeline.check_target)
    assert "the validation loss is nan" in said
    assert "--set" not in said


@pytest.mark.parametrize(("loss", "fails"), [(3.5, False), (4.1, True), (float("nan"), True)])
def test_the_next_round_does_not_go_on_from_a_worse_target(run: Run, loss: float, fails: bool) -> None:
    evaluate(run, 2, loss)  # the first round's is 3.0
    if fails:
        assert "loss of the target" in failure(run, 2, pipeline.check_target)
    else:
        pipeline.check_target(run, 2)


def test_the_first_target_is_held_against_its_own_beginning(run: Run) -> None:
    """`make_run` wrote losses that begin at 6.0."""
    evaluate(run, 1, 6.5)
    pipeline.check_target(run, 1)
    evaluate(run, 1, 7.5)
    assert "went from 6 to 7.5" in failure(run, 1, pipeline.check_target)


def test_scores_of_a_former_version_are_checked_for_what_they_have(run: Run) -> None:
    """Their records have count, mean and deviation, or the count alone."""

    def bare(directory: Any) -> tuple[list[str], dict[str, Any]]:
        return [f"shard-{shard:05d}.parquet" for shard in (0, 1)], {"num_sequences": 60}

    produce(run.lake, run.round(1) / "scores", "score", bare, shards=(0, 1))
    assert pipeline.check_round(run, 1).metrics["num_measured"] == 2
    assert pipeline.check_round(run, 2)


def test_shards_of_two_versions_leave_out_what_one_did_not_count(run: Run) -> None:
    directory = run.round(1) / "scores"
    records = [scoring.write_shard(directory, shard, np.arange(3), np.arange(3, dtype=np.float32)) for shard in (0, 1)]
    del records[0].metrics["most_common"]
    assert set(scoring.check(records)) == {"num_sequences", "mean", "standard_deviation"}


def test_gates_change_no_fingerprint() -> None:
    plain, strict = (RunConfig(name="a", recipe="demo", method="bliss", gates=gates) for gates in ({}, {"max_identical_share": 0.1}))
    assert identity(plain) == identity(strict)
    assert identity(IngestConfig()) == identity(IngestConfig(gates={"min_documents": 10}))


@pytest.fixture
def corpus_lake(lake: Lake) -> Lake:
    """With what the extract and pack stages count, and a listing."""
    corpus = lake.corpus("tiny")
    list_files(lake, ["a", "b", "c", "d"])
    count(lake, num_documents=900, num_rejects=100)

    def validation(_: Any) -> tuple[list[str], dict[str, Any]]:
        return [], {}

    produce(lake, corpus.validation, "prepare_validation", validation)
    return lake


def list_files(lake: Lake, checksums: list[str]) -> None:
    def listing(directory: Any) -> tuple[list[str], dict[str, Any]]:
        files = [{"shard": i, "uri": f"s3://b/{i}.gz", "bytes": 9, "checksum": checksum} for i, checksum in enumerate(checksums)]
        write_json(directory / "shards.json", files)
        return ["shards.json"], {"num_shards": len(files)}

    produce(lake, lake.corpus("tiny").source, "discover", listing)


def count(lake: Lake, **metrics: int) -> None:
    def documents(_: Any) -> tuple[list[str], dict[str, Any]]:
        return [], {"rejected: not JSON": metrics["num_rejects"], **metrics}

    produce(lake, lake.corpus("tiny").documents, "extract", documents)


def corpus_failure(lake: Lake) -> str:
    with pytest.raises(GateFailed) as failed:
        pipeline.check_corpus(lake.corpus("tiny"))
    return str(failed.value)


def test_a_good_corpus_passes(corpus_lake: Lake) -> None:
    manifest = pipeline.check_corpus(corpus_lake.corpus("tiny"))
    assert manifest.metrics == {"num_gates": 5, "num_measured": 4}, "who packed this corpus did not count empty shards"


def test_a_corpus_of_rejects_is_red_with_the_reasons(corpus_lake: Lake) -> None:
    count(corpus_lake, num_documents=100, num_rejects=900)
    said = corpus_failure(corpus_lake)
    assert "900 of 1,000 lines were rejected (900 not JSON) (90.00%); ingest.gates.max_rejected_share is 0.5" in said
    assert "`bliss gates tiny --corpus --set max_rejected_share=0.9`, then `bliss check-corpus tiny`" in said
    move_bounds(corpus_lake.corpus("tiny"), {"max_rejected_share": 0.9})
    pipeline.check_corpus(corpus_lake.corpus("tiny"))


def test_the_same_file_twice_is_red(corpus_lake: Lake) -> None:
    list_files(corpus_lake, ["a", "b", "a", "c"])
    assert "1 of 4 source files have the content of another one (25.00%)" in corpus_failure(corpus_lake)


def test_a_refused_corpus_does_not_count_as_ingested(corpus_lake: Lake) -> None:
    corpus = corpus_lake.corpus("tiny")
    assert is_ingested(corpus), "never checked: ingested by a former version"
    list_files(corpus_lake, ["a", "b", "a", "c"])
    corpus_failure(corpus_lake)
    assert not is_ingested(corpus)
    list_files(corpus_lake, ["a", "b", "c", "d"])
    pipeline.check_corpus(corpus)
    assert is_ingested(corpus)


def test_the_report_shows_what_the_gates_said(run: Run) -> None:
    pipeline.check_round(run, 2)
    report.write(run, 2, run.report)
    page = (run.report / "index.html").read_text()
    assert "What the gates said" in page
    assert "gates.max_spread_change = 100" in page


def test_too_small_a_corpus_is_red(corpus_lake: Lake) -> None:
    move_bounds(corpus_lake.corpus("tiny"), {"min_documents": 1000, "min_sequences": 100})
    said = corpus_failure(corpus_lake)
    assert "900 documents were accepted; ingest.gates.min_documents is 1,000" in said
    assert "60 sequences were packed; ingest.gates.min_sequences is 100" in said


def test_a_moved_bound_stays_when_the_corpus_is_configured_again(tmp_path: Path) -> None:
    lake, recipe = Lake.open(tmp_path / "lake"), Recipe()
    corpus = configure_corpus(lake, recipe)
    move_bounds(corpus, {"min_documents": 7})
    configure_corpus(lake, recipe)
    assert lake.corpus(corpus.name).config.gates.min_documents == 7
    asked = recipe.model_copy(update={"ingest": IngestConfig(gates={"min_documents": 3})})
    configure_corpus(lake, asked)
    assert lake.corpus(corpus.name).config.gates.min_documents == 3, "who asks for one gets it"


def test_the_command_shows_verdicts_and_moves_bounds(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    write_scores(run, 1, np.full((2, NUM_SEQUENCES), 0.25))
    lake = f"--lake={run.lake.root}"
    assert cli.main(["gates", run.name, lake, "--round", "1"]) == 0
    assert "not checked yet" in capsys.readouterr().out
    assert cli.main(["check-round", run.name, lake, "--round", "1"]) == 1
    assert "2 of 8 gates failed" in capsys.readouterr().err
    assert cli.main(["gates", run.name, lake]) == 1
    assert "FAILED identical scores" in capsys.readouterr().out
    assert cli.main(["gates", run.name, lake, "--set", "max_identical_share=2"]) == 1
    assert "less than or equal to 1" in capsys.readouterr().err
    assert cli.main(["gates", run.name, lake, "--set", "gates.max_identical_share=1", "--set", "min_score_spread=0"]) == 0
    assert "max_identical_share: was 0.5, now 1.0" in capsys.readouterr().out
    assert cli.main(["check-round", run.name, lake, "--round", "1"]) == 0
