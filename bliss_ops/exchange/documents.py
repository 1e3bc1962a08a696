"""The documents of a selection as JSON lines or Parquet: text, score, and where each came from.

A selection is of sequences. A document counts as selected when at least `min_share` of its tokens are in selected sequences; it is
written whole. One file per corpus shard, row group by row group, so memory holds 8 MB of text whatever the size of the corpus.
"""

import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from bliss_ops import schemas
from bliss_ops.exchange.selected import DocumentShares, Selected, document_shares
from bliss_ops.lake import atomic_file, shard_file
from bliss_ops.manifest import describe
from bliss_ops.sharding import Metrics, ShardRecord, sum_metrics

Compression = Literal["zstd", "gzip", "none"]
ENDINGS: dict[Compression, str] = {"zstd": ".zst", "gzip": ".gz", "none": ""}

_STORED = ["document_id", "source", "url", "domain", "timestamp", "text"]


def make_worker(selected: Selected, directory: UPath, format_name: str, min_share: float, compression: Compression) -> Any:
    """A worker that writes the selected documents of one shard; a shard without any writes no file."""
    origin = selected.origin

    def export_shard(shard: int) -> ShardRecord:
        shares = document_shares(selected, shard)
        least_D = np.maximum(np.ceil(min_share * shares.num_tokens_D - 1e-6), 1)  # 0.7 of 10 is 7.000...01
        chosen_D = shares.num_selected_tokens_D >= least_D
        metrics: dict[str, int | float] = {
            "num_documents": int(chosen_D.sum()),
            "num_tokens": int(shares.num_tokens_D[chosen_D].sum()),
            "num_selected_tokens": int(shares.num_selected_tokens_D[chosen_D].sum()),
        }
        if not chosen_D.any():
            return ShardRecord(shard=shard, outputs=[], metrics=metrics)
        tables = _tables(shard_file(selected.run.corpus.documents, shard), shares, chosen_D, origin)
        ending = ".parquet" if format_name == "parquet" else f".jsonl{ENDINGS[compression]}"
        path = directory / f"shard-{shard:05d}{ending}"
        with atomic_file(path) as file:
            write: Callable[..., None] = _write_parquet if format_name == "parquet" else _write_json_lines
            write(file, tables, compression)
        return ShardRecord(shard=shard, outputs=[describe(directory, path.name, rows=int(chosen_D.sum()))], metrics=metrics)

    return export_shard


def check(records: list[ShardRecord], min_share: float, where: UPath) -> Metrics:
    """Counts of the whole export.

    Raises:
        ValueError: no document has enough of its tokens selected.
    """
    metrics = sum_metrics(records)
    if not metrics.get("num_documents"):
        raise ValueError(
            f"no document has {min_share:.0%} of its tokens in selected sequences: lower --min-share (and delete {where} or name another "
            "--output), or take the tokens as they were selected with --format nanogpt or megatron"
        )
    return metrics


def _tables(source: UPath, shares: DocumentShares, chosen_D: np.ndarray, origin: dict[str, str | int]) -> Iterator[pa.Table]:
    """The chosen documents of a shard, a row group of it at a time."""
    wanted = shares.document_id_D[chosen_D]
    score, num_tokens, num_selected = (each[chosen_D] for each in (shares.score_D, shares.num_tokens_D, shares.num_selected_tokens_D))
    with source.open("rb") as stream:
        file = pq.ParquetFile(stream)
        for group in range(file.num_row_groups):
            ids = file.read_row_group(group, columns=["document_id"], use_threads=False)["document_id"].to_numpy()
            mask = np.isin(ids, wanted)
            if not mask.any():
                continue
            table = file.read_row_group(group, columns=_STORED, use_threads=False).filter(pa.array(mask))
            at = np.searchsorted(wanted, table["document_id"].to_numpy())
            found: dict[str, Any] = {name: table[name] for name in _STORED}
            found |= {
                "score": pa.array(score[at], from_pandas=True),
                "num_tokens": num_tokens[at],
                "num_selected_tokens": num_selected[at],
            }
            found |= {
                name: pa.repeat(pa.scalar(value, schemas.EXPORTED_DOCUMENTS.field(name).type), len(table)) for name, value in origin.items()
            }
            yield pa.table({name: found[name] for name in schemas.EXPORTED_DOCUMENTS.names}, schema=schemas.EXPORTED_DOCUMENTS)


def _write_parquet(file: Path, tables: Iterator[pa.Table], compression: Compression) -> None:
    with pq.ParquetWriter(file, schemas.EXPORTED_DOCUMENTS, compression=compression) as writer:
        for table in tables:
            writer.write_table(table)


def _write_json_lines(file: Path, tables: Iterator[pa.Table], compression: Compression) -> None:
    with _compressed(file, compression) as stream:
        for table in tables:
            for batch in table.to_batches(max_chunksize=256):
                lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in batch.to_pylist())
                stream.write("".join(lines).encode())


@contextmanager
def _compressed(file: Path, compression: Compression) -> Iterator[IO[bytes]]:
    """The bytes depend on the content alone: no name or time of day in the header of a gzip file."""
    with file.open("wb") as plain:
        if compression == "gzip":
            with gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=plain, mtime=0) as stream:
                yield cast("IO[bytes]", stream)
        elif compression == "zstd":
            with pa.CompressedOutputStream(pa.PythonFile(cast("Any", plain), mode="w"), "zstd") as stream:
                yield cast("IO[bytes]", stream)
        else:
            yield plain
