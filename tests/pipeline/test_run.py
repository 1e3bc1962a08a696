"""The whole path on the smoke recipe: what it leaves behind, and that repeating, damaging and changing it behave as promised."""

import hashlib
import logging
from pathlib import Path

import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from bliss_ops import pipeline
from bliss_ops.cli import main
from bliss_ops.lake import Lake
from bliss_ops.manifest import find_manifest, read_manifest

RUN = "smoke-bliss-s0"


def contents(lake: Lake) -> dict[str, str]:
    """Digest of every artifact in the lake, by address."""
    manifests = [find_manifest(path.parent) for path in sorted(lake.root.glob("**/manifest.json"))]
    return {manifest.artifact: manifest.digest for manifest in manifests if manifest and manifest.stage != "report"}


def test_every_sequence_has_one_score_per_round_window_and_spans_add_up(finished: Lake) -> None:
    run = finished.run(RUN)
    corpus = run.corpus
    sequences = ds.dataset(str(corpus.sequences), format="parquet", exclude_invalid_files=True, partitioning=None)
    length = run.config.ingest.sequence_length
    files = [file for file in sequences.files if "/spans/" not in file]
    ids = sorted(i for file in files for i in pq.read_table(file, columns=["sequence_id"])["sequence_id"].to_pylist())
    assert len(ids) == len(set(ids)) == read_manifest(corpus.sequences, made_by="").metrics["num_sequences"]
    spans = ds.dataset([str(path) for path in (corpus.sequences / "spans").glob("*.parquet")], format="parquet").to_table()
    totals = spans.group_by("sequence_id").aggregate([("num_tokens", "sum")]).to_pydict()
    assert dict(zip(totals["sequence_id"], totals["num_tokens_sum"], strict=True)) == dict.fromkeys(ids, length)
    scored = []
    for number in (1, 2):
        for path in (run.round(number) / "scores").glob("*.parquet"):
            scored += pq.read_table(str(path))["sequence_id"].to_pylist()
    assert sorted(scored) == ids  # the windows of the rounds are disjoint and here cover the corpus


def test_sql_counts_every_sequence_once(finished: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sql", "select count(*) as n from scores", "--format", "csv", "--lake", str(finished.root)]) == 0
    expected = read_manifest(finished.run(RUN).corpus.sequences, made_by="").metrics["num_sequences"]
    assert capsys.readouterr().out.split() == ["n", str(expected)]


def test_selection_keeps_the_top_fifth_and_the_subset_has_their_tokens(finished: Lake) -> None:
    here = finished.run(RUN).round(1)
    selection = read_manifest(here / "selection", made_by="").metrics
    assert selection["num_selected"] == int(0.2 * selection["num_candidates"] + 1e-9)
    subset = [i for path in (here / "subset").glob("*.parquet") for i in pq.read_table(str(path))["sequence_id"].to_pylist()]
    chosen = [i for path in (here / "selection").glob("*.parquet") for i in pq.read_table(str(path))["sequence_id"].to_pylist()]
    assert sorted(subset) == sorted(chosen)
    assert len(subset) == selection["num_selected"]


def test_rounds_inherit_target_and_score_model(finished: Lake) -> None:
    rounds = [finished.run(RUN).round(number) for number in (1, 2)]
    inputs = read_manifest(rounds[1] / "pretrain", made_by="").inputs
    assert inputs[finished.relative(rounds[0] / "pretrain")] == read_manifest(rounds[0] / "pretrain", made_by="").digest
    assert finished.relative(rounds[0] / "selector") in read_manifest(rounds[1] / "selector", made_by="").inputs


def test_a_second_run_does_no_work_and_says_so(copied: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    stamps = {path: path.stat().st_mtime_ns for path in copied.root.glob("**/*") if path.is_file() and path.name != "config.json"}
    assert main(["run", "smoke", "--lake", str(copied.root)]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "nothing to do" in line]
    assert any(" fit: " in line for line in lines)
    assert any(" report: " in line for line in lines)
    of_the_loader = {copied.root / "scores.working.duckdb", copied.root / "scores.working.lock"}
    now = {path: path.stat().st_mtime_ns for path in stamps if path not in of_the_loader}
    assert now == {path: stamp for path, stamp in stamps.items() if path not in of_the_loader}


def test_deleting_one_score_shard_makes_one_shard(copied: Lake, caplog: pytest.LogCaptureFixture) -> None:
    before = contents(copied)
    scores = copied.run(RUN).round(1) / "scores"
    victim = sorted(scores.glob("shard-*.parquet"))[0]
    stamps = {path.name: path.stat().st_mtime_ns for path in scores.glob("shard-*.parquet") if path != victim}
    victim.unlink()
    with caplog.at_level(logging.INFO):
        pipeline.run_round(copied, RUN, 1)
    assert {path.name: path.stat().st_mtime_ns for path in scores.glob("shard-*.parquet") if path.name != victim.name} == stamps
    assert "1/1 shards" in caplog.text
    assert contents(copied) == before


def test_the_same_stage_from_python_and_from_the_shell_writes_identical_files(finished: Lake, copied: Lake) -> None:
    run = copied.run(RUN)
    for name in ("selector", "scores", "selection", "subset"):
        _remove(run.round(1) / name)
    pipeline.fit(run, 1)
    for command in ("score", "select", "materialize"):
        assert main([command, RUN, "--round", "1", "--lake", str(copied.root)]) == 0
    for name in ("selector/score_model.safetensors", "scores", "selection", "subset"):
        assert _hashes(run.round(1) / name) == _hashes(finished.run(RUN).round(1) / name), name


def test_groups_of_shards_give_the_same_scores_as_all_at_once(finished: Lake, copied: Lake) -> None:
    scores = copied.run(RUN).round(1) / "scores"
    _remove(scores)
    for group in ("1/3", "0/3", "2/3"):
        assert main(["score", RUN, "--group", group, "--lake", str(copied.root)]) == 0
    assert _hashes(scores) == _hashes(finished.run(RUN).round(1) / "scores")


def test_a_changed_setting_on_a_finished_run_fails_with_the_difference(copied: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "smoke", "--lake", str(copied.root), "--set", "bilevel.num_steps=6"]) == 1
    message = capsys.readouterr().err
    assert "bilevel.num_steps: was 5, now 6" in message
    assert "Traceback" not in message


def test_a_shell_command_on_changed_inputs_fails_with_the_difference(copied: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    config = copied.run(RUN).path / "config.json"
    config.write_text(config.read_text().replace('"fraction": 0.2', '"fraction": 0.3'))
    assert main(["select", RUN, "--lake", str(copied.root)]) == 1
    assert "settings.fraction: was 0.2, now 0.3" in capsys.readouterr().err


def test_the_report_of_a_run_stands_alone_and_names_its_rival(finished: Lake) -> None:
    page = (finished.run(RUN).report / "index.html").read_text()
    assert "smoke-random-s0" in page
    assert "<script" not in page
    assert 'src="http' not in page


def _hashes(path: Path) -> dict[str, str]:
    files = [path] if path.is_file() else sorted(path.glob("*.parquet"))
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def _remove(directory: Path) -> None:
    import shutil

    shutil.rmtree(directory)
