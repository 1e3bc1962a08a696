"""Landing: a folder per corpus, parts for what comes later, nothing half-copied, nothing silently replaced."""

import asyncio
import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bliss_ops import landing
from bliss_ops.cli import main
from bliss_ops.lake import Lake
from bliss_ops.landed import Lists
from bliss_ops.manifest import find_manifest
from tests.corpus.corpora import rows, write_gz
from tests.rescoring.lakes import RUN, T, write_shards


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    (tmp_path / "drop").mkdir()
    return tmp_path / "drop"


def land(lake: Lake, prefix: Path, *arguments: str) -> int:
    return main(["land", str(prefix), "--settle-seconds", "0", "--lake", str(lake.root), *arguments])


def landed(lake: Lake, prefix: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    """What `--list-only` finds, as Airflow reads it."""
    capsys.readouterr()
    assert land(lake, prefix, "--list-only", "--format", "json", *arguments) == 0
    return json.loads(capsys.readouterr().out)


def files_of(lake: Lake, corpus: str) -> list[str]:
    return [entry["uri"].rsplit("/", 1)[1] for entry in json.loads((lake.corpus(corpus).source / "shards.json").read_bytes())]


def test_a_folder_becomes_a_corpus_that_the_newest_model_can_score(lake: Lake, prefix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(prefix / "news", 2, start=300)
    assert land(lake, prefix) == 0
    corpus = lake.corpus("news")
    assert landing.is_ingested(corpus)
    assert files_of(lake, "news") == ["part-00000.json.gz", "part-00001.json.gz"]
    assert corpus.config.sequence_length == T
    assert corpus.tokenizer_name == "bpe512"
    assert corpus.config.source == str(lake.root / "landed" / "news" / "part-01.list")
    assert main(["rescore", RUN, "--corpus", "news", "--lake", str(lake.root)]) == 0


def test_later_files_are_a_part_of_their_own_and_the_same_look_twice_is_one(
    lake: Lake, prefix: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards(prefix / "news", 2, start=300)
    assert land(lake, prefix) == 0
    before = find_manifest(lake.corpus("news").sequences)
    assert land(lake, prefix) == 0  # nothing new
    write_gz(prefix / "news" / "part-00007.json.gz", rows(8, start=400))
    write_gz(prefix / "news" / "deeper" / "part-00008.json.gz", rows(8, start=420))
    assert land(lake, prefix) == 0
    assert files_of(lake, "news-part-02") == ["part-00008.json.gz", "part-00007.json.gz"]
    assert find_manifest(lake.corpus("news").sequences) == before
    assert {"news", "news-part-02"} <= set(lake.corpus_names())
    assert "news-part-03" not in lake.corpus_names()


def test_hidden_temporary_and_unknown_files_are_nobodys(lake: Lake, prefix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (".part-0.json.gz.Xy12", ".hidden.json.gz", "a.json.gz.tmp", "a.json.gz.part", "README.md", "_SUCCESS", "_tmp/b.json.gz"):
        write_gz(prefix / "news" / name, rows(2))
    assert landed(lake, prefix, capsys) == {"parts": [], "waiting": [], "problems": []}


def test_a_folder_that_changes_between_two_looks_waits(
    lake: Lake, prefix: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards(prefix / "calm", 1, start=300)
    growing = write_gz(prefix / "growing" / "a.json.gz", rows(3))

    def copy_some_more(seconds: float) -> None:
        write_gz(growing, rows(5))
        write_gz(prefix / "late" / "a.json.gz", rows(5))

    monkeypatch.setattr("bliss_ops.landing.time.sleep", copy_some_more)
    found = landed(lake, prefix, capsys)
    assert [part["corpus"] for part in found["parts"]] == ["calm"]
    assert found["waiting"] == ["growing", "late"]
    monkeypatch.setattr("bliss_ops.landing.time.sleep", lambda seconds: None)
    assert [part["corpus"] for part in landed(lake, prefix, capsys)["parts"]] == ["calm", "growing", "late"]


def test_a_broken_file_fails_its_own_folder_alone(lake: Lake, prefix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = write_gz(prefix / "broken" / "a.json.gz", rows(30))
    broken.write_bytes(broken.read_bytes()[:-20])
    write_shards(prefix / "sound", 1, start=300)
    assert land(lake, prefix) == 1
    message = capsys.readouterr().err
    assert "corpus broken: " in message
    assert "is cut off" in message
    assert landing.is_ingested(lake.corpus("sound"))
    assert not landing.is_ingested(lake.corpus("broken"))
    assert [part["corpus"] for part in landed(lake, prefix, capsys)["parts"]] == ["broken"]  # it is not forgotten

    write_gz(broken, rows(30))
    (problem,) = landed(lake, prefix, capsys)["problems"]
    assert f"delete {lake.corpus('broken').path} and " in problem
    shutil.rmtree(lake.corpus("broken").path)  # as it says
    assert land(lake, prefix) == 0
    assert landing.is_ingested(lake.corpus("broken"))


def test_a_file_written_anew_is_reported_and_not_taken(lake: Lake, prefix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_shards(prefix / "news", 2, start=300)
    assert land(lake, prefix) == 0
    first, second = sorted((prefix / "news").iterdir())
    os.utime(first)  # touched only
    content = second.read_bytes()
    second.write_bytes(content[:-5] + bytes(5))  # of the same size
    found = landed(lake, prefix, capsys)
    assert found["parts"] == []
    (problem,) = found["problems"]
    assert f"{second} was written anew after corpus 'news' was made from it" in problem
    assert land(lake, prefix) == 1
    assert files_of(lake, "news") == [first.name, second.name]
    second.write_bytes(content)
    assert landed(lake, prefix, capsys)["problems"] == []


def test_a_part_keeps_the_settings_it_was_taken_in_with(lake: Lake, prefix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (prefix / "landing.toml").write_text('recipe = "smoke"\n[ingest]\nsequence_length = 16\n')
    write_shards(prefix / "news", 1, start=300)
    (part,) = landed(lake, prefix, capsys)["parts"]
    assert part["recipe"] == "smoke"
    assert part["settings"]["ingest.sequence_length"] == 16
    assert part["settings"]["ingest.tokenizer"].endswith("own/tokenizer-bpe512/tokenizer.json")
    (prefix / "landing.toml").write_text("[ingest]\nsequence_length = 24\n")
    assert landed(lake, prefix, capsys)["parts"] == [part]
    write_gz(prefix / "news" / "more.json.gz", rows(8))
    of_part_2 = landed(lake, prefix, capsys, "--set", "ingest.max_document_megabytes=2")["parts"][1]
    assert (of_part_2["recipe"], of_part_2["settings"]["ingest.sequence_length"]) == ("demo", 24)
    assert of_part_2["settings"]["ingest.max_document_megabytes"] == 2
    assert land(lake, prefix) == 0
    assert [lake.corpus(name).config.sequence_length for name in ("news", "news-part-02")] == [16, 24]


def test_without_a_score_model_the_recipe_decides(tmp_path: Path, prefix: Path) -> None:
    write_shards(prefix / "first", 1)
    assert land(Lake.open(tmp_path / "empty"), prefix, "--recipe", "smoke") == 0
    corpus = Lake.open(tmp_path / "empty").corpus("first")
    assert (corpus.config.tokenizer, corpus.config.sequence_length, corpus.config.validation.source) == (None, 64, "none")


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("ingest = [", "is not valid TOML"),
        ("[ingest]\nsequence_lenght = 16", "there is no such setting"),
        ("[bilevel]\nnum_steps = 3", "bilevel.num_steps cannot be set here"),
        ('[ingest]\ncorpus = "x"', "ingest.corpus cannot be set here"),
        ('recipe = "no-such"', "no recipe 'no-such'"),
    ],
)
def test_a_mistake_in_landing_toml_is_named(lake: Lake, prefix: Path, toml: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    (prefix / "landing.toml").write_text(toml)
    write_shards(prefix / "news", 1)
    assert land(lake, prefix) == 1
    assert message in capsys.readouterr().err
    assert not (lake.root / "landed").exists()


def test_what_cannot_be_a_corpus_is_reported_beside_what_can(lake: Lake, prefix: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_gz(prefix / "loose.json.gz", rows(2))
    write_gz(prefix / "Not A Name" / "a.json.gz", rows(2))
    write_gz(prefix / "own" / "a.json.gz", rows(2))  # a corpus that was not landed
    write_shards(prefix / "fine", 1)
    found = landed(lake, prefix, capsys)
    assert [part["corpus"] for part in found["parts"]] == ["fine"]
    text = "\n".join(found["problems"])
    assert "1 files are in no folder" in text
    assert "'Not A Name' is not a valid name" in text
    assert "there is a corpus 'own' already that was not landed here" in text


@pytest.mark.parametrize(
    "name",
    [
        "b.json\n/data/private/x.json",
        "b\r/data/x.json",
        "a\u2028b.json",
        "a\u2029b.json",
        "a\x85b.json",
        "a\x0bb.json",
        "a\x1cb.json",
        "a\udcffb.json",
    ],
    ids=ascii,
)
def test_a_file_name_that_would_be_several_lines_is_a_problem(
    lake: Lake, prefix: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_gz(prefix / "news" / "sound.json.gz", rows(8))
    write_gz(prefix / "news" / f"{name}.gz", rows(8))
    for _ in range(2):  # and does not become a part of its own at the next look
        found = landed(lake, prefix, capsys)
        assert [(part["corpus"], part["num_files"]) for part in found["parts"]] == [("news", 1)]
        (problem,) = found["problems"]
        assert repr(str(prefix / "news" / f"{name}.gz")) in problem
        assert "take it out" in problem
    assert (lake.root / "landed" / "news" / "part-01.list").read_text().splitlines()[1:] == [str(prefix / "news" / "sound.json.gz")]
    with pytest.raises(ValueError, match="take it out"):
        Lists(lake).write("other", 1, "other", [f"/drop/{name}.gz"], recipe="smoke", settings={})
    assert not (lake.root / "landed" / "other").exists()


def test_a_part_that_waits_in_a_lake_that_was_moved_is_ingested_from_there(
    lake: Lake, prefix: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shards(prefix / "news", 1, start=300)
    (before,) = landed(lake, prefix, capsys)["parts"]
    moved = Lake.open(shutil.move(lake.root.path, tmp_path / "moved"))
    (part,) = landed(moved, prefix, capsys)["parts"]
    assert part["settings"]["ingest.source"] == part["list_file"] == str(moved.root / "landed" / "news" / "part-01.list")
    assert part["settings"]["ingest.tokenizer"] == str(moved.corpus("own").tokenizer / "tokenizer.json")
    changed = {"ingest.source", "ingest.tokenizer"}
    assert {key: value for key, value in part["settings"].items() if before["settings"][key] != value}.keys() == changed
    assert land(moved, prefix) == 0
    assert landing.is_ingested(moved.corpus("news"))


@pytest.mark.parametrize("address", ["no/such/folder", "https://example.org/drop", "ftp://example.org/drop"])
def test_a_prefix_that_cannot_be_watched_is_named(lake: Lake, address: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["land", address, "--lake", str(lake.root)]) == 1
    assert address in capsys.readouterr().err


def test_the_watcher_fires_once_for_files_that_rest(lake: Lake, prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("airflow")
    from bliss_ops.airflow.watcher import LandingTrigger

    monkeypatch.setenv("BLISS_LAKE", str(lake.root))
    again = LandingTrigger(**LandingTrigger(str(prefix), 0.05).serialize()[1])

    async def watch() -> list[dict]:
        events: list[dict] = []

        async def listen() -> None:
            async for event in again.run():
                events.append(event.payload["num_new_files"])  # noqa: PERF401 - while it goes on

        listener = asyncio.create_task(listen())
        await asyncio.sleep(0.2)
        assert events == []
        write_shards(prefix / "news", 2)
        await asyncio.sleep(0.4)
        assert events == [{"news": 2}]  # one event, however often it looked
        landing.land(lake, str(prefix), settle_seconds=0)
        write_shards(prefix / "sport", 1)
        await asyncio.sleep(0.4)
        landing.land(lake, str(prefix), settle_seconds=0)
        write_gz(prefix / "sport" / "a\u2028b.json.gz", rows(2))  # can never be taken in: `bliss land` says why
        await asyncio.sleep(0.4)
        listener.cancel()
        return events

    assert asyncio.run(watch()) == [{"news": 2}, {"sport": 1}, {}]


def test_two_landers_at_once_make_one_corpus(lake: Lake, prefix: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slower one has looked before the faster one wrote its list."""
    write_shards(prefix / "news", 3, start=300)
    unlanded, barrier = landing.unlanded, threading.Barrier(2)

    def look_together(*arguments: Any) -> landing.Folders:
        found = unlanded(*arguments)
        barrier.wait(10)
        return found

    monkeypatch.setattr(landing, "unlanded", look_together)
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: landing.land(lake, str(prefix), settle_seconds=0), range(2)))
    assert [[part.corpus for part in found.parts] for found in both] == [["news"], ["news"]]
    assert [path.name for path in (lake.root / "landed" / "news").iterdir()] == ["part-01.list"]
