"""The validation set: text that defines "good", in two parts that never mix.

`guide.parquet` steers the score model; `holdout.parquet`, the last documents, only measures. A document is cut in windows of T
tokens of its own, the last one padded, so that no loss crosses from one document into the next. Labels equal the input where a
position counts and are -100 where it does not; the loss does the shift.
"""

import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from bliss_ops import schemas
from bliss_ops.config import EMBEDDED, IngestConfig
from bliss_ops.corpus import harvest, source
from bliss_ops.corpus.arrays import Int64s, Integers
from bliss_ops.corpus.parquet import parquet_file
from bliss_ops.corpus.readers import Reject, read_records
from bliss_ops.corpus.tokenizer import Tokenizer, load
from bliss_ops.manifest import Metrics

log = logging.getLogger(__name__)

Part = Literal["guide", "holdout"]

IGNORED = -100  # label of a position that does not count


def prepare(config: IngestConfig, source_dir: UPath, tokenizer_dir: UPath, directory: UPath) -> tuple[list[str], Metrics]:
    """Write `guide.parquet` and `holdout.parquet` into `directory`.

    Raises:
        ValueError: no validation set is configured, it cannot be read, or it is too small to be split.
    """
    texts, num_rejects = _texts(config, source_dir)
    num_guide = round(len(texts) * (1 - config.validation.holdout_fraction))
    num_guide = min(max(num_guide, 1), len(texts) - 1)
    tokenizer = load(tokenizer_dir)
    metrics: Metrics = {"num_documents": len(texts), "num_rejects": num_rejects}
    for part, chosen in (("guide", texts[:num_guide]), ("holdout", texts[num_guide:])):
        rows = windows(tokenizer, chosen, config.sequence_length)
        metrics[f"num_{part}_rows"] = len(rows[0])
        metrics[f"num_{part}_tokens"] = int((rows[1] != IGNORED).sum())
        _write(directory / f"{part}.parquet", *rows)
    return ["guide.parquet", "holdout.parquet"], metrics


def read(directory: UPath, part: Part) -> tuple[Int64s, Int64s]:
    """(input_ids_NT, labels_NT) of one part, int64."""
    with (directory / f"{part}.parquet").open("rb") as stream:
        table = pq.read_table(stream, use_threads=False)
    width = table.schema.field("input_ids").type.list_size
    input_ids, labels = (
        cast("pa.FixedSizeListArray[Any]", table.column(name).combine_chunks()).flatten().to_numpy() for name in ("input_ids", "labels")
    )
    return input_ids.reshape(-1, width).astype(np.int64), labels.reshape(-1, width).astype(np.int64)


def trim_padding(input_ids_BT: Int64s, labels_BT: Int64s) -> tuple[Int64s, Int64s]:
    """The same rows without the columns in which nothing counts any more: short documents in long windows cost what they hold."""
    counted_T = (labels_BT != IGNORED).any(0)
    width = max(2, int(counted_T.nonzero()[0][-1]) + 1 if counted_T.any() else 2)
    return np.ascontiguousarray(input_ids_BT[:, :width]), np.ascontiguousarray(labels_BT[:, :width])


def windows(tokenizer: Tokenizer, texts: Iterable[str], length: int) -> tuple[Integers, Integers]:
    """(input_ids_NT, labels_NT): each text with its end-of-text, cut in windows of `length`, the last one padded with end-of-text.

    A last window of one token predicts nothing and is left out.
    """
    inputs: list[Integers] = []
    labels: list[Integers] = []
    for ids in tokenizer.encode_batch(list(texts)):
        tokens = np.append(ids, tokenizer.eot_id).astype(np.int32)
        if len(tokens) % length == 1:
            tokens = tokens[:-1]
        num_rows = -(-len(tokens) // length)
        padding = num_rows * length - len(tokens)
        inputs.append(np.pad(tokens, (0, padding), constant_values=tokenizer.eot_id).reshape(num_rows, length))
        labels.append(np.pad(tokens, (0, padding), constant_values=IGNORED).reshape(num_rows, length))
    return np.concatenate(inputs), np.concatenate(labels)


def _texts(config: IngestConfig, source_dir: UPath) -> tuple[list[str], int]:
    settings = config.validation
    if not settings.source:
        raise ValueError("no validation set: set ingest.validation.source to JSON lines with a `text` key that show what good text is")
    files: list[str | UPath] = (
        [source_dir / harvest.VALIDATION_FILE] if settings.source == EMBEDDED else list(source.expand(settings.source))
    )
    limit = int(config.max_document_megabytes * 1_000_000)
    texts: list[str] = []
    reasons: Counter[str] = Counter()
    for file in files:
        for record in read_records(file, limit):
            if isinstance(record, Reject):
                reasons[record.reason] += 1
            else:
                texts.append(record.text)
    rejected = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    if len(texts) < 2:
        raise ValueError(
            f"validation set {settings.source!r} has {len(texts)} usable documents (rejected: {rejected or 'none'}); "
            "it takes at least two, one to guide and one to hold out"
        )
    if rejected:
        log.warning("prepare_validation: rejected lines of %s: %s", settings.source, rejected)
    return texts, reasons.total()


def _write(path: UPath, inputs_NT: Integers, labels_NT: Integers) -> None:
    schema = schemas.validation(inputs_NT.shape[1])
    kind = schema.field("input_ids").type
    columns = [pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), type=kind) for rows in (inputs_NT, labels_NT)]
    with parquet_file(path, schema) as file:
        file.write_table(pa.Table.from_arrays(columns, schema=schema))
