"""The score store: every score in one DuckDB file that anyone can query while the pipeline runs.

Workers write Parquet; this loader is the only writer of tables. It brings a *working* file up to date, one transaction per shard
(delete, insert, ledger row), then publishes a snapshot that replaces the previous one in a single rename. Readers open the snapshot:
they never wait for the loader and never see half a load. Nothing here is the truth, the Parquet files are: `rebuild` starts over.

    score_runs  what the lake says the store should hold        working    the two files, and publishing
    loading     bringing the tables there, exactly once         check      whether Parquet, ledger and tables agree
    summaries   what is computed from a score run, once         tables, views      SQL
"""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bliss_ops.lake import Lake, Run
from bliss_ops.store import loading, overlaps
from bliss_ops.store.score_runs import ScoreRun, ScoreRuns
from bliss_ops.store.working import is_remote, open_working, publish

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

log = logging.getLogger(__name__)


def sync(run: Run) -> dict[str, Any]:
    """Load what `run` has finished and the store does not hold yet, then publish the snapshot if anything changed.

    A store that was never published (first use, lost scratch disk, changed tables) is filled from the whole lake. So it is, each
    time, for a lake on an object store: its working file is local to one machine, and another machine may have loaded meanwhile.
    What was removed from the lake leaves the store.
    Rounds whose corpus has been ingested again with other content are left out, with a warning.

    Returns:
        num_loaded and num_skipped (shards), num_rows (loaded now), published.

    Raises:
        ValueError: another process holds the working file for longer than a minute, or a file is not the one its manifest recorded.
    """
    with open_working(run.lake) as (con, is_unfilled):
        score_runs = ScoreRuns(run.lake)
        mine = score_runs.of_run(run)
        others = _others(score_runs, mine) if is_unfilled or is_remote(run.lake) else []
        return _load_and_publish(con, run.lake, score_runs, mine, others)


def load_further(lake: Lake, corpus: str, name: str) -> dict[str, Any]:
    """Load scores that are no round's own, `scores/<corpus>/<name>`, and publish; returns what `sync` returns.

    Raises:
        ValueError: as `sync`; or they are not finished, or of former content of the corpus.
    """
    with open_working(lake) as (con, is_unfilled):
        score_runs = ScoreRuns(lake)
        mine = score_runs.further(corpus, name)
        others = _others(score_runs, [mine]) if is_unfilled or is_remote(lake) else []
        counts = _load_and_publish(con, lake, score_runs, [mine], others)
    if mine.refusal:
        raise ValueError(mine.refusal)
    return counts


def sync_lake(lake: Lake) -> dict[str, Any]:
    """Load every score run of the lake that the store does not hold yet, and publish; returns what `sync` returns.

    Raises:
        ValueError: some could not be loaded; the others are, and are published.
    """
    with open_working(lake) as (con, _):
        score_runs = ScoreRuns(lake)
        return _load_and_publish(con, lake, score_runs, score_runs.of_lake())


def rebuild(lake: Lake) -> dict[str, Any]:
    """Empty the store and load every score run of the lake from Parquet; readers keep the old snapshot until the new one is there."""
    with open_working(lake, empty=True) as (con, _):
        score_runs = ScoreRuns(lake)
        return _load_and_publish(con, lake, score_runs, score_runs.of_lake())


def _others(score_runs: ScoreRuns, mine: list[ScoreRun]) -> list[ScoreRun]:
    return score_runs.of_lake(but={score_run.id for score_run in mine})


def _load_and_publish(
    con: "DuckDBPyConnection", lake: Lake, score_runs: ScoreRuns, mine: Sequence[ScoreRun], others: Sequence[ScoreRun] = ()
) -> dict[str, Any]:
    """Drop score runs that are gone, load these, publish. One that fails does not stop the next; of `mine`, it is an error in the end."""
    counts = {"num_loaded": 0, "num_skipped": 0, "num_rows": 0}
    failures: list[str] = []
    num_whole = 0
    loading.forget_gone(con, lake, [*mine, *others])
    for is_mine, score_run in [*((True, each) for each in mine), *((False, each) for each in others)]:
        if refusal := score_run.refusal:
            log.log(logging.INFO if score_run.collected else logging.WARNING, "score store: %s", refusal)
            if score_run.is_former:
                loading.forget_former_content(con, score_run.content, score_runs)
                loading.forget(con, score_run.id)  # where only a part of it was loaded, which no row of `score_runs` tells of
            continue
        try:
            loading.load(con, score_run, score_runs, counts)
            num_whole += 1
        except ValueError as error:
            log.warning("score store: %s is left out: %s", score_run.id, error)
            if is_mine:
                failures.append(str(error))
    if failures and not num_whole:  # nothing to publish that would be worth leaving out the failed one's former rows
        raise ValueError("\n".join(failures))
    overlaps.refresh(con)
    published = publish(con, lake)
    log.info(
        "score store: %d shards loaded (%d rows), %d already there; snapshot %s",
        counts["num_loaded"],
        counts["num_rows"],
        counts["num_skipped"],
        "published" if published else "unchanged",
    )
    if failures:
        raise ValueError("\n".join(failures))
    return counts | {"published": published}
