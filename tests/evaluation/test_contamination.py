"""Contamination: runs of words against plain strings, planted sequences found and no others, and left out of the selection where asked."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from upath import UPath

from bliss_ops import contamination, pipeline, schemas
from bliss_ops.evaluation.word_runs import Index, runs_of, words_of
from bliss_ops.lake import Lake, Run, shard_file, write_parquet
from bliss_ops.sharding import ROWS_PER_SHARD
from tests.evaluation.lakes import make_lake, make_run, make_sequences
from tests.evaluation.published import HUB, write_files
from tests.lakes import produce

LEAVES = "leaves take in carbon dioxide THROUGH small openings and give off oxygen, by day"  # 14 words of sciq: two runs of 13
SHIP = HUB["lambada_openai"][1]["text"]
AIR = "What do plants take in from the air? Carbon dioxide"  # 10 words: a question of sciq and its answer, shorter than a run
NEARLY = "leaves take in carbon dioxide through small doors and give off oxygen by day"
SAME = " one two three four five six seven eight nine ten eleven twelve"


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    lake = make_lake(tmp_path_factory.mktemp("lake"), guide=["nothing of the kind, only words", SHIP])
    half = len(LEAVES) // 2
    make_sequences(
        lake,
        [
            [["plain"], [LEAVES], [NEARLY], [LEAVES[:half], LEAVES[half:]], [SAME]],
            [["plain"], ["the same", AIR], [SHIP, "and so on"], ["plain"], ["plain"]],
        ],
    )
    return lake


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("tasks"))


def checked(lake: Lake, name: str, folder: Path, **settings: Any) -> Run:
    run = make_run(lake, name, tasks=("sciq", "lambada_openai", "piqa"), data=str(folder), **settings)
    pipeline.check_contamination(run, 1)
    return run


def found(run: Run) -> list[tuple[int, str, int]]:
    tables = [pq.read_table(str(shard_file(run.round(1) / "contamination", shard))) for shard in (0, 1)]
    return [tuple(row.values()) for row in pa.concat_tables(tables).to_pylist()]


def test_planted_sequences_are_found_and_no_others(lake: Lake, folder: Path) -> None:
    run = checked(lake, "checked", folder)
    assert found(run) == [(1, "sciq", 2), (ROWS_PER_SHARD + 1, "sciq", 1), (ROWS_PER_SHARD + 2, "lambada_openai", 6)]
    manifest = pipeline.check_contamination(run, 1)
    assert manifest is not None
    metrics = manifest.metrics
    assert (metrics["num_sequences"], metrics["num_contaminated"]) == (10, 3)
    assert metrics["by_task"] == {"sciq": 2, "lambada_openai": 1, "piqa": 0}
    assert metrics["num_ngrams"]["sciq"] == 4  # two of the support, and two questions as a whole
    assert metrics["num_texts_too_short"]["piqa"] == sum(len(words_of([text]).hash_W) < 8 for text in piqa_texts())


def piqa_texts() -> list[str]:
    return [f"{row['goal']} {row['sol2'] if row['label'] else row['sol1']}" for row in HUB["piqa"]]


def test_a_validation_set_that_is_a_task_is_shown(lake: Lake, folder: Path) -> None:
    manifest = pipeline.check_contamination(checked(lake, "leak", folder), 1)
    assert manifest is not None
    guide, holdout = manifest.metrics["validation"]
    assert guide == {
        "set": "holdout", "part": "guide", "num_rows": 2, "num_contaminated": 1, "by_task": {"sciq": 0, "lambada_openai": 1, "piqa": 0},
    }  # fmt: skip
    assert (holdout["part"], holdout["num_contaminated"]) == ("holdout", 0)


def test_shards_may_be_checked_by_several_jobs(lake: Lake, folder: Path) -> None:
    run = make_run(lake, "in-two-jobs", tasks=("sciq", "lambada_openai", "piqa"), data=str(folder))
    assert pipeline.check_contamination(run, 1, pipeline.Work(group=(0, 2))) is None
    assert pipeline.check_contamination(run, 1, pipeline.Work(group=(1, 2))) is not None
    assert found(run) == found(checked(lake, "checked", folder))


def test_without_tasks_it_is_empty_and_asks_for_nothing(lake: Lake) -> None:
    manifest = pipeline.check_contamination(make_run(lake, "no-tasks"), 1)
    assert manifest is not None
    assert (manifest.outputs, manifest.metrics.get("by_task"), manifest.inputs, manifest.identity) == ([], None, {}, {})


def with_scores(run: Run) -> Run:
    def scores(directory: UPath) -> tuple[list[str], dict[str, Any]]:
        for shard in (0, 1):
            ids = shard * ROWS_PER_SHARD + np.arange(5)
            values = np.array([1, 9, 2, 3, 4], np.float32) + np.float32(shard)
            write_parquet(shard_file(directory, shard), pa.table({"sequence_id": ids, "score": values}, schema=schemas.SCORES))
        return [f"shard-{shard:05d}.parquet" for shard in (0, 1)], {"num_sequences": 10}

    produce(run.lake, run.round(1) / "scores", "score", scores, shards=(0, 1))
    return run


def selected(run: Run) -> list[int]:
    manifest = pipeline.select(run, 1)
    tables = [pq.read_table(str(shard_file(run.round(1) / "selection", shard))) for shard in manifest.metrics["shards"]]
    return pa.concat_tables(tables)["sequence_id"].to_pylist()


def test_contaminated_sequences_are_selected_unless_they_are_excluded(lake: Lake, folder: Path) -> None:
    run = with_scores(checked(lake, "kept-in", folder))
    assert selected(run) == [1, ROWS_PER_SHARD + 1]
    assert contamination.of_selection(run, 1) == {"any": 2, "sciq": 2, "lambada_openai": 0, "piqa": 0}
    manifest = pipeline.select(run, 1)
    assert list(manifest.inputs) == ["runs/kept-in/round-01/scores"], "old selections stay valid"
    assert "num_excluded" not in manifest.metrics
    without = with_scores(checked(lake, "left-out", folder, exclude_contaminated=True))
    assert selected(without) == [4, ROWS_PER_SHARD + 4]  # of two with score 4 the smaller id
    assert contamination.of_selection(without, 1) == {"any": 0, "sciq": 0, "lambada_openai": 0, "piqa": 0}
    metrics = pipeline.select(without, 1).metrics
    assert (metrics["num_candidates"], metrics["num_selected"], metrics["num_excluded"]) == (10, 2, 3)


def test_exclusion_that_leaves_too_little_is_an_error(lake: Lake, folder: Path) -> None:
    run = with_scores(checked(lake, "greedy", folder, exclude_contaminated=True))
    config = run.config.model_copy(update={"selection": run.config.selection.model_copy(update={"fraction": 0.9})})
    object.__setattr__(run, "config", config)
    with pytest.raises(ValueError, match="3 of 10 candidate sequences are contaminated, 9 are to be kept"):
        pipeline.select(run, 1)


def test_exclusion_needs_the_check(lake: Lake, folder: Path) -> None:
    run = with_scores(make_run(lake, "unchecked", tasks=("sciq",), data=str(folder), exclude_contaminated=True))
    with pytest.raises(ValueError, match="bliss check-contamination unchecked --round 1"):
        pipeline.select(run, 1)


texts = st.lists(
    st.lists(st.sampled_from(["a", "B", "über", "x1", "...", "it's", "_", "\u2019", "42"]), max_size=14).map(" ".join), max_size=4
)


@given(texts, st.integers(1, 5))
def test_runs_are_equal_where_strings_are(some: list[str], length: int) -> None:
    words = [re.sub(r"[\W_]+", " ", text.lower()).split() for text in some]
    plain = [(number, " ".join(of[k : k + length])) for number, of in enumerate(words) for k in range(len(of) - length + 1)]
    text_R, hash_R = runs_of(words_of(some), length)
    assert text_R.tolist() == [number for number, _ in plain]
    pairs = set(zip(hash_R.tolist(), (run for _, run in plain), strict=True))
    assert len(pairs) == len({run for _, run in plain}) == len(set(hash_R.tolist()))


def test_a_filter_in_front_changes_nothing() -> None:
    """Many random runs: those of the collection are counted, of others none, whatever the filter lets through."""
    generator = np.random.default_rng(0)
    vocabulary = np.array([f"w{number}" for number in range(5000)])
    documents = [" ".join(generator.choice(vocabulary, 200)) for _ in range(300)]
    index = Index(13)
    index.add("even", documents[::2])
    counts = index.count(documents)["even"]
    assert counts[::2].tolist() == [188] * 150
    assert not counts[1::2].any()
