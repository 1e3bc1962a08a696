"""Lakes on object stores, whose working files are local: two machines that load scores of one lake, one machine that has two lakes."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from upath import UPath

from bliss_ops import store
from bliss_ops.collected import Collected, write_collected
from bliss_ops.lake import Lake
from bliss_ops.store import working
from bliss_ops.store.check import Checked, check
from tests.lakes import make_corpus, make_further_scores, make_run
from tests.store.test_faults import tables_of

Machine = Callable[[str], AbstractContextManager[None]]


@pytest.fixture
def on(tmp_path: Path) -> Machine:
    """`with on("a")`: what follows happens on that machine."""

    @contextmanager
    def on(name: str) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(working.tempfile, "gettempdir", lambda: str(tmp_path / name))
            yield

    return on


@pytest.fixture
def lake(s3: Any, request: pytest.FixtureRequest) -> Lake:
    if not s3.exists("lake"):
        s3.mkdir("lake")
    return make_corpus(f"s3://lake/{request.node.name}")


def score_runs(lake: Lake) -> list[str]:
    return [row[0] for row in tables_of(lake)["score_runs"]]


def test_what_a_late_loader_overwrote_is_published_again(lake: Lake, on: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """B has looked at the lake, A loads and publishes what came since, B publishes: then A's next load has nothing to load."""
    first = make_run(lake)
    publish = store.publish

    def publish_late(*arguments: Any) -> bool:
        monkeypatch.undo()
        second = make_run(lake, seed=1)
        with on("a"):
            assert store.sync(second)["published"]
        return publish(*arguments)

    monkeypatch.setattr(store, "publish", publish_late)
    with on("b"):
        store.sync(first)
    assert score_runs(lake) == ["demo-bliss-s0/round-01"]
    with on("a"):
        again = store.sync(first)
        assert (again["num_loaded"], again["published"]) == (0, True)
        assert not store.sync(first)["published"]
    assert score_runs(lake) == ["demo-bliss-s0/round-01", "demo-bliss-s1/round-01"]


def delete(directory: UPath) -> None:
    directory.fs.rm(directory.path, recursive=True)


def test_a_run_that_was_deleted_is_not_published_again(lake: Lake, on: Machine) -> None:
    """B has loaded what A deletes; of shard 1 of the corpus no other scores are left, so its documents and spans go, too."""
    run, other = make_run(lake), make_run(lake, "random")
    make_further_scores(lake, "theirs", lambda _, rows: rows * 1.0, shards=[0])
    with on("b"):
        store.sync_lake(lake)
    for directory in (run.path, other.path):
        delete(directory)
    with on("a"):
        store.rebuild(lake)
    rebuilt = tables_of(lake)
    assert {row[0] for row in rebuilt["all_scores"]} == {"scores/tiny/theirs"}
    with on("b"):
        store.sync(make_run(lake, seed=1))
        assert {row[0] for row in tables_of(lake)["all_scores"]} == {"scores/tiny/theirs", "demo-bliss-s1/round-01"}
        delete(lake.run("demo-bliss-s1").path)
        store.load_further(lake, "tiny", "theirs")
    assert tables_of(lake) == rebuilt


def test_scores_that_were_cleaned_up_on_another_machine_leave(lake: Lake, on: Machine) -> None:
    run = make_run(lake)
    manifest = make_further_scores(lake, "theirs", lambda _, rows: rows * 1.0)
    with on("b"):
        store.sync_lake(lake)
    write_collected(
        lake.further_scores("tiny", "theirs"), Collected(files=manifest.outputs, reason="newer ones", collected_at="2026-01-01")
    )
    with on("b"):
        store.sync(run)
    assert score_runs(lake) == ["demo-bliss-s0/round-01"]
    assert list(check(lake, Checked())) == []


def test_a_run_that_no_listing_names_stays(lake: Lake, on: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some stores list late: each is asked for before it is dropped."""
    first, second = make_run(lake), make_run(lake, seed=1)
    with on("a"):
        store.sync_lake(lake)
        monkeypatch.setattr(Lake, "run_names", lambda _: [])
        store.sync(second)
        assert score_runs(lake) == ["demo-bliss-s0/round-01", "demo-bliss-s1/round-01"]
        delete(first.round(1) / "scores")
        store.sync(second)
    assert score_runs(lake) == ["demo-bliss-s1/round-01"]


def test_the_snapshot_that_counts_as_published_is_ones_own(lake: Lake, on: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another one that takes its place right after the upload does not."""
    run, upload = make_run(lake), type(lake.root.fs).upload

    def upload_and_lose(self: Any, *arguments: Any) -> str:
        etag = upload(self, *arguments)
        self.pipe_file(lake.score_store.path, b"of another machine")
        return str(etag)

    monkeypatch.setattr(type(lake.root.fs), "upload", upload_and_lose)
    with on("a"):
        store.sync(run)
        monkeypatch.undo()
        assert store.sync(run)["published"]
    assert score_runs(lake) == ["demo-bliss-s0/round-01"]


def test_lakes_of_one_address_at_two_endpoints_have_two_working_files(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {working.working_file(Lake.open("s3://lake/here"))}
    for name, value in (("AWS_ENDPOINT_URL", "http://staging:9000"), ("AWS_ENDPOINT_URL_S3", "http://production:9000")):
        monkeypatch.setenv(name, value)
        files.add(working.working_file(Lake.open("s3://lake/here")))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://not-for-s3:9000")
    files.add(working.working_file(Lake.open("s3://lake/here")))
    assert len(files) == 3
