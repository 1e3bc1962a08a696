"""Token files byte by byte: readers written here from the formats' descriptions, and the examples of the card as printed."""

import itertools
import json
import struct
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow.parquet as pq
import pytest

from bliss_ops.corpus import tokenizer
from bliss_ops.exchange import export
from bliss_ops.lake import Run, shard_file
from tests.lakes import T

MEGATRON_TYPES = {1: "u1", 2: "i1", 3: "<i2", 4: "<i4", 5: "<i8", 6: "<f8", 7: "<f4", 8: "<u2"}


def selected(run: Run) -> dict[int, list[int]]:
    """Tokens of every selected sequence, in order of the ids."""
    found = {}
    for shard in (0, 1):
        path = shard_file(run.round(1) / "selection", shard)
        chosen = set(pq.read_table(path.path)["sequence_id"].to_pylist()) if path.exists() else set()
        for row in pq.read_table(shard_file(run.corpus.sequences, shard).path).to_pylist():
            if row["sequence_id"] in chosen:
                found[row["sequence_id"]] = row["input_ids"]
    return dict(sorted(found.items()))


def pieces(run: Run) -> list[tuple[int, list[int]]]:
    """(document, tokens) of every unbroken piece, by a loop over single tokens."""
    found: list[tuple[int, list[int]]] = []
    tokens = selected(run)
    before = (-1, -1)
    for shard in (0, 1):
        for span in pq.read_table(shard_file(run.corpus.sequences / "spans", shard).path).to_pylist():
            sequence, document = span["sequence_id"], span["document_id"]
            if sequence not in tokens:
                continue
            taken, tokens[sequence] = tokens[sequence][: span["num_tokens"]], tokens[sequence][span["num_tokens"] :]
            if (sequence - 1, document) == before:
                found[-1][1].extend(taken)
            else:
                found.append((document, list(taken)))
            before = (sequence, document)
    return found


def read_megatron(prefix: Path) -> list[list[int]]:
    """An indexed data set, by the description of its format: every document's sequences, checked for consistency."""
    index, data = prefix.with_suffix(".idx").read_bytes(), prefix.with_suffix(".bin").read_bytes()
    assert index[:9] == b"MMIDIDX\x00\x00"
    version, code, num_sequences, num_documents = struct.unpack_from("<QBQQ", index, 9)
    assert version == 1
    kind = np.dtype(MEGATRON_TYPES[code])
    at = 9 + 8 + 1 + 8 + 8
    lengths = np.frombuffer(index, "<i4", num_sequences, at)
    pointers = np.frombuffer(index, "<i8", num_sequences, at + 4 * num_sequences)
    documents = np.frombuffer(index, "<i8", num_documents, at + 12 * num_sequences)
    assert at + 12 * num_sequences + 8 * num_documents == len(index), "nothing after the columns"
    assert pointers.tolist() == [0, *np.cumsum(lengths.astype(np.int64) * kind.itemsize)[:-1]]
    assert documents[0] == 0
    assert documents[-1] == num_sequences
    assert len(data) == int(lengths.sum()) * kind.itemsize
    sequences = [np.frombuffer(data, kind, length, pointer).tolist() for length, pointer in zip(lengths, pointers, strict=True)]
    return [[token for sequence in sequences[first:end] for token in sequence] for first, end in itertools.pairwise(documents)]


def end_of_text(run: Run) -> int:
    return tokenizer.load(run.corpus.tokenizer).eot_id


def test_the_selection_cuts_documents_and_keeps_others_whole(run: Run) -> None:
    """The other tests mean something only then."""
    ends = [tokens[-1] == end_of_text(run) for _, tokens in pieces(run)]
    assert 3 < sum(ends) < len(ends) - 3
    assert any(len(tokens) > T for _, tokens in pieces(run)), "a document goes on in the next sequence"


def test_nanogpt_holds_the_tokens_as_selected(run: Run, tmp_path: Path) -> None:
    manifest = export(run, 1, str(tmp_path / "out"), "nanogpt")
    rows = np.fromfile(tmp_path / "out" / "train.bin", "<u2").reshape(-1, T)
    assert rows.tolist() == list(selected(run).values())
    meta = json.loads((tmp_path / "out" / "meta.json").read_text())
    assert (meta["dtype"], meta["num_train_tokens"], meta["vocab_size"], meta["sequence_length"]) == ("uint16", rows.size, 435, T)
    assert meta["end_of_text_id"] == end_of_text(run)
    assert manifest.metrics["num_added_end_of_text"] == 0
    assert not (tmp_path / "out" / "val.bin").exists()
    text = tokenizer.load(run.corpus.tokenizer).decode(rows[0])
    assert tokenizer.Tokenizer((tmp_path / "out" / "tokenizer.json").read_bytes(), "copy").decode(rows[0]) == text


def test_nanogpt_pieces_can_be_ended(run: Run, tmp_path: Path) -> None:
    manifest = export(run, 1, str(tmp_path / "out"), "nanogpt", end_pieces=True)
    eot = end_of_text(run)
    expected = [token for _, tokens in pieces(run) for token in (tokens if tokens[-1] == eot else [*tokens, eot])]
    assert np.fromfile(tmp_path / "out" / "train.bin", "<u2").tolist() == expected
    assert manifest.metrics["num_added_end_of_text"] == sum(tokens[-1] != eot for _, tokens in pieces(run))


def test_no_document_is_on_both_sides_of_the_validation_split(run: Run, tmp_path: Path) -> None:
    export(run, 1, str(tmp_path / "out"), "nanogpt", validation_fraction=0.3, end_pieces=True)
    train, val = (np.fromfile(tmp_path / "out" / f"{name}.bin", "<u2").tolist() for name in ("train", "val"))
    eot = end_of_text(run)
    by_document: dict[int, list[int]] = {}
    for document, tokens in pieces(run):
        by_document.setdefault(document, []).extend(tokens if tokens[-1] == eot else [*tokens, eot])
    rest = {"train": train, "val": val}
    sides = {}
    for document, tokens in by_document.items():
        sides[document] = "val" if val and rest["val"][: len(tokens)] == tokens else "train"
        assert rest[sides[document]][: len(tokens)] == tokens
        rest[sides[document]] = rest[sides[document]][len(tokens) :]
    assert rest == {"train": [], "val": []}
    assert 0.1 < list(sides.values()).count("val") / len(sides) < 0.5


@pytest.mark.parametrize("end_pieces", [False, True])
def test_megatron_has_an_entry_for_every_piece(run: Run, tmp_path: Path, end_pieces: bool) -> None:
    manifest = export(run, 1, str(tmp_path / "out"), "megatron", end_pieces=end_pieces)
    eot = end_of_text(run)
    expected = [tokens if tokens[-1] == eot or not end_pieces else [*tokens, eot] for _, tokens in pieces(run)]
    assert read_megatron(tmp_path / "out" / "tokens") == expected
    assert manifest.metrics["num_pieces"] == len(expected)
    assert manifest.metrics["num_tokens"] == sum(map(len, expected))


def test_batches_do_not_change_a_byte(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for format_name in ("megatron", "nanogpt"):
        export(run, 1, str(tmp_path / "whole"), format_name, end_pieces=True)  # type: ignore[arg-type]
        monkeypatch.setattr("bliss_ops.exchange.selected._BATCH_ROWS", 3)
        monkeypatch.setattr("bliss_ops.exchange.tokens._INDEX_ROWS", 4)
        export(run, 1, str(tmp_path / "batched"), format_name, end_pieces=True)  # type: ignore[arg-type]
        monkeypatch.undo()
        files = sorted(path.name for path in (tmp_path / "whole").iterdir() if path.suffix in (".bin", ".idx"))
        assert all((tmp_path / "whole" / name).read_bytes() == (tmp_path / "batched" / name).read_bytes() for name in files)
        for name in ("whole", "batched"):
            for file in (tmp_path / name).iterdir():
                file.unlink()


@pytest.mark.parametrize(("format_name", "result"), [("nanogpt", "sequences"), ("megatron", "pieces")])
def test_the_card_loads_them_with_datasets(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_name: Any, result: str
) -> None:
    export(run, 1, str(tmp_path / "out"), format_name)
    snippet = (tmp_path / "out" / "README.md").read_text().split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    names: dict[str, Any] = {"__name__": "card"}
    exec(snippet, names)  # noqa: S102 - what a reader of the card would do
    expected = list(selected(run).values()) if format_name == "nanogpt" else [tokens for _, tokens in pieces(run)]
    assert names[result]["input_ids"] == expected


def test_a_selected_sequence_that_left_the_corpus_is_an_error(run: Run, tmp_path: Path) -> None:
    path = shard_file(run.corpus.sequences, 0)
    content = path.read_bytes()
    table = pq.read_table(path.path)
    try:
        pq.write_table(table.slice(0, 1), path.path)
        with pytest.raises(ValueError, match="the corpus changed"):
            export(run, 1, str(tmp_path / "out"), "nanogpt")
    finally:
        path.write_bytes(content)
    assert not (tmp_path / "out" / "train.bin").exists()
