"""Documents leave with text, score and provenance, and come back through Hugging Face `datasets`."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bliss_ops.exchange import export
from bliss_ops.lake import Lake, Run, shard_file
from bliss_ops.manifest import ArtifactMismatchError, find_manifest
from tests.corpus.corpora import contents
from tests.exchange.conftest import make_lake
from tests.lakes import make_run


def expected_documents(run: Run, min_share: float) -> list[dict[str, Any]]:
    """The same answer by plain loops."""
    found = []
    for shard in (0, 1):
        score = {row["sequence_id"]: row["score"] for row in pq.read_table(shard_file(run.round(1) / "scores", shard).path).to_pylist()}
        selection = shard_file(run.round(1) / "selection", shard)
        chosen = set(pq.read_table(selection.path)["sequence_id"].to_pylist()) if selection.exists() else set()
        pieces: dict[int, list[tuple[int, int]]] = {}
        for span in pq.read_table(shard_file(run.corpus.sequences / "spans", shard).path).to_pylist():
            pieces.setdefault(span["document_id"], []).append((span["sequence_id"], span["num_tokens"]))
        for document in pq.read_table(shard_file(run.corpus.documents, shard).path).to_pylist():
            mine = pieces.get(document["document_id"], [])
            total, selected = sum(n for _, n in mine), sum(n for sequence, n in mine if sequence in chosen)
            if selected and selected / total >= min_share:
                mean = sum(n * score[sequence] for sequence, n in mine) / total
                found.append({"document_id": document["document_id"], "text": document["text"], "url": document["url"], "score": mean})
                found[-1] |= {"num_tokens": total, "num_selected_tokens": selected}
    return found


@pytest.mark.parametrize(
    ("format_name", "compression"),
    [("parquet", None), ("jsonl", None), ("jsonl", "zstd"), ("jsonl", "gzip"), ("jsonl", "none"), ("parquet", "none")],
)
def test_datasets_loads_the_directory(run: Run, tmp_path: Path, format_name: Any, compression: Any) -> None:
    if (format_name, compression) == ("jsonl", "zstd"):
        pytest.importorskip("zstandard", reason="fsspec reads .zst with the package zstandard, which we do not need")
    output = tmp_path / "chosen"
    manifest = export(run, 1, str(output), format_name, compression=compression)
    expected = expected_documents(run, 0.5)
    assert 3 < len(expected) < 50
    rows = list(datasets.load_dataset(str(output), split="train", cache_dir=str(tmp_path / "cache")))
    assert [row["document_id"] for row in rows] == [document["document_id"] for document in expected]
    for row, document in zip(rows, expected, strict=True):
        assert row["score"] == pytest.approx(document.pop("score"), abs=1e-6)
        assert {name: row[name] for name in document} == document
        assert (row["corpus"], row["run"], row["round"], row["source"]) == ("tiny", run.name, 1, f"part-{row['document_id'] // 10_000_000}")
        assert row["selector_fingerprint"] == find_manifest(run.round(1) / "selector").fingerprint  # type: ignore[union-attr]
    assert manifest.metrics["num_documents"] == len(expected)
    assert manifest.metrics["num_selected_tokens"] == sum(document["num_selected_tokens"] for document in expected)


def test_the_card_says_how_to_load_it(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(run, 1, str(tmp_path / "chosen"))
    card = (tmp_path / "chosen" / "README.md").read_text()
    snippet = card.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    names: dict[str, Any] = {}
    exec(snippet, names)  # noqa: S102 - what a reader of the card would do
    assert len(names["documents"]) == len(expected_documents(run, 0.5))
    assert "whole, when at least the share of its tokens" in card


@pytest.mark.parametrize("min_share", [1e-9, 0.9, 1.0])
def test_the_least_share_decides_which_documents_count(run: Run, tmp_path: Path, min_share: float) -> None:
    export(run, 1, str(tmp_path / "out"), min_share=min_share)
    ids = pa.concat_tables([pq.read_table(file) for file in sorted((tmp_path / "out").glob("*.parquet"))])["document_id"].to_pylist()
    assert ids == [document["document_id"] for document in expected_documents(run, min_share)]


def test_the_same_export_again_does_no_work_and_another_is_refused(run: Run, tmp_path: Path) -> None:
    output = tmp_path / "out"
    first = export(run, 1, str(output), "jsonl")
    times = {file: file.stat().st_mtime_ns for file in output.iterdir()}
    assert export(run, 1, str(output), "jsonl") == first
    assert {file: file.stat().st_mtime_ns for file in output.iterdir()} == times
    with pytest.raises(ArtifactMismatchError, match=r"settings.min_share: was 0.5, now 0.25"):
        export(run, 1, str(output), "jsonl", min_share=0.25)


def test_a_killed_export_resumes_with_the_missing_shard(run: Run, tmp_path: Path) -> None:
    whole, output = tmp_path / "whole", tmp_path / "out"
    export(run, 1, str(whole))
    export(run, 1, str(output))
    (output / "manifest.json").unlink()
    (output / "README.md").unlink()
    (output / "shard-00001.parquet").unlink()
    kept = (output / "shard-00000.parquet").stat().st_mtime_ns
    export(run, 1, str(output))
    assert (output / "shard-00000.parquet").stat().st_mtime_ns == kept
    assert contents(output) == contents(whole)
    assert (output / "README.md").exists()


def test_json_lines_have_the_same_bytes_every_time(run: Run, tmp_path: Path) -> None:
    for name in ("a", "b"):
        export(run, 1, str(tmp_path / name), "jsonl", compression="gzip")
    assert contents(tmp_path / "a") == contents(tmp_path / "b") != {}


def test_an_object_store_takes_the_files_too(run: Run, tmp_path: Path) -> None:
    from upath import UPath

    output = UPath(f"memory://{tmp_path.name}/out")
    export(run, 1, output, "jsonl", compression="none")
    lines = [json.loads(line) for shard in (0, 1) for line in (output / f"shard-{shard:05d}.jsonl").read_text().splitlines()]
    assert [line["document_id"] for line in lines] == [document["document_id"] for document in expected_documents(run, 0.5)]


def test_what_cannot_be_exported_is_said(run: Run, lake: Lake, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="use one of jsonl, parquet, nanogpt, megatron"):
        export(run, 1, str(tmp_path), "csv")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="use one of zstd, gzip, none"):
        export(run, 1, str(tmp_path), compression="lz4")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="min_share is 0"):
        export(run, 1, str(tmp_path), min_share=0)
    with pytest.raises(ValueError, match=r"run `bliss select demo-bliss-s0 --round 2` first"):
        export(run, 2, str(tmp_path))


def test_no_document_selected_far_enough_is_an_error(tmp_path: Path) -> None:
    lake = make_lake(tmp_path / "lake", tmp_path / "source")
    run = make_run(lake, score=lambda shard, rows: (rows % 5 == 2) * 1.0 - shard * 1e-3)  # every fifth sequence: no document whole
    with pytest.raises(ValueError, match="no document has 100% of its tokens in selected sequences: lower --min-share"):
        export(run, 1, str(tmp_path / "out"), min_share=1.0)
    assert not (tmp_path / "out" / "manifest.json").exists()
