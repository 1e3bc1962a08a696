"""Streaming Parquet output: a file grows row group by row group on disk, and appears under its name only when it is complete.

The bytes depend on the rows alone: fixed compression, no statistics of the machine, row groups cut by the caller's counts.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from bliss_ops.lake import atomic_file


@contextmanager
def parquet_file(path: UPath, schema: pa.Schema, *, dictionary: bool = True) -> Iterator[pq.ParquetWriter]:
    """Yield a writer whose rows become `path` in one step at the end.

    Raises:
        OSError: as `lake.atomic_file`; no part of the file is left.
    """
    with atomic_file(path) as file, pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=dictionary) as writer:
        yield writer
