"""The text of chosen documents, read back by row group: the text of a corpus is never loaded whole.

A document's id is its shard and its row, so the footer of a shard says which row groups to read; a row group holds 8 MB of text, and one
is held at a time. Works the same on an object store, where only the chosen row groups travel.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bliss_ops.lake import Corpus, shard_file
from bliss_ops.sharding import ROWS_PER_SHARD

COLUMNS = ["document_id", "source", "url", "domain", "text"]


@dataclass(frozen=True)
class DocumentText:
    """One document as it was ingested."""

    document_id: int
    source: str
    url: str
    domain: str
    text: str  # its beginning, where the reader asked for no more
    num_characters: int  # of the whole text

    @property
    def is_cut(self) -> bool:
        return len(self.text) < self.num_characters


def read_documents(corpus: Corpus, document_ids: Iterable[int], *, most_characters: int | None = None) -> dict[int, DocumentText]:
    """The documents with these ids, in the order of their ids; ids that the corpus does not have are left out.

    Args:
        corpus: the corpus they belong to.
        document_ids: any number, from any shards, repeated or not.
        most_characters: keep only the beginning of each text, to bound what many documents take.
    """
    return {document.document_id: document for document in iter_documents(corpus, document_ids, most_characters=most_characters)}


def iter_documents(corpus: Corpus, document_ids: Iterable[int], *, most_characters: int | None = None) -> Iterator[DocumentText]:
    """As `read_documents`, one at a time: memory holds one row group, however many are asked for."""
    rows_of_shard: dict[int, list[int]] = defaultdict(list)
    for document_id in sorted(set(document_ids)):
        shard, row = divmod(document_id, ROWS_PER_SHARD)
        rows_of_shard[shard].append(row)
    for shard, rows in rows_of_shard.items():
        path = shard_file(corpus.documents, shard)
        if shard < 0 or not path.is_file():
            continue
        with path.open("rb") as stream:
            file = pq.ParquetFile(stream)
            sizes = [file.metadata.row_group(group).num_rows for group in range(file.metadata.num_row_groups)]
            ends = np.cumsum(sizes)
            inside = np.asarray([row for row in rows if row < file.metadata.num_rows], dtype=np.int64)
            groups = np.searchsorted(ends, inside, side="right")
            for group in np.unique(groups).tolist():
                first = int(ends[group]) - sizes[group]
                table = file.read_row_group(group, columns=COLUMNS, use_threads=False).take(inside[groups == group] - first)
                lengths = pc.utf8_length(table["text"]).to_pylist()
                if most_characters is not None:
                    beginnings = pc.utf8_slice_codeunits(table["text"], 0, most_characters)
                    table = table.set_column(COLUMNS.index("text"), "text", beginnings)
                for found, length in zip(table.to_pylist(), lengths, strict=True):
                    yield DocumentText(
                        found["document_id"], found["source"], found["url"] or "", found["domain"] or "", found["text"], length
                    )
