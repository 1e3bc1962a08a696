"""Source shards to documents, one to one, streaming.

Two files per shard: its documents, and its rejects with line number and reason. Memory holds one row group (8 MB of text), so
a shard of any size passes. A document's id is its shard and its row among the accepted ones.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from bliss_ops import schemas
from bliss_ops.config import IngestConfig
from bliss_ops.corpus.bounds import Bounds
from bliss_ops.corpus.parquet import parquet_file
from bliss_ops.corpus.readers import Document, Reject, read_records
from bliss_ops.lake import shard_file
from bliss_ops.manifest import describe
from bliss_ops.sharding import ROWS_PER_SHARD, Metrics, ShardRecord, sum_metrics

log = logging.getLogger(__name__)

_ROWS_PER_GROUP = 8192
_BYTES_PER_GROUP = 8 << 20
_REJECTED = "rejected: "


def make_worker(source_dir: UPath, documents_dir: UPath, config: IngestConfig) -> Callable[[int], ShardRecord]:
    """A worker that turns source shard number `shard` into `shard-00042.parquet` and `rejects/shard-00042.parquet`."""
    listing = json.loads((source_dir / "shards.json").read_bytes())
    limit = int(config.max_document_megabytes * 1_000_000)

    def extract_shard(shard: int) -> ShardRecord:
        entry = listing[shard]
        # A cut file of this machine may be put right in its place; what a server has may not grow while it is read.
        bounds = Bounds.of(config, entry["bytes"] if "://" in entry["uri"] else None)
        return _extract(shard, locate(source_dir, entry["uri"]), entry["source"], documents_dir, limit, bounds)

    return extract_shard


def locate(source_dir: UPath, uri: str) -> str | UPath:
    """A listed address: harvested shards are listed relative to the source artifact, so that a lake can be moved."""
    return uri if "://" in uri or uri.startswith("/") else source_dir / uri


def check(records: list[ShardRecord]) -> Metrics:
    """Counts of the whole corpus.

    Raises:
        ValueError: no shard has a usable document.
    """
    metrics = sum_metrics(records)
    if not metrics.get("num_documents"):
        reasons = [f"{count} {name.removeprefix(_REJECTED)}" for name, count in sorted(metrics.items()) if name.startswith(_REJECTED)]
        found = f"all {metrics['num_rejects']} lines were rejected ({', '.join(reasons)})" if reasons else "the shards are empty"
        raise ValueError(
            f"the corpus has no usable document in {len(records)} shards: {found}; shards hold one JSON object per line with a `text` key"
        )
    return metrics


def _extract(shard: int, uri: str | UPath, source: str, documents_dir: UPath, limit: int, bounds: Bounds) -> ShardRecord:
    path = shard_file(documents_dir, shard)
    rejects_path = shard_file(documents_dir / "rejects", shard)
    reasons: Counter[str] = Counter()
    num_bytes = 0
    with parquet_file(path, schemas.DOCUMENTS) as documents_file, parquet_file(rejects_path, schemas.REJECTS) as rejects_file:
        documents, rejects = _RowGroups(documents_file, schemas.DOCUMENTS), _RowGroups(rejects_file, schemas.REJECTS)
        for record in read_records(uri, limit, bounds):
            if isinstance(record, Reject):
                reasons[record.reason] += 1
                rejects.append((record.line_number, record.reason, record.raw), len(record.raw))
            else:
                if documents.num_rows == ROWS_PER_SHARD:
                    raise ValueError(f"{uri} has more than {ROWS_PER_SHARD:,} documents: split the file")
                num_bytes += record.num_bytes
                documents.append(_row(shard * ROWS_PER_SHARD + documents.num_rows, source, record), record.num_bytes)
        documents.flush()
        rejects.flush()
    if documents.num_rows == 0:
        log.warning("extract: shard %d (%s) has no usable document (%d rejects)", shard, uri, rejects.num_rows)
    elif reasons:
        log.warning("extract: shard %d (%s): %d of %d lines rejected", shard, uri, rejects.num_rows, rejects.num_rows + documents.num_rows)
    metrics: dict[str, int | float] = {"num_documents": documents.num_rows, "num_rejects": rejects.num_rows, "num_bytes": num_bytes}
    metrics |= {"num_empty_shards": int(documents.num_rows == 0)} | {_REJECTED + reason: count for reason, count in sorted(reasons.items())}
    outputs = [
        describe(documents_dir, path.name, documents.num_rows),
        describe(documents_dir, f"rejects/{rejects_path.name}", rejects.num_rows),
    ]
    return ShardRecord(shard=shard, outputs=outputs, metrics=metrics)


def _row(document_id: int, source: str, document: Document) -> tuple[Any, ...]:
    return (document_id, source, document.url, document.domain, document.timestamp, document.text, document.num_bytes)


class _RowGroups:
    """Rows gathered into row groups of bounded size; the cut depends on the rows alone, so equal input gives equal bytes."""

    def __init__(self, writer: pq.ParquetWriter, schema: pa.Schema) -> None:
        self.writer, self.schema = writer, schema
        self.num_rows = 0
        self._rows: list[tuple[Any, ...]] = []
        self._bytes = 0

    def append(self, row: tuple[Any, ...], size: int) -> None:
        self._rows.append(row)
        self._bytes += size
        self.num_rows += 1
        if len(self._rows) >= _ROWS_PER_GROUP or self._bytes >= _BYTES_PER_GROUP:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            columns = [pa.array(values, type=field.type) for values, field in zip(zip(*self._rows, strict=True), self.schema, strict=True)]
            self.writer.write_table(pa.Table.from_arrays(columns, schema=self.schema))
            self._rows, self._bytes = [], 0
