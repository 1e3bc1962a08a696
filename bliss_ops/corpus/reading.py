"""Sequences back from Parquet: a shuffled, seekable stream for training, and shard after shard in order for scoring.

A position in the stream is a step number, so a resumed job continues exactly where it was killed. Memory is bounded: an epoch
permutes row groups, then shuffles the rows inside blocks of 64 of them (16,384 sequences, 34 MB at T = 1024), and one block is
held at a time. Sequences further apart than that meet only by the permutation of row groups.

A block is decoded as a whole, so that the stream stops at its edge: for a tenth of a second from a disk and for seconds from an object
store. A reader that reads ahead has a thread that decodes the next block while this one is used, and holds two.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from bliss_ops.corpus.arrays import Int64s, Integers
from bliss_ops.lake import at_once, is_local

ROW_GROUPS_PER_BLOCK = 64
FILES_AT_ONCE = 8  # of an object store, where opening one takes a few round trips; from a disk, one after the other

_Key = tuple[int, int, int]  # (seed, epoch, block)
_Block = tuple[Int64s, Integers]  # ids, tokens


class SequenceReader:
    """Random access to the endless shuffled stream over `files` (every sequence once per epoch).

    Args:
        files: of sequences.
        read_ahead: decode the next block in a thread while one is used; for jobs that ask for one step after the other.

    Raises:
        ValueError: the files hold no sequence at all.
    """

    def __init__(self, files: Sequence[UPath], *, read_ahead: bool = False) -> None:
        self.files = list(files)
        counts = list(at_once(_row_counts, self.files, self.files[0])) if self.files else []
        self._file_R = np.repeat(np.arange(len(counts)), [len(rows) for rows in counts])  # R: row groups of all files
        self._group_R = np.concatenate([np.arange(len(rows)) for rows in counts] or [np.zeros(0, np.int64)])
        self._rows_R = np.concatenate([np.asarray(rows, dtype=np.int64) for rows in counts] or [np.zeros(0, np.int64)])
        self.num_sequences = int(self._rows_R.sum())
        if self.num_sequences == 0:
            where = f"{self.files[0].parent} ({len(self.files)} files)" if self.files else "an empty list of files"
            raise ValueError(f"no sequence to read in {where}: pack a larger corpus, shorten ingest.sequence_length, or select more")
        self._epochs: dict[tuple[int, int], tuple[Int64s, Int64s]] = {}  # order of row groups, first row of each block; of two epochs
        self._block: tuple[_Key, _Block] | None = None
        self._ahead: tuple[_Key, Future[_Block]] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="read-ahead") if read_ahead else None

    def batch(self, step: int, batch_sequences: int, seed: int) -> tuple[Int64s, Int64s]:
        """Sequences at positions [step * B, (step + 1) * B) of the stream that belongs to `seed`.

        Returns:
            sequence_ids_B and input_ids_BT, both int64.
        """
        position, end = step * batch_sequences, (step + 1) * batch_sequences
        ids: list[Int64s] = []
        tokens: list[Integers] = []
        while position < end:
            epoch, row = divmod(position, self.num_sequences)
            _, starts = self._epoch_order(seed, epoch)
            block = int(np.searchsorted(starts, row, side="right")) - 1
            ids_block, tokens_block = self._block_of((seed, epoch, block))
            first = row - int(starts[block])
            taken = min(end - position, len(ids_block) - first)
            ids.append(ids_block[first : first + taken])
            tokens.append(tokens_block[first : first + taken])
            position += taken
        return np.concatenate(ids), np.concatenate(tokens).astype(np.int64)

    def sample(self, num_sequences: int, seed: int, *, batch_sequences: int = 1024) -> Iterator[tuple[Int64s, Int64s]]:
        """The first `num_sequences` of the stream that belongs to `seed`, each once (all there are, when there are fewer), in batches."""
        remaining, step = min(num_sequences, self.num_sequences), 0
        while remaining > 0:
            ids, tokens = self.batch(step, batch_sequences, seed)
            yield ids[:remaining], tokens[:remaining]
            remaining, step = remaining - batch_sequences, step + 1

    def _epoch_order(self, seed: int, epoch: int) -> tuple[Int64s, Int64s]:
        if (seed, epoch) not in self._epochs:
            order = _permutation(len(self._rows_R), seed, epoch)
            firsts = np.concatenate([[0], np.cumsum(self._rows_R[order])[:-1]])[::ROW_GROUPS_PER_BLOCK]
            self._epochs = dict([*self._epochs.items()][-1:]) | {(seed, epoch): (order, firsts)}
        return self._epochs[seed, epoch]

    def _block_of(self, key: _Key) -> _Block:
        if self._block is None or self._block[0] != key:
            self._block = None  # frees the old block before another one is read
            ahead, self._ahead = self._ahead, None
            members = self._members(key)
            self._block = (key, ahead[1].result() if ahead is not None and ahead[0] == key else self._read(members, key))
            if self._thread is not None:
                following = self._following(key)
                self._ahead = (following, self._thread.submit(self._read, self._members(following), following))
        return self._block[1]

    def _following(self, key: _Key) -> _Key:
        seed, epoch, block = key
        is_last = (block + 1) * ROW_GROUPS_PER_BLOCK >= len(self._rows_R)
        return (seed, epoch + 1, 0) if is_last else (seed, epoch, block + 1)

    def _members(self, key: _Key) -> Int64s:
        """The row groups of a block, in the order of files."""
        seed, epoch, block = key
        order, _ = self._epoch_order(seed, epoch)
        return np.sort(order[block * ROW_GROUPS_PER_BLOCK : (block + 1) * ROW_GROUPS_PER_BLOCK])

    def _read(self, members: Int64s, key: _Key) -> _Block:
        """The rows of the row groups, shuffled; changes nothing of the reader, so that a thread may do it."""
        wanted = [(self.files[file], self._group_R[members[self._file_R[members] == file]]) for file in np.unique(self._file_R[members])]
        if len(wanted) > 1 and not is_local(wanted[0][0]):
            with ThreadPoolExecutor(FILES_AT_ONCE) as threads:
                parts = list(threads.map(_read_groups, *zip(*wanted, strict=True)))
        else:
            parts = [_read_groups(file, groups) for file, groups in wanted]
        ids, tokens = (np.concatenate(column) for column in zip(*parts, strict=True))
        shuffle = _permutation(len(ids), *key)
        return ids[shuffle], tokens[shuffle]


def _read_groups(file: UPath, groups: Int64s) -> _Block:
    with _open_for_parts(file) as stream:
        return columns(pq.ParquetFile(stream, pre_buffer=not is_local(file)).read_row_groups(groups.tolist(), use_threads=False))


def _open_for_parts(file: UPath) -> BinaryIO:
    """A file of which little is read. Of an object store nothing is read ahead: s3fs adds 50 MB to each read, a hundred row groups."""
    stream: BinaryIO = file.open("rb") if is_local(file) else file.open("rb", cache_type="none")
    return stream


def iter_shard(path: UPath, batch_sequences: int) -> Iterator[tuple[Int64s, Int64s]]:
    """The sequences of one file in their order, as (sequence_ids_B, input_ids_BT) with at most `batch_sequences` rows each."""
    with path.open("rb") as stream:
        for batch in pq.ParquetFile(stream).iter_batches(batch_size=batch_sequences, use_threads=False):
            ids, tokens = columns(pa.Table.from_batches([batch]))
            yield ids, tokens.astype(np.int64)


def num_sequences(path: UPath) -> int:
    """Rows of one file of sequences."""
    return sum(_row_counts(path))


def columns(table: pa.Table) -> tuple[Int64s, Integers]:
    """(sequence_id, input_ids) of a table of sequences as numpy arrays; tokens keep their narrow type."""
    width = table.schema.field("input_ids").type.list_size
    ids = table.column("sequence_id").to_numpy()
    chunks = [cast("pa.FixedSizeListArray[Any]", chunk).flatten().to_numpy() for chunk in table.column("input_ids").chunks]
    tokens = np.concatenate(chunks) if chunks else np.zeros(0, np.int64)
    return ids, tokens.reshape(-1, width)


def _row_counts(file: UPath) -> list[int]:
    with _open_for_parts(file) as stream:
        metadata = pq.ParquetFile(stream).metadata
        return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]


def _permutation(length: int, *key: int) -> Int64s:
    """A permutation that depends on `key` alone.

    The ranks of a bit generator's raw output: numpy promises that stream for good, unlike that of `Generator.permutation`.
    """
    raw = np.random.PCG64(np.random.SeedSequence(key)).random_raw(length)
    return np.argsort(raw, kind="stable")
