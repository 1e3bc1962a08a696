"""Streaming Parquet output: a file grows row group by row group on disk, and appears under its name only when it is complete.

The bytes depend on the rows alone: fixed compression, no statistics of the machine, row groups cut by the caller's counts.
"""

import errno
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
        OSError: the disk is full or the path cannot be written; the message names the path, and no part of the file is left.
    """
    with naming(path), atomic_file(path) as file, pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=dictionary) as writer:
        yield writer


@contextmanager
def naming(path: UPath) -> Iterator[None]:
    """Give an OSError raised while `path` is written its name and, for a full disk, what to do."""
    try:
        yield
    except OSError as error:
        full = error.errno == errno.ENOSPC or "No space left" in str(error)
        advice = "the disk is full: free space and run the same command again, it resumes" if full else str(error)
        raise OSError(errno.ENOSPC if full else error.errno, f"cannot write: {advice}", str(path)) from error
