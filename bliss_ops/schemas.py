"""Arrow schemas of every Parquet contract (the tables of the score store are in `store.py`)."""

from typing import Any

import pyarrow as pa

SEQUENCES_PER_ROW_GROUP = 256  # 512 KB of T = 1024 tokens: small enough to shuffle by row group, large enough to read fast


def _schema(*fields: "pa.Field[Any]") -> pa.Schema:
    return pa.schema(fields)


DOCUMENTS = _schema(
    pa.field("document_id", pa.int64(), nullable=False),
    pa.field("source", pa.string(), nullable=False),  # label of the shard the document came from
    pa.field("url", pa.string()),
    pa.field("domain", pa.string()),
    pa.field("timestamp", pa.string()),
    pa.field("text", pa.string(), nullable=False),
    pa.field("num_bytes", pa.int64(), nullable=False),  # UTF-8 bytes of text
)

REJECTS = _schema(
    pa.field("line_number", pa.int64(), nullable=False),  # 1-based; row number for Parquet sources
    pa.field("reason", pa.string(), nullable=False),
    pa.field("raw", pa.string(), nullable=False),  # the first 1,000 characters of the line
)

SPANS = _schema(
    pa.field("sequence_id", pa.int64(), nullable=False),
    pa.field("document_id", pa.int64(), nullable=False),
    pa.field("num_tokens", pa.int32(), nullable=False),  # tokens of this document in this sequence, end-of-text included
)

SCORES = _schema(
    pa.field("sequence_id", pa.int64(), nullable=False),
    pa.field("score", pa.float32(), nullable=False),  # higher is better
)

INFLUENCES = _schema(
    pa.field("sequence_id", pa.int64(), nullable=False),
    pa.field("influence", pa.float64(), nullable=False),  # validation loss before minus after one step on the sequence: higher helps more
    pa.field("score", pa.float32(), nullable=False),
)

EXPORTED_DOCUMENTS = _schema(
    pa.field("text", pa.string(), nullable=False),
    pa.field("score", pa.float64()),  # token-weighted mean of the scores of the document's sequences
    pa.field("num_tokens", pa.int64(), nullable=False),  # in packed sequences, end-of-text included
    pa.field("num_selected_tokens", pa.int64(), nullable=False),
    pa.field("document_id", pa.int64(), nullable=False),
    pa.field("source", pa.string(), nullable=False),
    pa.field("url", pa.string()),
    pa.field("domain", pa.string()),
    pa.field("timestamp", pa.string()),
    pa.field("corpus", pa.string(), nullable=False),
    pa.field("run", pa.string(), nullable=False),
    pa.field("round", pa.int32(), nullable=False),
    pa.field("selector_fingerprint", pa.string(), nullable=False),
)

EVALUATION = _schema(
    pa.field("task", pa.string(), nullable=False),
    pa.field("metric", pa.string(), nullable=False),
    pa.field("value", pa.float64(), nullable=False),
    pa.field("standard_error", pa.float64()),
    pa.field("num_examples", pa.int64(), nullable=False),
    pa.field("step", pa.int64()),  # of the target, over its whole life; null in results of former versions
    pa.field("num_tokens", pa.int64()),  # that the target had been trained on
)

QUESTIONS = _schema(
    pa.field("task", pa.string(), nullable=False),
    pa.field("question", pa.int64(), nullable=False),  # from 0, in the order of the task's rows
    pa.field("choice", pa.int32(), nullable=False),  # from 0, in the order of the row's choices
    pa.field("step", pa.int64(), nullable=False),  # of the model that was asked
    pa.field("log_likelihood", pa.float64(), nullable=False),  # of the continuation, nats
    pa.field("num_bytes", pa.int32(), nullable=False),  # UTF-8 bytes of the continuation without the space before it
    pa.field("num_characters", pa.int32()),  # of the choice, where the task has a length-normalised accuracy
    pa.field("is_right", pa.bool_(), nullable=False),
    pa.field("is_greedy", pa.bool_(), nullable=False),  # the continuation is what the model would write
    pa.field("context", pa.string(), nullable=False),  # the request: what the model is given, and what its likelihood is of
    pa.field("continuation", pa.string(), nullable=False),
)

CONTAMINATED = _schema(
    pa.field("sequence_id", pa.int64(), nullable=False),
    pa.field("task", pa.string(), nullable=False),
    pa.field("num_ngrams", pa.int32(), nullable=False),  # n-grams of the sequence that are in the task's texts
)


def token_type(vocab_size: int) -> pa.DataType:
    """uint16 where the vocabulary fits, else int32."""
    return pa.uint16() if vocab_size <= 1 << 16 else pa.int32()


def sequences(sequence_length: int, vocab_size: int) -> pa.Schema:
    """`sequence_id, input_ids`: input_ids is a fixed-size list of T tokens. Also the schema of subsets."""
    return _schema(
        pa.field("sequence_id", pa.int64(), nullable=False),
        pa.field("input_ids", pa.list_(pa.field("element", token_type(vocab_size), nullable=False), sequence_length), nullable=False),
    )


def validation(sequence_length: int, *, several_sets: bool = False) -> pa.Schema:
    """`input_ids, labels`: both T int32; labels are -100 where a position does not count (padding). With several sets, each row's too."""
    tokens = pa.list_(pa.field("element", pa.int32(), nullable=False), sequence_length)
    fields: list[pa.Field[Any]] = [pa.field("input_ids", tokens, nullable=False), pa.field("labels", tokens, nullable=False)]
    if several_sets:
        fields.append(pa.field("weight", pa.float64(), nullable=False))  # of each token of the row, 1 on average over the file's tokens
        fields.append(pa.field("validation_set", pa.int32(), nullable=False))  # 0: ingest.validation.source, then `others` in order
    return _schema(*fields)
