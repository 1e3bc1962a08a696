"""Selection: the exact threshold against a full sort, ties by id, budgets, and the materialised subset."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from upath import UPath

from bliss_ops import schemas
from bliss_ops.config import RunConfig
from bliss_ops.lake import shard_file, write_parquet
from bliss_ops.selection import kth_largest, make_worker, order_statistics, select
from bliss_ops.sharding import ROWS_PER_SHARD

floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.lists(floats, min_size=1, max_size=60), st.data())
def test_kth_largest_equals_a_full_sort(values: list[float], data: st.DataObject) -> None:
    scores = np.array(values, np.float32)
    k = data.draw(st.integers(1, len(scores)))
    cut = data.draw(st.integers(0, len(scores)))
    value, above, ties = kth_largest(lambda: iter([scores[:cut], scores[cut:]]), k)
    assert value == np.sort(scores)[::-1][k - 1]
    assert (above, ties) == (int((scores > value).sum()), int((scores == value).sum()))


@settings(deadline=None)  # two passes for sixty ranks may take longer than 200 ms on a busy machine
@given(st.lists(st.tuples(st.integers(0, 2), floats), min_size=1, max_size=60))
def test_order_statistics_of_groups_equal_full_sorts(pairs: list[tuple[int, float]]) -> None:
    group_N, score_N = np.array([group for group, _ in pairs]), np.array([score for _, score in pairs], np.float32)
    ranks = {group: range(1, 1 + int((group_N == group).sum())) for group in set(group_N.tolist())}
    statistics = order_statistics(lambda: iter([(group_N, score_N), (group_N[:0], score_N[:0])]), ranks)
    assert len(statistics) == len(pairs)
    for (group, k), (value, above, ties) in statistics.items():
        mine = score_N[group_N == group]
        assert value == np.sort(mine)[::-1][k - 1]
        assert (above, ties) == (int((mine > value).sum()), int((mine == value).sum()))


def config(**selection: float | None) -> RunConfig:
    return RunConfig(name="r", recipe="r", method="random", ingest={"sequence_length": 16}, selection=selection)


def write_scores(directory: UPath, shards: dict[int, list[float]]) -> None:
    for shard, scores in shards.items():
        ids = shard * ROWS_PER_SHARD + np.arange(len(scores))
        write_parquet(
            shard_file(directory, shard), pa.table({"sequence_id": ids, "score": np.array(scores, np.float32)}, schema=schemas.SCORES)
        )


def selected_ids(directory: UPath, files: list[str]) -> list[int]:
    return [i for file in files for i in pq.read_table(str(directory / file))["sequence_id"].to_pylist()]


def test_ties_at_the_threshold_go_to_the_smallest_ids(tmp_path: Path) -> None:
    write_scores(UPath(tmp_path / "scores"), {0: [1.0, 2.0, 1.0], 7: [1.0, 3.0, -0.0, 0.0]})
    files, metrics = select(config(fraction=4 / 7), UPath(tmp_path / "scores"), [7, 0], UPath(tmp_path / "selection"))
    assert sorted(selected_ids(UPath(tmp_path / "selection"), files)) == [0, 1, 2, 70_000_001]
    assert metrics["threshold"] == 1.0
    assert (metrics["num_ties_at_threshold"], metrics["num_ties_kept"], metrics["num_selected"]) == (3, 2, 4)


def test_token_budget_counts_whole_sequences_and_a_budget_beyond_the_window_is_refused(tmp_path: Path) -> None:
    write_scores(UPath(tmp_path / "scores"), {0: [0.1, 0.4, 0.2]})
    files, metrics = select(config(fraction=None, token_budget=47), UPath(tmp_path / "scores"), [0], UPath(tmp_path / "a"))
    assert sorted(selected_ids(UPath(tmp_path / "a"), files)) == [1, 2]
    assert metrics["num_tokens"] == 32
    with pytest.raises(ValueError, match="token_budget is 64"):
        select(config(fraction=None, token_budget=64), UPath(tmp_path / "scores"), [0], UPath(tmp_path / "b"))


def test_a_subset_holds_exactly_the_selected_tokens(tmp_path: Path) -> None:
    tokens = np.arange(5 * 4, dtype=np.uint16)
    lists = pa.FixedSizeListArray.from_arrays(pa.array(tokens), 4)
    schema = schemas.sequences(4, 100)
    write_parquet(
        shard_file(UPath(tmp_path / "sequences"), 3), pa.table([pa.array(3 * ROWS_PER_SHARD + np.arange(5)), lists], schema=schema)
    )
    ids = np.array([3 * ROWS_PER_SHARD + 1, 3 * ROWS_PER_SHARD + 4])
    chosen = pa.table({"sequence_id": ids, "score": np.zeros(2, np.float32)}, schema=schemas.SCORES)
    write_parquet(shard_file(UPath(tmp_path / "selection"), 3), chosen)
    make_worker(UPath(tmp_path / "sequences"), UPath(tmp_path / "selection"), UPath(tmp_path / "subset"))(3)
    subset = pq.read_table(tmp_path / "subset" / "shard-00003.parquet")
    assert subset.schema.equals(schema)
    assert subset.to_pydict() == {"sequence_id": ids.tolist(), "input_ids": [[4, 5, 6, 7], [16, 17, 18, 19]]}
