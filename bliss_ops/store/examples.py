"""Example sequences of a score run: a few of each decile, of the selected and the rejected ones, and the two ends.

Which ones is decided by a hash of their ids, so another loader, or a rebuilt store, shows the same. One pass keeps the sequences with
the smallest hashes, a few thousand of all and a few of the selected, and the deciles find theirs among them.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from bliss_ops.selection import OrderStatistic
from bliss_ops.selectors.random import splitmix64
from bliss_ops.sharding import ROWS_PER_SHARD
from bliss_ops.store.transactions import execute

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

PER_CATEGORY = 8
SAMPLE = 4096  # about 400 of each decile

# The document with most tokens of each sequence.
DOCUMENTS_OF = """
select sequence_id, arg_max(document_id, (num_tokens, -document_id)) as document_id from spans
where sequence_set = $sequence_set and list_contains($shards, shard_id) and sequence_id in (select unnest($sequences))
group by sequence_id
"""


class Examples:
    """Collects candidates shard by shard."""

    def __init__(self) -> None:
        self.sample, self.selected = _Candidates(SAMPLE, np.uint64), _Candidates(PER_CATEGORY, np.uint64)
        self.best, self.worst = _Candidates(PER_CATEGORY, np.float32), _Candidates(PER_CATEGORY, np.float32)

    def add(self, id_N: np.ndarray, score_N: np.ndarray, selected_id_M: np.ndarray, selected_score_M: np.ndarray) -> None:
        hash_N, hash_M = splitmix64(id_N.astype(np.uint64)), splitmix64(selected_id_M.astype(np.uint64))
        few = self.sample.positions(hash_N)
        self.sample.add(hash_N[few], id_N[few], score_N[few], np.isin(id_N[few], selected_id_M))
        few = self.selected.positions(hash_M)
        self.selected.add(hash_M[few], selected_id_M[few], selected_score_M[few])
        for candidates, key_N in ((self.best, -score_N), (self.worst, score_N)):
            few = candidates.positions(key_N)
            candidates.add(key_N[few], id_N[few], score_N[few])

    def rows(self, con: "DuckDBPyConnection", names: dict[str, str], ends: list[OrderStatistic]) -> list[dict[str, Any]]:
        """Rows of `example_sequences`; `ends` holds the lowest score of each decile, the best decile first."""
        categories = {"selected": self.selected.chosen(), "best": self.best.chosen(), "worst": self.worst.chosen()}
        if len(self.selected.id):
            categories["rejected"] = self.sample.chosen(~self.sample.is_selected)
        decile = np.searchsorted(-np.array([end.value for end in ends]), -self.sample.score)
        for number in range(len(ends)):
            categories[f"decile-{number + 1:02d}"] = self.sample.chosen(decile == number)
        ids = sorted({sequence_id for chosen in categories.values() for sequence_id, _ in chosen})
        documents = dict(
            execute(con, DOCUMENTS_OF, names | {"shards": sorted({i // ROWS_PER_SHARD for i in ids}), "sequences": ids}).fetchall()
        )
        return [
            {"category": category, "rank": rank, "sequence_id": sequence_id, "score": score, "corpus": names["corpus"]}
            | {"document_id": documents.get(sequence_id)}
            for category, chosen in categories.items()
            for rank, (sequence_id, score) in enumerate(chosen, start=1)
        ]


class _Candidates:
    """The sequences with the `limit` smallest keys so far; equal keys go by id."""

    def __init__(self, limit: int, key_type: type) -> None:
        self.limit = limit
        self.key: np.ndarray = np.empty(0, key_type)
        self.id = np.empty(0, np.int64)
        self.score, self.is_selected = np.empty(0, np.float32), np.empty(0, bool)

    def positions(self, key: np.ndarray) -> np.ndarray:
        """Which of a shard's sequences may enter; shards come in the order of their ids, so an equal key comes too late."""
        if len(self.id) < self.limit:
            return _smallest(key, self.limit)
        few: np.ndarray = np.flatnonzero(key < self.key[-1])
        return np.take(few, _smallest(key[few], self.limit))

    def add(self, key: np.ndarray, id: np.ndarray, score: np.ndarray, is_selected: np.ndarray | None = None) -> None:  # noqa: A002
        is_selected = np.zeros(len(id), bool) if is_selected is None else is_selected
        key, id = np.concatenate([self.key, key]), np.concatenate([self.id, id])  # noqa: A001
        order = np.lexsort((id, key))[: self.limit]
        self.key, self.id = key[order], id[order]
        self.score = np.concatenate([self.score, score])[order]
        self.is_selected = np.concatenate([self.is_selected, is_selected])[order]

    def chosen(self, where: np.ndarray | None = None) -> list[tuple[int, float]]:
        few = np.arange(len(self.id)) if where is None else np.flatnonzero(where)
        return [(int(self.id[i]), float(self.score[i])) for i in few[:PER_CATEGORY]]


def _smallest(key_N: np.ndarray, limit: int) -> np.ndarray:
    """Positions of the `limit` smallest keys, and of equal ones at the limit the first."""
    if len(key_N) <= limit:
        return np.arange(len(key_N))
    last = np.partition(key_N, limit - 1)[limit - 1]
    return np.concatenate([np.flatnonzero(key_N < last), np.flatnonzero(key_N == last)[:limit]])
