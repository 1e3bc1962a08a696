"""The tokens of a selection for other trainers: one memory-mapped file (nanoGPT), or an indexed data set (Megatron).

Both hold the tokens exactly as selected, in corpus order. Documents inside a sequence are separated by the end-of-text token they were
packed with. Where the selection cuts a document (its next sequence was not kept) there is none: `end_pieces` adds one there, for
trainers that read across sequences; without it every T tokens of a nanoGPT file are one selected sequence.
"""

import struct
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any

import numpy as np
from upath import UPath

from bliss_ops.corpus import tokenizer
from bliss_ops.corpus.arrays import Int64s, Integers
from bliss_ops.exchange.selected import Pieces, Selected, iter_pieces
from bliss_ops.lake import atomic_file, write_json
from bliss_ops.selectors.random import splitmix64
from bliss_ops.sharding import Metrics

MEGATRON_HEADER = b"MMIDIDX\x00\x00"
MEGATRON_VERSION = 1
MEGATRON_TYPES = {"int32": 4, "uint16": 8}  # codes of the format for the types written here
_INDEX_ROWS = 1 << 20  # pieces whose index is in memory at a time


def write_nanogpt(selected: Selected, directory: UPath, *, end_pieces: bool, validation_fraction: float) -> tuple[list[str], Metrics]:
    """`train.bin`, `val.bin` when asked for, `meta.json` and `tokenizer.json`.

    The validation part is chosen by document (a hash of its id), so that no document has pieces in both parts.
    """
    vocab_size, eot_id = _vocabulary(selected)
    kind = np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
    names = ["train", "val"] if validation_fraction else ["train"]
    streams = {name: _Stream(eot_id, end_pieces) for name in names}
    with ExitStack() as stack:
        files = {name: stack.enter_context(_binary(stack.enter_context(atomic_file(directory / f"{name}.bin")))) for name in names}
        for pieces in iter_pieces(selected):
            held_out_P = splitmix64(pieces.document_id_P.astype(np.uint64)) / float(1 << 64) < validation_fraction
            for name, stream in streams.items():
                tokens, _, _ = stream.take(pieces, held_out_P if name == "val" else ~held_out_P)
                files[name].write(tokens.astype(kind).tobytes())
        for name, stream in streams.items():
            files[name].write(stream.rest().astype(kind).tobytes())
    counts: Metrics = {f"num_{name}_tokens": stream.num_tokens for name, stream in streams.items()}
    counts |= {"num_added_end_of_text": sum(stream.num_added for stream in streams.values())}
    _write_meta(selected, directory, {"format": "nanogpt", "dtype": kind.name} | counts)
    return [*(f"{name}.bin" for name in names), "meta.json", tokenizer.copy(selected.run.corpus.tokenizer, directory)], counts


def write_megatron(selected: Selected, directory: UPath, *, end_pieces: bool) -> tuple[list[str], Metrics]:
    """`tokens.bin` and `tokens.idx`: an entry for each unbroken piece of a document, also across neighbouring sequences."""
    vocab_size, eot_id = _vocabulary(selected)
    kind = np.dtype("<u2" if vocab_size < 65_500 else "<i4")  # the format's own limit
    stream = _Stream(eot_id, end_pieces)
    num_entries = open_length = 0
    with TemporaryFile() as lengths:
        with atomic_file(directory / "tokens.bin") as file, _binary(file) as binary:
            for pieces in iter_pieces(selected):
                tokens, entry, begins = stream.take(pieces, np.ones(len(pieces.length_P), np.bool_))
                binary.write(tokens.astype(kind).tobytes())
                # Entry 0 of a batch is the one left open by the batch before, 1 to n are those that begin here.
                counts = np.bincount(entry, minlength=begins + 1)
                counts[0] += open_length
                closed = counts[:-1] if num_entries or open_length else counts[1:-1]
                open_length = int(counts[-1])
                lengths.write(closed.astype("<i4").tobytes())
                num_entries += len(closed)
            rest = stream.rest()
            binary.write(rest.astype(kind).tobytes())
        if open_length:
            lengths.write(np.array([open_length + len(rest)], "<i4").tobytes())
            num_entries += 1
        with atomic_file(directory / "tokens.idx") as file, _binary(file) as binary:
            _write_index(binary, lengths, num_entries, kind)
    metrics = {"num_tokens": stream.num_tokens, "num_pieces": num_entries, "num_added_end_of_text": stream.num_added}
    _write_meta(selected, directory, {"format": "megatron", "dtype": kind.name} | metrics)
    return ["tokens.bin", "tokens.idx", "meta.json", tokenizer.copy(selected.run.corpus.tokenizer, directory)], metrics


class _Stream:
    """One stream of tokens being written; knows its last token, so that a piece can be ended when the next one begins."""

    def __init__(self, eot_id: int, end_pieces: bool) -> None:
        self.eot_id, self.end_pieces = eot_id, end_pieces
        self.num_tokens = self.num_added = 0
        self.last_token: int | None = None

    def take(self, pieces: Pieces, mine_P: np.ndarray) -> tuple[Integers, Int64s, int]:
        """The tokens of those pieces; of each the entry it belongs to (0: the one that was open); and how many entries begin here.

        A piece that continues another is of the same document, so both are mine or neither is.
        """
        length_Q, begins_Q = pieces.length_P[mine_P], ~pieces.continues_P[mine_P]
        tokens = pieces.tokens[np.repeat(mine_P, pieces.length_P)]
        if not len(tokens):
            return tokens, np.zeros(0, np.int64), 0
        entry = np.repeat(np.cumsum(begins_Q), length_Q)
        if self.end_pieces:
            start_Q = np.cumsum(length_Q) - length_Q
            before_Q = tokens[start_Q - 1].astype(np.int64)
            before_Q[0] = self.eot_id if self.last_token is None else self.last_token
            where = start_Q[begins_Q & (before_Q != self.eot_id)]
            entry = np.insert(entry, where, entry[where] - 1)  # the added token ends the entry before
            tokens = np.insert(tokens, where, self.eot_id)
            self.num_added += len(where)
        self.last_token = int(tokens[-1])
        self.num_tokens += len(tokens)
        return tokens, entry, int(begins_Q.sum())

    def rest(self) -> Integers:
        """What ends the last piece."""
        if not self.end_pieces or self.last_token in (None, self.eot_id):
            return np.zeros(0, np.int64)
        self.num_tokens += 1
        self.num_added += 1
        return np.array([self.eot_id])


def _write_index(file: IO[bytes], lengths: IO[bytes], num_entries: int, kind: np.dtype[Any]) -> None:
    """Header, counts, then three columns: entry lengths (int32), byte offsets (int64), and where each document begins (int64)."""
    file.write(MEGATRON_HEADER + struct.pack("<QB", MEGATRON_VERSION, MEGATRON_TYPES[kind.name]))
    file.write(struct.pack("<QQ", num_entries, num_entries + 1))
    for chunk in _chunks(lengths):
        file.write(chunk.tobytes())
    offset = 0
    for chunk in _chunks(lengths):
        ends = offset + np.cumsum(chunk, dtype=np.int64) * kind.itemsize
        file.write(np.concatenate([[offset], ends[:-1]]).astype("<i8").tobytes())
        offset = int(ends[-1])
    for first in range(0, num_entries + 1, _INDEX_ROWS):  # an entry is a document of its own
        file.write(np.arange(first, min(first + _INDEX_ROWS, num_entries + 1), dtype="<i8").tobytes())


def _chunks(lengths: IO[bytes]) -> Iterator[np.ndarray]:
    lengths.seek(0)
    while data := lengths.read(4 * _INDEX_ROWS):
        yield np.frombuffer(data, "<i4")


def _binary(file: Path) -> IO[bytes]:
    return file.open("wb")


def _vocabulary(selected: Selected) -> tuple[int, int]:
    """Size of the vocabulary and the id of its end-of-text token."""
    corpus = selected.run.corpus
    loaded = tokenizer.load(corpus.tokenizer)
    return loaded.vocab_size, loaded.eot_id


def _write_meta(selected: Selected, directory: UPath, facts: dict[str, Any]) -> None:
    vocab_size, eot_id = _vocabulary(selected)
    length = selected.run.config.ingest.sequence_length
    more = {"vocab_size": vocab_size, "end_of_text_id": eot_id, "sequence_length": length, "method": selected.run.config.method}
    write_json(directory / "meta.json", facts | more | selected.origin)
