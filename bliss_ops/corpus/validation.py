"""The validation set: text that defines "good", in two parts that never mix.

`guide.parquet` steers the score model; `holdout.parquet`, the last documents, only measures. A document is cut in windows of T
tokens of its own, the last one padded, so that no loss crosses from one document into the next. Labels equal the input where a
position counts and are -100 where it does not; the loss does the shift.

Several sets are one: f = sum_k omega_k f_k / sum_k omega_k, with f_k the mean token loss of set k. Every row carries the weight of its
tokens, omega_k / sum(omega) * (tokens of all sets) / (tokens of set k), so that f is the weighted mean over all tokens. Files of a
single set have no weights: they are 1.
"""

import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from bliss_ops import schemas
from bliss_ops.config import EMBEDDED, NO_VALIDATION, IngestConfig, ValidationConfig
from bliss_ops.corpus import harvest, source
from bliss_ops.corpus.arrays import Float64s, Int64s, Integers
from bliss_ops.corpus.bounds import Bounds
from bliss_ops.corpus.parquet import parquet_file
from bliss_ops.corpus.readers import Reject, read_records
from bliss_ops.corpus.tokenizer import Tokenizer, load
from bliss_ops.sharding import Metrics

log = logging.getLogger(__name__)

Part = Literal["guide", "holdout"]
PARTS: tuple[Part, ...] = ("guide", "holdout")

IGNORED = -100  # label of a position that does not count


@dataclass(frozen=True)
class ValidationRows:
    """N rows of T tokens, the weight of each one's tokens, and the number of the set it belongs to."""

    input_ids_NT: Int64s
    labels_NT: Int64s
    weight_N: Float64s
    set_N: Int64s

    @classmethod
    def unweighted(cls, input_ids_NT: Int64s, labels_NT: Int64s) -> "ValidationRows":
        """Rows of one set."""
        return cls(input_ids_NT, labels_NT, np.ones(len(labels_NT)), np.zeros(len(labels_NT), np.int64))

    def __len__(self) -> int:
        return len(self.labels_NT)

    def take(self, rows: Integers | slice) -> "ValidationRows":
        """Those rows, by number, mask or slice, with the weights they have in the whole."""
        return ValidationRows(self.input_ids_NT[rows], self.labels_NT[rows], self.weight_N[rows], self.set_N[rows])


def prepare(config: IngestConfig, source_dir: UPath, tokenizer_dir: UPath, directory: UPath) -> tuple[list[str], Metrics]:
    """Write `guide.parquet` and `holdout.parquet` into `directory`, or nothing for `none`; the first documents of every set guide.

    Raises:
        ValueError: no validation set is configured, one cannot be read, or one is too small to be split.
    """
    if config.validation.source == NO_VALIDATION:
        log.info("prepare_validation: none is asked for, the corpus can be scored and not trained on")
        return [], {}
    tokenizer = load(tokenizer_dir)
    metrics: Metrics = {"num_documents": 0, "num_rejects": 0}
    sets: list[dict[Part, tuple[Integers, Integers]]] = []
    for address, _ in sources(config.validation):
        texts, num_rejects = _texts(address, config, source_dir)
        num_guide = round(len(texts) * (1 - config.validation.holdout_fraction))
        num_guide = min(max(num_guide, 1), len(texts) - 1)
        chosen: dict[Part, list[str]] = {"guide": texts[:num_guide], "holdout": texts[num_guide:]}
        sets.append({part: windows(tokenizer, of_part, config.sequence_length) for part, of_part in chosen.items()})
        metrics["num_documents"] += len(texts)
        metrics["num_rejects"] += num_rejects
    omega_K = np.array([weight for _, weight in sources(config.validation)])
    for part in PARTS:
        inputs, labels = ([rows[part][column] for rows in sets] for column in (0, 1))
        metrics[f"num_{part}_rows"] = sum(map(len, labels))
        metrics[f"num_{part}_tokens"] = sum(int((rows != IGNORED).sum()) for rows in labels)
        _write(directory / f"{part}.parquet", inputs, labels, omega_K)
    return [f"{part}.parquet" for part in PARTS], metrics


def sources(settings: ValidationConfig) -> list[tuple[str, float]]:
    """(address, weight) of every set, the main one first.

    Raises:
        ValueError: there is none.
    """
    if not settings.source or settings.source == NO_VALIDATION:
        raise ValueError("no validation set: set ingest.validation.source to JSON lines with a `text` key that show what good text is")
    return [(settings.source, settings.weight), *((other.source, other.weight) for other in settings.others)]


def set_names(settings: ValidationConfig) -> list[str]:
    """A name for every set from its address, distinct: what results about single sets are called."""
    labels = [source.label_of(address) for address, _ in sources(settings)]
    return [label if labels.count(label) == 1 else f"{label}-{number}" for number, label in enumerate(labels, start=1)]


def read(directory: UPath, part: Part) -> ValidationRows:
    """One part: tokens and labels as int64.

    Raises:
        ValueError: the corpus was ingested without a validation set.
    """
    if not (directory / f"{part}.parquet").is_file():
        raise ValueError(
            f"no validation set in {directory}: the corpus was ingested to be scored only (ingest.validation.source=none). "
            "Ingest it under another name with a validation set to train on it"
        )
    with (directory / f"{part}.parquet").open("rb") as stream:
        table = pq.read_table(stream, use_threads=False)
    width = table.schema.field("input_ids").type.list_size
    input_ids, labels = (
        cast("pa.FixedSizeListArray[Any]", table.column(name).combine_chunks()).flatten().to_numpy() for name in ("input_ids", "labels")
    )
    rows = ValidationRows.unweighted(input_ids.reshape(-1, width).astype(np.int64), labels.reshape(-1, width).astype(np.int64))
    if "weight" not in table.schema.names:
        return rows
    return replace(rows, weight_N=table.column("weight").to_numpy(), set_N=table.column("validation_set").to_numpy().astype(np.int64))


def trim_padding(input_ids_BT: Int64s, labels_BT: Int64s) -> tuple[Int64s, Int64s]:
    """The same rows without the columns in which nothing counts any more: short documents in long windows cost what they hold."""
    counted_T = (labels_BT != IGNORED).any(0)
    width = max(2, int(counted_T.nonzero()[0][-1]) + 1 if counted_T.any() else 2)
    return np.ascontiguousarray(input_ids_BT[:, :width]), np.ascontiguousarray(labels_BT[:, :width])


def unpadded(rows: ValidationRows) -> list[Int64s]:
    """The tokens of each row up to the last one that counts: the text itself, for methods that read words."""
    counted_NT = rows.labels_NT != IGNORED
    ends_N = np.where(counted_NT.any(1), counted_NT.shape[1] - counted_NT[:, ::-1].argmax(1), 0)
    return [row[:end] for row, end in zip(rows.input_ids_NT, ends_N, strict=True)]


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


def _texts(address: str, config: IngestConfig, source_dir: UPath) -> tuple[list[str], int]:
    files: list[str | UPath] = [source_dir / harvest.VALIDATION_FILE] if address == EMBEDDED else list(source.expand(address))
    limit = int(config.max_document_megabytes * 1_000_000)
    texts: list[str] = []
    reasons: Counter[str] = Counter()
    for file in files:
        for record in read_records(file, limit, Bounds.of(config)):
            if isinstance(record, Reject):
                reasons[record.reason] += 1
            else:
                texts.append(record.text)
    rejected = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
    if len(texts) < 2:
        raise ValueError(
            f"validation set {address!r} has {len(texts)} usable documents (rejected: {rejected or 'none'}); "
            "it takes at least two, one to guide and one to hold out"
        )
    if rejected:
        log.warning("prepare_validation: rejected lines of %s: %s", address, rejected)
    return texts, reasons.total()


def _write(path: UPath, inputs: list[Integers], labels: list[Integers], omega_K: Float64s) -> None:
    """One part of all K sets, one after the other."""
    num_tokens_K = np.array([(rows[:, 1:] != IGNORED).sum() for rows in labels])  # the first token of a row is not predicted
    weight_K = omega_K / omega_K.sum() * num_tokens_K.sum() / num_tokens_K
    set_N = np.repeat(np.arange(len(labels)), [len(rows) for rows in labels])
    schema = schemas.validation(labels[0].shape[1], several_sets=len(labels) > 1)
    kind = schema.field("input_ids").type
    flat = (np.concatenate(rows).reshape(-1) for rows in (inputs, labels))
    columns: list[pa.Array[Any]] = [pa.FixedSizeListArray.from_arrays(pa.array(values), type=kind) for values in flat]
    if len(labels) > 1:
        columns += [pa.array(weight_K[set_N], pa.float64()), pa.array(set_N, pa.int32())]
    with parquet_file(path, schema) as file:
        file.write_table(pa.Table.from_arrays(columns, schema=schema))
