"""What a round selected, as the exports read it: its documents with their share, and its tokens with their pieces.

A selection is of sequences, not of documents: a sequence holds pieces of several documents, and a long document has pieces in many
sequences of which some may be selected. One shard at a time is in memory: its ids and spans, and one batch of its tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from bliss_ops.collected import find_collected
from bliss_ops.corpus.arrays import Int64s, Integers
from bliss_ops.corpus.reading import columns
from bliss_ops.lake import Run, shard_file
from bliss_ops.manifest import Manifest, find_manifest, read_manifest
from bliss_ops.schemas import SCORES, SEQUENCES_PER_ROW_GROUP

_BATCH_ROWS = 16 * SEQUENCES_PER_ROW_GROUP


@dataclass(frozen=True)
class Selected:
    """The finished selection of one round.

    Raises (its properties):
        ValueError: a stage before it is missing; the message names the command that makes it.
    """

    run: Run
    round_number: int

    @property
    def directory(self) -> UPath:
        return self.run.round(self.round_number)

    @cached_property
    def selection(self) -> Manifest:
        return read_manifest(self.directory / "selection", made_by=f"bliss select {self.run.name} --round {self.round_number}")

    @cached_property
    def scores(self) -> Manifest:
        return read_manifest(self.directory / "scores", made_by=f"bliss score {self.run.name} --round {self.round_number}")

    @cached_property
    def sequences(self) -> Manifest:
        return read_manifest(self.run.corpus.sequences, made_by=f"bliss pack {self.run.corpus.name}")

    @cached_property
    def documents(self) -> Manifest:
        return read_manifest(self.run.corpus.documents, made_by=f"bliss extract {self.run.corpus.name}")

    @property
    def shards(self) -> list[int]:
        """Shards with at least one selected sequence, in order."""
        return list(self.selection.metrics["shards"])

    @property
    def origin(self) -> dict[str, str | int]:
        """Where everything in an export comes from: a column each in documents, a line each in the card."""
        selector = find_manifest(self.directory / "selector")
        return {
            "corpus": self.run.corpus.name,
            "run": self.run.name,
            "round": self.round_number,
            "selector_fingerprint": selector.fingerprint if selector else "",
        }


@dataclass(frozen=True)
class DocumentShares:
    """The documents of one shard, in order of their ids: D of them."""

    document_id_D: Int64s
    score_D: np.ndarray  # token-weighted mean over the document's sequences; NaN where none was scored
    num_tokens_D: Int64s  # in packed sequences, end-of-text included
    num_selected_tokens_D: Int64s


def document_shares(selected: Selected, shard: int) -> DocumentShares:
    """How much of every document of the shard is in selected sequences, and its score."""
    spans = _read(selected.run.corpus.sequences / "spans", shard)
    sequence_id_P, document_id_P, num_tokens_P = (spans[name].to_numpy() for name in ("sequence_id", "document_id", "num_tokens"))
    scores = _read(selected.directory / "scores", shard, SCORES)
    order = np.argsort(scored_id_N := scores["sequence_id"].to_numpy(), kind="stable")
    place_P = np.minimum(np.searchsorted(scored_id_N, sequence_id_P, sorter=order), len(order) - 1)
    is_scored_P = scored_id_N[order][place_P] == sequence_id_P
    score_P = np.where(is_scored_P, scores["score"].to_numpy()[order][place_P], 0.0).astype(np.float64)
    is_selected_P = np.isin(sequence_id_P, _read(selected.directory / "selection", shard, SCORES)["sequence_id"].to_numpy())
    document_id_D, document_P = np.unique(document_id_P, return_inverse=True)

    def total(weight_P: np.ndarray) -> np.ndarray:
        return np.bincount(document_P, weights=weight_P, minlength=len(document_id_D))

    scored_D = total(num_tokens_P * is_scored_P)
    score_D = np.divide(total(num_tokens_P * score_P), scored_D, out=np.full(len(scored_D), np.nan), where=scored_D > 0)
    return DocumentShares(
        document_id_D, score_D, total(num_tokens_P).astype(np.int64), total(num_tokens_P * is_selected_P).astype(np.int64)
    )


@dataclass(frozen=True)
class Pieces:
    """Selected tokens in corpus order, cut into pieces of documents: P pieces whose lengths add up to the tokens."""

    tokens: Integers
    length_P: Int64s
    document_id_P: Int64s
    continues_P: np.ndarray  # the piece goes on where the one before it, also of an earlier batch, stopped


def iter_pieces(selected: Selected) -> Iterator[Pieces]:
    """The tokens of all selected sequences, in order of their ids, batch by batch.

    Raises:
        ValueError: a selected sequence is not in the corpus any more.
    """
    subset = selected.directory / "subset"
    source = subset if find_manifest(subset) and not find_collected(subset) else selected.run.corpus.sequences
    last_sequence, last_document = -2, -1
    for shard in selected.shards:
        wanted = _read(selected.directory / "selection", shard, SCORES)["sequence_id"].to_numpy()
        spans = _read(selected.run.corpus.sequences / "spans", shard)
        spans = spans.filter(pa.array(np.isin(spans["sequence_id"].to_numpy(), wanted)))
        sequence_id_S, document_id_S, num_tokens_S = (spans[name].to_numpy() for name in ("sequence_id", "document_id", "num_tokens"))
        num_found = 0
        with shard_file(source, shard).open("rb") as stream:
            for batch in pq.ParquetFile(stream).iter_batches(batch_size=_BATCH_ROWS, use_threads=False):
                ids_B, tokens_BT = columns(pa.Table.from_batches([batch]))
                chosen_B = np.isin(ids_B, wanted)
                if not chosen_B.any():
                    continue
                ids_B, tokens_BT = ids_B[chosen_B], tokens_BT[chosen_B]
                num_found += len(ids_B)
                first, end = np.searchsorted(sequence_id_S, [ids_B[0], ids_B[-1] + 1])
                sequence_id_P, document_id_P = sequence_id_S[first:end], document_id_S[first:end]
                before_P = np.concatenate([[last_sequence], sequence_id_P[:-1]])
                same_P = document_id_P == np.concatenate([[last_document], document_id_P[:-1]])
                last_sequence, last_document = int(sequence_id_P[-1]), int(document_id_P[-1])
                assert num_tokens_S[first:end].sum() == tokens_BT.size, "the spans of a sequence add up to its tokens"
                yield Pieces(
                    tokens_BT.reshape(-1), num_tokens_S[first:end].astype(np.int64), document_id_P, same_P & (sequence_id_P == before_P + 1)
                )
        if num_found != len(wanted):
            raise ValueError(
                f"{len(wanted)} sequences of shard {shard} are selected but {num_found} of them are in {source}: the corpus changed; "
                f"delete {selected.directory / 'selection'} and run `bliss select {selected.run.name}` again"
            )


def _read(directory: UPath, shard: int, schema: pa.Schema | None = None) -> pa.Table:
    with shard_file(directory, shard).open("rb") as file:
        return pq.read_table(file, schema=schema)
