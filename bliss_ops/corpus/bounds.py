"""How much of a source file is read, whatever it claims to be.

Ten megabytes of gzip can hold ten gigabytes of blanks, a Parquet file a gigabyte that a dictionary repeats for every row, and a server may
go on sending for ever. Reading stops with a ValueError at whichever comes first: the size that the file was listed with, a share of
plain bytes per stored byte that text does not have, the most bytes a file may have. Memory holds a block at a time all along.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import pyarrow.parquet as pq

from bliss_ops.config import IngestConfig

FREE_BYTES = 64 << 20  # plain bytes that no expansion is asked about: tiny files of one repeated line are not attacks
BATCH_BYTES = 1 << 30  # of values that one batch of Parquet rows may repeat from a dictionary
ROWS = 64  # Parquet rows in memory at a time
BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one source file may come to."""

    expansion: float = 200.0  # plain bytes per stored byte
    file_bytes: int = 1_000_000_000_000  # plain bytes
    listed_bytes: int | None = None  # stored bytes, as they were listed; None: the store did not say

    @classmethod
    def of(cls, config: IngestConfig, listed_bytes: int | None = None) -> "Bounds":
        return cls(config.max_expansion, int(config.max_file_gigabytes * 1_000_000_000), listed_bytes)


class Counted(io.RawIOBase):
    """A stream that counts what is read from it, and fails where that is too much."""

    def __init__(self, stream: Any, uri: str, bounds: Bounds, stored: "Counted | None" = None) -> None:
        """Args:
        stream: the file, or with `stored` what decompresses it.
        uri: of the file, for messages.
        bounds: what it may come to.
        stored: the file that `stream` decompresses.
        """
        self.stream, self.uri, self.bounds, self.stored = stream, uri, bounds, stored
        self.num_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count: int = self.stream.readinto(buffer)
        self.num_bytes += count
        self._check()
        return count

    def _check(self) -> None:
        bounds, stored = self.bounds, self.stored
        if stored is None:
            if bounds.listed_bytes is not None and self.num_bytes > bounds.listed_bytes:
                raise ValueError(
                    f"{self.uri} has more than the {bounds.listed_bytes:,} bytes it was listed with: it has changed since, ingest it "
                    "under a new corpus name"
                )
        elif self.num_bytes > max(FREE_BYTES, bounds.expansion * stored.num_bytes):
            raise ValueError(
                f"{self.uri} unpacks to more than {bounds.expansion:g} times its size ({self.num_bytes:,} bytes from "
                f"{stored.num_bytes:,}): text does not; raise ingest.max_expansion if this file is meant to"
            )
        if self.num_bytes > bounds.file_bytes:
            raise ValueError(
                f"{self.uri} has more than {bounds.file_bytes / 1e9:g} GB: split it, or raise ingest.max_file_gigabytes if it is meant to"
            )


@contextmanager
def plain_bytes(file: BinaryIO, uri: str, ending: str, bounds: Bounds) -> Iterator[BinaryIO]:
    """The plain bytes of `file`, behind a buffer so that lines are split in C."""
    import gzip

    import pyarrow as pa

    stored = Counted(file, uri, bounds)
    if ending == ".gz":
        with gzip.GzipFile(fileobj=cast("Any", io.BufferedReader(stored, BLOCK)), mode="rb") as plain:
            yield _buffered(Counted(plain, uri, bounds, stored))
    elif ending == ".zst":
        # Arrow's reader, because the zstandard package's takes a cut file for a complete one.
        with pa.CompressedInputStream(pa.PythonFile(cast("Any", io.BufferedReader(stored, BLOCK)), mode="r"), "zstd") as unpacked:
            yield _buffered(Counted(unpacked, uri, bounds, stored))
    else:
        yield _buffered(stored)  # the `readline` of a remote file takes no limit


def _buffered(stream: Counted) -> BinaryIO:
    return cast("BinaryIO", io.BufferedReader(stream, BLOCK))


def row_groups(file: pq.ParquetFile, num_stored_bytes: int, uri: str, bounds: Bounds) -> Iterator[tuple[int, int]]:
    """(row group, rows per batch) of a Parquet file, by what its footer says.

    Only row groups are asked: for a column whose statistics are damaged, Arrow 26 ends the process with an exception of C++.

    Raises:
        ValueError: it unpacks to more than text does, or to more than a file may have.
    """
    num_bytes = 0
    for group in range(file.metadata.num_row_groups):
        plain = file.metadata.row_group(group).total_byte_size
        num_bytes += plain
        if num_bytes > max(FREE_BYTES, bounds.expansion * num_stored_bytes):
            raise ValueError(
                f"{uri} unpacks to more than {bounds.expansion:g} times its size ({num_bytes:,} bytes from {num_stored_bytes:,} up to row "
                f"group {group}): text does not; raise ingest.max_expansion if this file is meant to"
            )
        if num_bytes > bounds.file_bytes:
            raise ValueError(f"{uri} has more than {bounds.file_bytes / 1e9:g} GB: split it, or raise ingest.max_file_gigabytes")
        # A dictionary may repeat its largest value for every row.
        yield group, max(1, min(ROWS, BATCH_BYTES // max(plain, 1)))
