"""Loaders that are killed, run twice, meet cut files, a full disk, a clock that goes back: the tables end as if nothing had happened.

Every test has two copies of one lake: one is loaded undisturbed, the other not; in the end every table of both snapshots has the same rows.
"""

import hashlib
import shutil
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from upath import UPath

from bliss_ops import manifest, schemas, store
from bliss_ops.lake import Lake, write_parquet
from bliss_ops.sharding import ROWS_PER_SHARD
from bliss_ops.sql import open_snapshot
from bliss_ops.store import working
from tests.lakes import make_corpus, make_further_scores, make_round, make_run

RUN, OTHER = "demo-bliss-s0", "demo-bliss-s1"
Tables = dict[str, list[tuple[Any, ...]]]


def tables_of(lake: Lake) -> Tables:
    """All rows of all tables of the snapshot, whatever their order."""
    with open_snapshot(lake) as con:
        names = [name for (name,) in con.execute("select table_name from duckdb_tables() where database_name = 'store'").fetchall()]
        names.remove("state")  # what the loader remembers of itself
        assert len(names) == 18
        return {name: sorted(con.execute(f"select * from {name}").fetchall(), key=repr) for name in names}  # noqa: S608 - names from above


def hand_made(shard: int, rows: np.ndarray) -> np.ndarray:
    return (rows + 1) * (10.0 if shard else 1.0)


@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake whose first run was loaded, and changed since; a second run was not loaded yet."""
    root = tmp_path_factory.mktemp("changed")
    lake = make_corpus(root)
    run = make_run(lake, num_rounds=2)
    store.sync(run)
    make_round(run, 1, hand_made)
    make_round(run, 2, lambda shard, rows: -hand_made(shard, rows))
    make_run(lake, seed=1)
    return root


@pytest.fixture
def lakes(changed: Path, tmp_path: Path) -> tuple[Lake, Lake]:
    """Two copies of it."""
    for name in ("undisturbed", "disturbed"):
        shutil.copytree(changed, tmp_path / name)
    return Lake.open(tmp_path / "undisturbed"), Lake.open(tmp_path / "disturbed")


def sync_in_a_process(lake: Lake, name: str = RUN, before: str = "") -> "subprocess.Popen[str]":
    """`store.sync` in a process of its own, after statements that may set a trap in it."""
    script = f"""
import os, resource, signal
from bliss_ops import store
from bliss_ops.lake import Lake
from bliss_ops.store import loading, working
{textwrap.dedent(before)}
store.sync(Lake.open({str(lake.root)!r}).run({name!r}))
"""
    return subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE, text=True)


BETWEEN_DELETE_AND_INSERT = """
real = loading._insert
def insert(con, part, rows):
    if part.kind.name == "scores" and part.owner.endswith("round-02") and part.shard == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(con, part, rows)
loading._insert = insert
"""
AFTER_THE_LAST_SHARD = """
loading.summaries.refresh = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
"""
HALF_WAY_THROUGH_THE_COPY = """
def copy_bytes(source, target):
    target.write_bytes(source.read_bytes()[:source.stat().st_size // 2])
    os.kill(os.getpid(), signal.SIGKILL)
working.copy_bytes = copy_bytes
"""
AFTER_THE_RENAME = """
real = working._remember
def remember(con, name, digest):
    if name == "published":
        os.kill(os.getpid(), signal.SIGKILL)
    real(con, name, digest)
working._remember = remember
"""


@pytest.mark.parametrize(
    "trap",
    [
        pytest.param(BETWEEN_DELETE_AND_INSERT, id="between delete and insert"),
        pytest.param(AFTER_THE_LAST_SHARD, id="after the last shard"),
        pytest.param(HALF_WAY_THROUGH_THE_COPY, id="half-way through the copy"),
        pytest.param(AFTER_THE_RENAME, id="after the rename"),
    ],
)
def test_a_killed_loader(lakes: tuple[Lake, Lake], trap: str) -> None:
    undisturbed, disturbed = lakes
    before = tables_of(disturbed)
    store.sync(undisturbed.run(RUN))
    killed = sync_in_a_process(disturbed, before=trap)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert tables_of(disturbed) == (tables_of(undisturbed) if trap == AFTER_THE_RENAME else before)
    store.sync(disturbed.run(RUN))
    assert tables_of(disturbed) == tables_of(undisturbed)
    assert not [path.name for path in Path(disturbed.root.path).glob(".scores.duckdb*")]


def test_a_score_run_that_was_half_loaded_is_never_seen(lakes: tuple[Lake, Lake]) -> None:
    undisturbed, disturbed = lakes
    killed = sync_in_a_process(disturbed, before=BETWEEN_DELETE_AND_INSERT)
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    store.sync(disturbed.run(OTHER))  # publishes, while round 2 of the first run is half loaded
    seen = tables_of(disturbed)
    assert {row[0] for row in seen["all_scores"]} == {f"{RUN}/round-01", f"{OTHER}/round-01"}
    assert all(f"{RUN}/round-02" not in row[:2] for rows in seen.values() for row in rows)
    for lake in lakes:
        for name in (RUN, OTHER):
            store.sync(lake.run(name))
    assert tables_of(disturbed) == tables_of(undisturbed)


def test_two_loaders_at_once(lakes: tuple[Lake, Lake]) -> None:
    undisturbed, disturbed = lakes
    for name in (RUN, OTHER):
        store.sync(undisturbed.run(name))
    loaders = [sync_in_a_process(disturbed, name) for name in (RUN, OTHER, RUN)]
    for loader in loaders:
        _, errors = loader.communicate(timeout=120)
        assert loader.returncode == 0, errors
    assert tables_of(disturbed) == tables_of(undisturbed)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def rewrite(file: Path) -> None:
    """As a worker of a cancelled run would: good Parquet of the same sequences."""
    table = pa.table({"sequence_id": ROWS_PER_SHARD + np.arange(30), "score": np.full(30, 0.5, np.float32)}, schema=schemas.SCORES)
    write_parquet(UPath(file), table)


@pytest.mark.parametrize("damage", [cut, rewrite])
def test_a_shard_that_is_not_the_recorded_one(lakes: tuple[Lake, Lake], damage: Any) -> None:
    undisturbed, disturbed = lakes
    before = tables_of(disturbed)
    file = Path(str(disturbed.run(RUN).round(2) / "scores" / "shard-00001.parquet"))
    good = file.read_bytes()
    damage(file)
    found, expected = hashlib.sha256(file.read_bytes()).hexdigest(), hashlib.sha256(good).hexdigest()
    with pytest.raises(ValueError, match="is not the file its manifest recorded") as error:
        store.sync(disturbed.run(RUN))
    for word in (str(file), found, expected, f"bliss score {RUN} --round 2"):
        assert word in str(error.value)
    round_1 = [row for row in tables_of(disturbed)["all_scores"] if row[0] == f"{RUN}/round-01"]
    assert round_1 != [row for row in before["all_scores"] if row[0] == f"{RUN}/round-01"], "the sound round is loaded and published"
    file.write_bytes(good)
    again = store.sync(disturbed.run(RUN))
    store.sync(undisturbed.run(RUN))
    assert tables_of(disturbed) == tables_of(undisturbed)
    assert again["num_loaded"] < 6, "shards that were loaded before the damaged one stayed"


def test_a_missing_shard_is_a_clear_error(lakes: tuple[Lake, Lake]) -> None:
    file = lakes[1].run(OTHER).round(1) / "scores" / "shard-00001.parquet"
    file.unlink()
    with pytest.raises(ValueError, match=rf"shard-00001.parquet is missing: run `bliss score {OTHER} --round 1`"):
        store.sync(lakes[1].run(OTHER))


def test_a_full_disk_while_publishing(lakes: tuple[Lake, Lake]) -> None:
    undisturbed, disturbed = lakes
    before = tables_of(disturbed)
    trap = """
    real = working.copy_bytes
    def copy_bytes(source, target):
        size = source.stat().st_size // 2
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        real(source, target)
    working.copy_bytes = copy_bytes
    """
    loader = sync_in_a_process(disturbed, before=trap)
    _, errors = loader.communicate()
    assert loader.returncode == 1
    assert "File too large" in errors
    assert tables_of(disturbed) == before, "the old snapshot is still served"
    again = store.sync(disturbed.run(RUN))
    store.sync(undisturbed.run(RUN))
    assert (again["num_loaded"], again["published"]) == (0, True)
    assert tables_of(disturbed) == tables_of(undisturbed)


ON_A_SMALL_DISK = """
import os, shutil, subprocess, sys
from pathlib import Path
from bliss_ops import store
from bliss_ops.lake import Lake
from tests.store.test_faults import OTHER, RUN, tables_of

source, mount = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "none", mount], check=True)
shutil.copytree(source, mount, dirs_exist_ok=True)
lake, undisturbed = Lake.open(mount), Lake.open(source)
before = tables_of(lake)
store.sync(undisturbed.run(RUN))
failures = []
for free in (50_000, 400_000, 1_000_000, 2_000_000, 3_000_000, 4_000_000):  # too little for the tables, then for the snapshot
    filler = Path(mount) / "filler"
    filler.unlink(missing_ok=True)
    with filler.open("wb") as file:
        file.write(bytes(max(0, shutil.disk_usage(mount).free - free)))
    try:
        store.sync(lake.run(RUN))
    except OSError as error:
        assert "disk is full" in str(error), error
        failures.append(str(error))
        assert tables_of(lake) == before
assert failures
filler.unlink()
store.sync(lake.run(RUN))
assert tables_of(lake) == tables_of(undisturbed)
print(len(failures), "times full;", failures[0], failures[-1])
"""


def test_a_full_disk_at_any_moment(lakes: tuple[Lake, Lake], tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["unshare", "--mount"]
    try:
        subprocess.run([*command, "mount", "-t", "tmpfs", "-o", "size=1m", "none", str(mount)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    done = subprocess.run(
        [*command, sys.executable, "-c", ON_A_SMALL_DISK, str(lakes[0].root), str(mount)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_clock_that_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is loaded or left out by time; and the second round is the newest although it says it is older."""
    seen = []
    for name, times in (("forward", ("2026-01-01T10", "2026-01-01T11")), ("back", ("2026-01-01T11", "2026-01-01T10"))):
        lake = make_corpus(tmp_path / name)
        run = make_run(lake, num_rounds=2, finished=False)
        for number, time in enumerate(times, start=1):
            monkeypatch.setattr(manifest, "_now", lambda time=time: f"{time}:00:00+00:00")
            make_round(run, number, lambda shard, rows, number=number: hand_made(shard, rows) * number, finished=False)
            assert store.sync(run)["published"]
        monkeypatch.undo()
        assert not store.sync(run)["published"]
        tables = tables_of(lake)
        tables["loads"] = [row for row in tables["loads"] if row[0] != "score_runs"]  # a hash of the row with its time
        tables["score_runs"] = [row[:-1] for row in tables["score_runs"]]
        with open_snapshot(lake) as con:
            tables["scores"] = con.execute("from scores order by sequence_id").fetchall()
        seen.append(tables)
    assert seen[0] == seen[1]
    assert {row[0] for row in seen[1]["scores"]} == {f"{RUN}/round-02"}


# ---- a corpus that is ingested again ---------------------------------------------------------------------------------


@pytest.fixture
def reingested(tmp_path: Path) -> Lake:
    """A lake with two score runs of a corpus that has other documents and spans since, and a third one of these."""
    lake = make_corpus(tmp_path / "lake")
    make_run(lake)
    make_further_scores(lake, "theirs", hand_made)
    store.sync_lake(lake)
    make_corpus(tmp_path / "lake", num_sequences=36)
    make_run(lake, seed=1)
    return lake


def test_scores_of_former_content_leave_before_the_new_content_comes(reingested: Lake, caplog: pytest.LogCaptureFixture) -> None:
    before = tables_of(reingested)
    assert {row[0] for row in before["all_scores"]} == {f"{RUN}/round-01", "scores/tiny/theirs"}
    store.sync(reingested.run(OTHER))
    for id in (f"{RUN}/round-01", "scores/tiny/theirs"):  # noqa: A001 - what it is
        assert f"{id} leaves the store, its scores are of former content" in caplog.text
    after = tables_of(reingested)
    assert {row[0] for row in after["all_scores"]} == {f"{OTHER}/round-01"}
    assert len(after["documents"]) == 48
    assert sum(row[-1] for row in after["spans"]) == 72 * 16
    store.rebuild(reingested)
    assert tables_of(reingested) == after


def test_scores_of_former_content_are_refused(reingested: Lake, caplog: pytest.LogCaptureFixture) -> None:
    store.sync(reingested.run(OTHER))
    after = tables_of(reingested)
    with pytest.raises(ValueError, match=r"scores/tiny/theirs: its scores are of former content of tiny/sequences.*score the corpus again"):
        store.load_further(reingested, "tiny", "theirs")
    caplog.clear()
    store.sync(reingested.run(RUN))
    store.sync_lake(reingested)
    assert f"{RUN}/round-01: its scores are of former content" in caplog.text
    assert tables_of(reingested) == after


def test_a_loader_killed_while_the_content_changes(reingested: Lake, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / "lake", tmp_path / "disturbed")
    disturbed = Lake.open(tmp_path / "disturbed")
    trap = """
    real = loading._insert
    def insert(con, part, rows):
        if part.kind.name == "spans" and part.shard == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(con, part, rows)
    loading._insert = insert
    """
    sync_in_a_process(disturbed, OTHER, before=trap).communicate()
    for lake in (reingested, disturbed):
        store.sync(lake.run(OTHER))
    assert tables_of(disturbed) == tables_of(reingested)


def test_a_half_loaded_score_run_of_former_content_leaves_too(lakes: tuple[Lake, Lake]) -> None:
    _, disturbed = lakes
    sync_in_a_process(disturbed, before=BETWEEN_DELETE_AND_INSERT).communicate()
    make_corpus(disturbed.root, num_sequences=36)
    make_run(disturbed, seed=2)
    for name in (RUN, OTHER, "demo-bliss-s2"):
        store.sync(disturbed.run(name))
    with duckdb.connect(str(working.working_file(disturbed)), read_only=True) as con:
        assert con.execute("select distinct score_run_id from all_scores").fetchall() == [("demo-bliss-s2/round-01",)]


def test_nothing_of_a_corpus_changes_while_it_is_being_ingested_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lake = make_corpus(tmp_path)
    store.sync(make_run(lake))
    before = tables_of(lake)
    packed = (lake.corpus("tiny").sequences / "manifest.json").read_bytes()
    make_corpus(tmp_path, num_sequences=36)
    (lake.corpus("tiny").sequences / "manifest.json").write_bytes(packed)  # documents are new, sequences not yet
    make_further_scores(lake, "theirs", hand_made)
    with pytest.raises(ValueError, match="corpus 'tiny' is not ingested whole at the moment"):
        store.load_further(lake, "tiny", "theirs")
    store.sync(lake.run(RUN))
    assert tables_of(lake) == before


def test_scores_that_do_not_say_what_they_are_of_are_refused(tmp_path: Path) -> None:
    lake = make_corpus(tmp_path)
    run = make_run(lake)
    shutil.rmtree(str(run.round(1) / "selector"))
    store.sync(run)
    assert tables_of(lake)["all_scores"] == []


def test_a_selection_of_former_scores_is_not_mixed_with_the_new_ones(tmp_path: Path) -> None:
    lake = make_corpus(tmp_path)
    run = make_run(lake, score=hand_made)
    store.sync(run)
    selection = Path(str(run.round(1) / "selection"))
    shutil.copytree(selection, tmp_path / "former")
    make_round(run, 1, lambda shard, rows: -hand_made(shard, rows))
    shutil.rmtree(selection)
    (tmp_path / "former").rename(selection)
    store.sync(run)
    tables = tables_of(lake)
    assert max(row[-1] for row in tables["all_scores"]) < 0
    assert (tables["selections"], tables["selection_counts"]) == ([], [])
    assert tables["run_summaries"][0][-2:] == (None, None)
