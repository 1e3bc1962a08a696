"""The training stream: every sequence once per epoch, the same wherever a job begins, in bounded memory; and shards in order."""

import pickle
import threading
import time

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

from bliss_ops import schemas
from bliss_ops.corpus import reading
from bliss_ops.corpus.reading import SequenceReader, iter_shard
from bliss_ops.lake import write_parquet

T = 4


def write_shard(directory, shard, count, group):
    schema = schemas.sequences(T, 512)
    ids = np.arange(count) + shard * 10_000_000
    tokens = (np.arange(count * T) + shard).astype(np.uint16) % 512
    values = pa.FixedSizeListArray.from_arrays(pa.array(tokens), type=schema.field("input_ids").type)
    path = UPath(directory) / f"shard-{shard:05d}.parquet"
    write_parquet(path, pa.Table.from_arrays([pa.array(ids), values], schema=schema), row_group_size=group)
    return path


def tokens_of(ids):
    shard, row = ids // 10_000_000, ids % 10_000_000
    return ((row[:, None] * T + np.arange(T)) + shard[:, None]) % 512


shapes = st.lists(st.tuples(st.integers(0, 40), st.integers(1, 9)), min_size=1, max_size=4).filter(lambda s: sum(count for count, _ in s))


@settings(max_examples=30, deadline=None)
@given(shape=shapes, batch=st.integers(1, 17), seed=st.integers(0, 3), block=st.integers(1, 4), read_ahead=st.booleans())
def test_every_sequence_once_per_epoch_with_its_own_tokens(tmp_path_factory, shape, batch, seed, block, read_ahead):
    directory = tmp_path_factory.mktemp("shards")
    files = [write_shard(directory, shard, count, group) for shard, (count, group) in enumerate(shape)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reading, "ROW_GROUPS_PER_BLOCK", block)
        reader = SequenceReader(files, read_ahead=read_ahead)
        total = sum(count for count, _ in shape)
        assert reader.num_sequences == total
        steps = -(-3 * total // batch)
        batches = [reader.batch(step, batch, seed) for step in range(steps)]
        ids = np.concatenate([ids for ids, _ in batches])
        everything = sorted(shard * 10_000_000 + row for shard, (count, _) in enumerate(shape) for row in range(count))
        for epoch in range(3):
            assert sorted(ids[epoch * total : (epoch + 1) * total].tolist()) == everything
        assert np.array_equal(np.concatenate([tokens for _, tokens in batches]), tokens_of(ids))
        fresh = SequenceReader(files, read_ahead=not read_ahead)  # a resumed job begins anywhere
        for step in (steps - 1, 0, steps // 2):
            assert np.array_equal(fresh.batch(step, batch, seed)[0], batches[step][0])


def test_order_depends_on_seed_and_epoch(tmp_path):
    reader = SequenceReader([write_shard(tmp_path, shard, 64, 8) for shard in range(2)])
    first, second = (reader.batch(step, 128, seed=0)[0].tolist() for step in (0, 1))
    assert first != second
    assert first != reader.batch(0, 128, seed=1)[0].tolist()
    assert first == reader.batch(0, 128, seed=0)[0].tolist()
    shards = [id_ // 10_000_000 for id_ in first]
    assert 20 < sum(shards[:64]) < 44  # well mixed


def test_batches_are_int64_of_the_asked_size(tmp_path):
    reader = SequenceReader([write_shard(tmp_path, 0, 5, 2)])
    ids, tokens = reader.batch(7, 12, seed=3)  # larger than the corpus: the stream goes on
    assert (ids.dtype, tokens.dtype, ids.shape, tokens.shape) == (np.int64, np.int64, (12,), (12, T))


def test_only_one_block_is_read_per_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "ROW_GROUPS_PER_BLOCK", 2)
    reader = SequenceReader([write_shard(tmp_path, 0, 80, 4)])
    read = []
    original = reading.columns
    monkeypatch.setattr(reading, "columns", lambda table: read.append(table.num_rows) or original(table))
    reader.batch(0, 8, seed=0)
    reader.batch(4, 2, seed=0)
    reader.batch(4, 2, seed=0)
    assert read == [8, 8]


def test_the_next_block_is_read_while_one_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "ROW_GROUPS_PER_BLOCK", 2)
    files = [write_shard(tmp_path, 0, 40, 4)]  # 5 blocks of 8
    expected = [SequenceReader(files).batch(step, 4, seed=0)[0].tolist() for step in range(24)]
    read, threads = [], set()
    original = SequenceReader._read

    def counted(reader, members, key):
        read.append(key)
        threads.add(threading.current_thread().name.split("_")[0])
        return original(reader, members, key)

    monkeypatch.setattr(SequenceReader, "_read", counted)
    reader = SequenceReader(files, read_ahead=True)
    first = reader.batch(0, 4, seed=0)[0].tolist()
    deadline = time.monotonic() + 5
    while len(read) < 2 and time.monotonic() < deadline:
        time.sleep(0.001)
    assert read == [(0, 0, 0), (0, 0, 1)]  # the second before it is asked for, and no third
    assert [first] + [reader.batch(step, 4, seed=0)[0].tolist() for step in range(1, 24)] == expected
    reader._ahead[1].result()
    assert read == [(0, epoch, block) for epoch in range(3) for block in range(5)][: len(read)]  # each once, into the next epochs
    assert len(read) == 13
    assert threads == {"MainThread", "read-ahead"}


def test_a_file_that_vanishes_is_an_error_of_the_batch_that_needs_it(tmp_path, monkeypatch):
    monkeypatch.setattr(reading, "ROW_GROUPS_PER_BLOCK", 2)
    path = write_shard(tmp_path, 0, 40, 4)
    reader = SequenceReader([path], read_ahead=True)
    reader.batch(0, 4, seed=0)
    reader._ahead[1].result()
    path.unlink()
    reader.batch(1, 4, seed=0)
    reader.batch(2, 4, seed=0)  # was read before
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            reader.batch(4, 4, seed=0)


def test_a_remote_block_opens_several_files_at_once(monkeypatch):
    """fsspec's memory file system stands for an object store; a barrier lets no file be opened alone."""
    directory = UPath("memory://reading-test")
    files = [write_shard(directory, shard, 8, 4) for shard in range(4)]
    reader = SequenceReader(files, read_ahead=True)
    expected = SequenceReader(files).batch(0, 32, seed=0)
    barrier = threading.Barrier(4, timeout=5)
    original = reading._read_groups

    def together(file, groups):
        barrier.wait()
        return original(file, groups)

    monkeypatch.setattr(reading, "_read_groups", together)
    assert np.array_equal(reader.batch(0, 32, seed=0)[0], expected[0])


def test_a_reader_can_be_sent_to_another_process(tmp_path):
    files = [write_shard(tmp_path, 0, 40, 4)]
    sent = pickle.loads(pickle.dumps(SequenceReader(files)))  # noqa: S301
    assert np.array_equal(sent.batch(3, 4, 0)[0], SequenceReader(files).batch(3, 4, 0)[0])


def test_nothing_to_read(tmp_path):
    with pytest.raises(ValueError, match=r"no sequence to read in .*1 files"):
        SequenceReader([write_shard(tmp_path, 0, 0, 1)])
    with pytest.raises(ValueError, match="an empty list of files"):
        SequenceReader([])


def test_iter_shard_keeps_the_order(tmp_path):
    path = write_shard(tmp_path, 3, 50, 16)
    batches = list(iter_shard(path, 7))
    assert all(1 <= len(ids) <= 7 for ids, _ in batches)
    ids = np.concatenate([ids for ids, _ in batches])
    assert ids.tolist() == list(range(30_000_000, 30_000_050))
    assert np.array_equal(np.concatenate([tokens for _, tokens in batches]), tokens_of(ids))
    assert list(iter_shard(write_shard(tmp_path, 4, 0, 1), 7)) == []


def test_a_sample_is_the_beginning_of_the_stream_and_repeats_nothing(tmp_path):
    reader = SequenceReader([write_shard(tmp_path, shard, 25, 4) for shard in range(2)])
    sampled = [ids for ids, tokens in reader.sample(23, 5, batch_sequences=10) if np.array_equal(tokens, tokens_of(ids))]
    assert [len(ids) for ids in sampled] == [10, 10, 3]
    assert np.array_equal(np.concatenate(sampled), reader.batch(0, 23, 5)[0])
    everything = np.concatenate([ids for ids, _ in reader.sample(1000, 5, batch_sequences=16)])
    assert len(everything) == len(set(everything.tolist())) == 50
