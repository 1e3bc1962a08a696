"""Scores made elsewhere come in as a score run of their own, to be compared and combined with ours in SQL.

Any Parquet of ids and scores: a file, a glob or a directory, in any order, local or remote. Everything is checked before anything is
written. Rows are first dealt out to one scratch file per corpus shard (12 bytes a row), so memory holds one batch, then one shard.
"""

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from bliss_ops import scoring
from bliss_ops.config import check_name
from bliss_ops.corpus.addresses import Address, readable, resolve
from bliss_ops.corpus.arrays import Int64s
from bliss_ops.corpus.parquet import damage_is_a_value_error
from bliss_ops.lake import Corpus, sha256_of, shard_file
from bliss_ops.manifest import Artifact, Manifest, read_manifest
from bliss_ops.sharding import ROWS_PER_SHARD, Metrics, ShardRecord

log = logging.getLogger(__name__)

Id = Literal["sequence_id", "document_id"]
BATCH_ROWS = 1 << 18
ROW = np.dtype([("id", "<i8"), ("score", "<f4")])


def import_scores(
    corpus: Corpus, name: str, file: str, *, id_name: Id = "sequence_id", id_column: str | None = None, score_column: str = "score"
) -> Manifest:
    """Write `scores/<corpus>/<name>` from a Parquet of ids and scores, and load it into the score store.

    Scores of documents become scores of sequences: the mean over the tokens of those of its documents that have one. Not every
    sequence must be scored; the manifest's metrics say how many are.

    Args:
        corpus: the corpus the ids belong to.
        name: the score run's name; its id in the store is `scores/<corpus>/<name>`.
        file: a Parquet file, a glob or a directory; a local path, s3://, https:// or hf://.
        id_name: what the ids are of.
        id_column: the column with the ids, when it is not called as `id_name` says.
        score_column: the column with the scores; higher is better.

    Raises:
        ValueError: the file cannot be read, or its columns, ids or scores cannot be used; the message says which and what to do.
        ArtifactMismatchError: the name is taken by other scores.
    """
    from bliss_ops import store

    if id_name not in get_args(Id):
        raise ValueError(f"id {id_name!r} does not exist: use one of {', '.join(get_args(Id))}")
    manifest = _import(corpus, check_name(name), file, id_name, id_column or id_name, score_column)
    store.load_further(corpus.lake, corpus.name, name)
    return manifest


def _import(corpus: Corpus, name: str, file: str, id_name: Id, id_column: str, score_column: str) -> Manifest:
    sequences = read_manifest(corpus.sequences, made_by=f"bliss pack {corpus.name}")
    files = _files(file)
    settings = {"method": name, "id": id_name, "id_column": id_column, "score_column": score_column, "content": _digest(files)}
    directory = corpus.lake.further_scores(corpus.name, name)
    artifact = Artifact(corpus.lake, directory, stage="import_scores", identity=settings, inputs=[sequences])
    if manifest := artifact.finished():
        return manifest
    with TemporaryDirectory(prefix="bliss-import-") as scratch:
        known = _Known(corpus, id_name, frozenset(sequences.shards))
        staged = _stage(files, Path(scratch), id_column, score_column, known)
        shards = [shard for shard in sorted(staged.shards) if len(known.scores(shard, *staged.read(shard))[0])]
        if not shards:
            raise ValueError(f"{file} scores no sequence of corpus {corpus.name!r}")

        def make_worker() -> Any:
            return lambda shard: scoring.write_shard(directory, shard, *known.scores(shard, *staged.read(shard)))

        more = {"num_candidates": int(sequences.metrics["num_sequences"]), "source": [entry.uri.rsplit("/", 1)[-1] for entry in files]}
        manifest = artifact.produce_shards(make_worker, shards, check=partial(_check, more=more))
    assert manifest is not None, "all shards were asked for"
    counts = manifest.metrics
    log.info("import_scores: %s of %s sequences have a score", f"{counts['num_sequences']:,}", f"{counts['num_candidates']:,}")
    return manifest


def _check(records: list[ShardRecord], more: Metrics) -> Metrics:
    return scoring.check(records) | more


@dataclass(frozen=True)
class _Known:
    """The ids of the corpus, and how scores of documents become scores of its sequences."""

    corpus: Corpus
    id_name: Id
    shards: frozenset[int]

    def refuse(self, unknown_N: Int64s, among: str) -> None:
        """Raise ValueError when there are any ids that the corpus does not have."""
        if len(unknown_N):
            raise ValueError(
                f"{len(unknown_N):,} of {among} are no {self.id_name} of corpus {self.corpus.name!r}, the first is {unknown_N[0]}: an id "
                f"is its shard times {ROWS_PER_SHARD:,} plus its row; if they are ids of another kind, say so with --id"
            )

    def scores(self, shard: int, ids_N: Int64s, score_N: np.ndarray) -> tuple[Int64s, np.ndarray]:
        """Ids and float32 scores of the shard's sequences that have one, from the rows of the file, which are sorted by id.

        Raises:
            ValueError: an id is there twice, or is none of the corpus.
        """
        if len(twice := ids_N[1:][ids_N[1:] == ids_N[:-1]]):
            raise ValueError(
                f"{len(twice):,} rows of shard {shard} repeat a {self.id_name}, the first is {twice[0]}: keep one score of each, for "
                "example their mean"
            )
        directory = self.corpus.sequences if self.id_name == "sequence_id" else self.corpus.documents
        known = _column(directory, shard, self.id_name)
        self.refuse(ids_N[~np.isin(ids_N, known)], f"the {len(ids_N):,} ids of shard {shard}")
        if self.id_name == "sequence_id":
            return ids_N, score_N
        spans = self.corpus.sequences / "spans"
        document_P, sequence_P, tokens_P = (_column(spans, shard, name) for name in ("document_id", "sequence_id", "num_tokens"))
        place_P = np.minimum(np.searchsorted(ids_N, document_P), len(ids_N) - 1)
        has_score_P = ids_N[place_P] == document_P
        sequence_S, row_P = np.unique(sequence_P[has_score_P], return_inverse=True)
        weight_P = tokens_P[has_score_P].astype(np.float64)
        total_S = np.bincount(row_P, weights=weight_P * score_N[place_P[has_score_P]], minlength=len(sequence_S))
        return sequence_S, (total_S / np.bincount(row_P, weights=weight_P, minlength=len(sequence_S))).astype(np.float32)


@dataclass
class _Staged:
    """Rows of the file, dealt out to one scratch file per corpus shard."""

    directory: Path
    shards: set[int] = field(default_factory=set)

    def append(self, ids_B: Int64s, score_B: np.ndarray) -> None:
        rows_B = np.empty(len(ids_B), ROW)
        rows_B["id"], rows_B["score"] = ids_B, score_B
        shard_B = ids_B // ROWS_PER_SHARD
        for shard in np.unique(shard_B).tolist():
            with (self.directory / f"{shard}.rows").open("ab") as file:
                file.write(rows_B[shard_B == shard].tobytes())
            self.shards.add(shard)

    def read(self, shard: int) -> tuple[Int64s, np.ndarray]:
        """Ids, sorted, and their scores."""
        rows_N = np.fromfile(self.directory / f"{shard}.rows", ROW)
        rows_N = rows_N[np.argsort(rows_N["id"], kind="stable")]
        return rows_N["id"], rows_N["score"] + np.float32(0)  # -0.0 becomes 0.0


def _stage(files: list[Address], scratch: Path, id_column: str, score_column: str, known: _Known) -> _Staged:
    """Deal the rows out; ids of shards that the corpus does not have are refused first, or each would get a file of its own."""
    staged, shards = _Staged(scratch), np.array(sorted(known.shards))
    for address in files:
        with readable(address.uri, address.scheme), damage_is_a_value_error(address.uri), address.open() as stream:
            for ids_B, score_B in _batches(address.uri, stream, id_column, score_column):
                known.refuse(ids_B[~np.isin(ids_B // ROWS_PER_SHARD, shards)], f"{len(ids_B):,} ids in {address.uri}")
                staged.append(ids_B, score_B)
    return staged


def _batches(uri: str, stream: Any, id_column: str, score_column: str) -> Iterator[tuple[Int64s, np.ndarray]]:
    """Ids (int64) and scores (float32) of one file.

    Raises:
        ValueError: it is not Parquet, a column is missing or of another type, or a value cannot be used.
    """
    file = pq.ParquetFile(stream)
    schema = file.schema_arrow
    for name, option in ((id_column, "--id-column"), (score_column, "--score-column")):
        if name not in schema.names:
            raise ValueError(f"{uri} has no column {name!r} (it has {', '.join(schema.names)}): name the right one with {option}")
    if not pa.types.is_integer(kind := schema.field(id_column).type):
        raise ValueError(f"{uri}: column {id_column!r} is {kind}, but ids are integers")
    kind = schema.field(score_column).type
    if not (pa.types.is_floating(kind) or pa.types.is_integer(kind) or pa.types.is_decimal(kind)):
        raise ValueError(f"{uri}: column {score_column!r} is {kind}, but scores are numbers")
    first = 0
    for batch in file.iter_batches(batch_size=BATCH_ROWS, columns=[id_column, score_column], use_threads=False):
        ids, scores = batch[id_column], batch[score_column]
        for name, column in ((id_column, ids), (score_column, scores)):
            if column.null_count:
                raise ValueError(
                    f"{uri}: {column.null_count:,} of rows {first:,} to {first + len(batch):,} have no {name!r}: leave them out"
                )
        ids_B = pc.cast(ids, pa.int64()).to_numpy(zero_copy_only=False)
        with np.errstate(over="ignore"):  # what does not fit is inf, and refused below
            score_B = pc.cast(scores, pa.float64()).to_numpy(zero_copy_only=False).astype(np.float32)
        if not (finite_B := np.isfinite(score_B)).all():
            where = int(np.flatnonzero(~finite_B)[0])
            raise ValueError(
                f"{uri}: {int((~finite_B).sum()):,} scores in rows {first:,} to {first + len(batch):,} are not finite float32 numbers, the "
                f"first is {scores[where]} of id {ids_B[where]}: leave such rows out"
            )
        if (ids_B < 0).any():
            raise ValueError(f"{uri}: ids are not negative, but there is {ids_B.min()}")
        yield ids_B, score_B
        first += len(batch)


def _files(file: str) -> list[Address]:
    """The Parquet files that a path, glob or directory names, sorted.

    Raises:
        ValueError: there is none, or it cannot be reached.
    """
    address = resolve(file)
    with readable(address.uri, address.scheme):
        if any(character in address.path for character in "*?["):
            paths = sorted(address.fs.glob(address.path))
        elif address.fs.isdir(address.path):
            paths = sorted(path for path in address.fs.find(address.path) if path.endswith(".parquet"))
        else:
            return [address]
    if not paths:
        raise ValueError(f"{file} names no Parquet file: give a file, a glob in quotes, or a directory with *.parquet in it")
    return [Address(path, address.scheme, address.fs, path) for path in paths]


def _digest(files: list[Address]) -> str:
    """Hash of the content: the same scores under another path are the same scores."""
    hashes = []
    for address in files:
        with readable(address.uri, address.scheme), address.open() as stream:
            hashes.append(sha256_of(stream))
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _column(directory: Any, shard: int, name: str) -> np.ndarray:
    with shard_file(directory, shard).open("rb") as file:
        return pq.read_table(file, columns=[name])[name].to_numpy()
