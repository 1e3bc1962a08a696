"""Documents to sequences of T tokens, one shard at a time: every document, an end-of-text token, the next document.

Cutting is arithmetic on positions in the shard's token stream: no Python loop over tokens. A span is the piece of one document
inside one sequence; the spans of a sequence add up to T. What does not fill a last sequence is counted and dropped.
"""

import logging
from collections.abc import Callable, Iterator
from typing import cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from bliss_ops import schemas
from bliss_ops.corpus.arrays import Int64s, Integers
from bliss_ops.corpus.parquet import parquet_file
from bliss_ops.corpus.tokenizer import Tokenizer, load
from bliss_ops.lake import shard_file
from bliss_ops.manifest import describe
from bliss_ops.sharding import ROWS_PER_SHARD, Metrics, ShardRecord, sum_metrics

log = logging.getLogger(__name__)

Spans = tuple[Int64s, Int64s, Int64s]  # sequence (its row in the shard), document_id, num_tokens

_TOKENS = "input_ids.list.element"  # the leaf of schemas.sequences as Parquet names it
_CHECKED_FIRST, _CHECKED_LATER = 20, 2  # documents of a shard's first and of its later row groups that are checked against the reference


class _FastPathDiffers(Exception):  # noqa: N818 - a signal between two functions of this file
    pass


def make_worker(documents_dir: UPath, tokenizer_dir: UPath, sequences_dir: UPath, sequence_length: int) -> Callable[[int], ShardRecord]:
    """A worker that packs document shard number `shard` into `shard-00042.parquet` and `spans/shard-00042.parquet`."""
    tokenizer = load(tokenizer_dir)

    def pack_shard(shard: int) -> ShardRecord:
        source = shard_file(documents_dir, shard)
        try:
            return _pack(shard, source, sequences_dir, tokenizer, sequence_length, fast=tokenizer.is_fast)
        except _FastPathDiffers:
            log.warning("pack: gigatoken and tokenizers give different ids on shard %d: packing it with tokenizers", shard)
            return _pack(shard, source, sequences_dir, tokenizer, sequence_length, fast=False)

    return pack_shard


def check(records: list[ShardRecord]) -> Metrics:
    """Counts of the whole corpus.

    Raises:
        ValueError: no shard fills a sequence.
    """
    metrics = sum_metrics(records)
    if not metrics.get("num_sequences"):
        raise ValueError(
            f"the corpus fills no sequence: {len(records)} shards hold {metrics.get('num_tail_tokens', 0)} tokens, in none enough for one; "
            "add documents or set a smaller ingest.sequence_length"
        )
    return metrics


def _pack(shard: int, source: UPath, directory: UPath, tokenizer: Tokenizer, length: int, *, fast: bool) -> ShardRecord:
    path, spans_path = shard_file(directory, shard), shard_file(directory / "spans", shard)
    schema = schemas.sequences(length, tokenizer.vocab_size)
    group_tokens = schemas.SEQUENCES_PER_ROW_GROUP * length
    first_id = shard * ROWS_PER_SHARD
    waiting: Integers = np.zeros(0, np.uint32)  # tokens that do not fill a row group yet
    partial = _no_spans()  # spans of the sequence that is not full yet
    num_documents = num_tokens = num_written = num_spans = 0

    with parquet_file(path, schema, tokens=_TOKENS) as sequences_file, parquet_file(spans_path, schemas.SPANS) as spans_file:
        for document_ids, tokens, lengths in _encoded(source, tokenizer, fast=fast):
            spans = _join(partial, _spans(document_ids, num_tokens + np.cumsum(lengths), num_tokens, length))
            num_documents += len(document_ids)
            num_tokens += len(tokens)
            full = spans[0] < num_tokens // length
            num_spans += int(full.sum())
            spans_file.write_table(_span_table(spans, full, first_id))
            partial = spans[0][~full], spans[1][~full], spans[2][~full]

            waiting = np.concatenate([waiting, tokens])
            while len(waiting) >= group_tokens:
                sequences_file.write_table(_sequence_table(waiting[:group_tokens], first_id + num_written, schema))
                num_written += schemas.SEQUENCES_PER_ROW_GROUP
                waiting = waiting[group_tokens:]
        if num_rest := len(waiting) // length:
            sequences_file.write_table(_sequence_table(waiting[: num_rest * length], first_id + num_written, schema))
            num_written += num_rest

    if num_written > ROWS_PER_SHARD:
        raise ValueError(
            f"{source} fills more than {ROWS_PER_SHARD:,} sequences: split its source file or set a larger ingest.sequence_length"
        )
    if num_written == 0:
        log.warning("pack: shard %d fills no sequence (%d documents, %d tokens)", shard, num_documents, num_tokens)
    metrics: dict[str, int | float] = {
        "num_sequences": num_written,
        "num_tokens": num_written * length,
        "num_tail_tokens": num_tokens - num_written * length,
        "num_documents": num_documents,
        "num_empty_shards": int(num_written == 0),
        "num_shards_encoded_slowly": int(not fast),
    }
    outputs = [describe(directory, path.name, num_written), describe(directory, f"spans/{spans_path.name}", num_spans)]
    return ShardRecord(shard=shard, outputs=outputs, metrics=metrics)


def _encoded(source: UPath, tokenizer: Tokenizer, *, fast: bool) -> Iterator[tuple[Int64s, Integers, Int64s]]:
    """(document ids, their tokens with end-of-text after each, tokens per document), row group by row group.

    Raises:
        _FastPathDiffers: gigatoken gives other ids than the reference on a checked document.
    """
    with source.open("rb") as stream:
        file = pq.ParquetFile(stream)
        for group in range(file.num_row_groups):
            table = file.read_row_group(group, columns=["document_id", "text"], use_threads=False)
            texts = cast("list[str]", table.column("text").to_pylist())
            if fast and not tokenizer.fast_agrees(_spread(texts, _CHECKED_LATER if group else _CHECKED_FIRST)):
                raise _FastPathDiffers
            ids, lengths = tokenizer.encode_flat(texts, fast=fast)
            ends = np.cumsum(lengths + 1)
            tokens = np.full(len(ids) + len(lengths), tokenizer.eot_id, ids.dtype)
            is_text = np.ones(len(tokens), np.bool_)
            is_text[ends - 1] = False
            tokens[is_text] = ids
            yield table.column("document_id").to_numpy(), tokens, lengths + 1


def _spread(texts: list[str], count: int) -> list[str]:
    """Half of the sample from the front, the rest evenly spaced."""
    front = texts[: count // 2]
    later = texts[count // 2 :]
    return front + later[:: max(1, -(-len(later) // (count - len(front))))]


def _spans(document_ids: Int64s, ends: Int64s, begin: int, length: int) -> Spans:
    """Cut the token stream [begin, ends[-1]) at every document's end and at every multiple of `length`."""
    boundaries = np.arange(begin // length + 1, int(ends[-1]) // length + 1) * length
    cuts = np.union1d(ends, boundaries)
    starts = np.concatenate([[begin], cuts[:-1]])
    document = np.searchsorted(ends, starts, side="right")
    return starts // length, document_ids[document], cuts - starts


def _no_spans() -> Spans:
    return np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)


def _join(a: Spans, b: Spans) -> Spans:
    return np.concatenate([a[0], b[0]]), np.concatenate([a[1], b[1]]), np.concatenate([a[2], b[2]])


def _span_table(spans: Spans, keep: npt.NDArray[np.bool_], first_id: int) -> pa.Table:
    sequence, document_ids, num_tokens = (column[keep] for column in spans)
    return pa.Table.from_arrays(
        [pa.array(first_id + sequence), pa.array(document_ids), pa.array(num_tokens.astype(np.int32))], schema=schemas.SPANS
    )


def _sequence_table(tokens: Integers, first_id: int, schema: pa.Schema) -> pa.Table:
    kind = schema.field("input_ids").type
    num_rows = len(tokens) // kind.list_size
    values = pa.array(tokens.astype(kind.value_type.to_pandas_dtype()), type=kind.value_type)
    ids = pa.array(np.arange(first_id, first_id + num_rows))
    return pa.Table.from_arrays([ids, pa.FixedSizeListArray.from_arrays(values, type=kind)], schema=schema)
