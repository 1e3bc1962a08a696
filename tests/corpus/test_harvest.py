"""The embedded corpus: real text of every kind, capped, the same twice, without leaks into the validation set or paths of this machine."""

import gzip
import json
import os
import sys
import time

import pytest

from bliss_ops import pipeline
from bliss_ops.corpus import harvest, prose
from tests.corpus.corpora import configure, contents

KINDS = sorted(harvest.SHARES)


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    corpus = configure(tmp_path_factory.mktemp("embedded"), corpus="embedded", source="embedded", embedded_megabytes=1.0, validation={})
    begun = time.monotonic()
    pipeline.ingest(corpus.lake, corpus.name)
    assert time.monotonic() - begun < 60  # 5 s on two idle cores
    return corpus


def texts(corpus, name):
    return [json.loads(line) for line in gzip.decompress((corpus.source / name).read_bytes()).splitlines()]


def by_kind(corpus):
    return {kind: texts(corpus, f"data/{kind}-00000.json.gz") + texts(corpus, f"data/{kind}-00001.json.gz") for kind in KINDS}


def test_every_kind_has_its_share(embedded):
    for kind, values in by_kind(embedded).items():
        size = sum(len(value["text"].encode()) for value in values)
        share = harvest.SHARES[kind] * 1e6
        assert share <= size <= share + 80_000, kind  # the last text may go over
        assert all(200 <= len(value["text"]) <= 20_000 for value in values)
        assert all(sorted(value) == ["text", "timestamp", "url"] for value in values)
        assert all(value["url"].startswith(f"python://{kind}/") for value in values)


def test_shards_interleave_kinds_so_that_a_window_of_them_has_all(embedded):
    shards = json.loads((embedded.source / "shards.json").read_bytes())
    assert sorted(shard["source"] for shard in shards[: len(KINDS)]) == KINDS
    assert all(not shard["uri"].startswith("/") for shard in shards)


def test_nothing_names_this_machine_or_this_project(embedded):
    values = [value for kind in by_kind(embedded).values() for value in kind] + texts(embedded, "validation.json.gz")
    for value in values:
        assert sys.prefix not in value["url"]
        assert "/.." not in value["url"]
        assert "/bliss-ops/" not in value["url"]
        assert "bliss_ops" not in value["url"]


def test_no_text_comes_twice_and_none_from_the_validation_set(embedded):
    values = [value["text"] for kind in by_kind(embedded).values() for value in kind]
    held_out = [value["text"] for value in texts(embedded, "validation.json.gz")]
    assert len(set(values)) == len(values)
    assert not set(values) & set(held_out)


def test_validation_is_prose_of_other_packages(embedded):
    held_out = texts(embedded, "validation.json.gz")
    kinds = by_kind(embedded)
    families = {value["url"].split("/")[3].split("-")[0] for value in held_out}
    near = {value["url"].split("/")[3].split("-")[0] for kind in ("documentation", "docstrings") for value in kinds[kind]}
    assert len(families) > 5
    assert not families & near
    assert all(prose.is_prose(value["text"]) for value in held_out)
    assert 100_000 < sum(len(value["text"]) for value in held_out) < 450_000
    paragraphs = {paragraph for value in held_out for paragraph in prose.long_paragraphs(value["text"])}
    for value in kinds["documentation"] + kinds["docstrings"]:
        shared = sum(len(paragraph) for paragraph in prose.long_paragraphs(value["text"]) if paragraph in paragraphs)
        assert shared <= 0.1 * len(value["text"])


def test_kinds_differ_as_their_names_say(embedded):
    kinds = by_kind(embedded)
    share = {kind: sum(prose.is_prose(value["text"]) for value in values) / len(values) for kind, values in kinds.items()}
    assert share["documentation"] > 0.5
    assert share["docstrings"] > 0.4
    assert share["code"] < 0.02
    assert share["data"] < 0.02


def test_same_environment_same_bytes(embedded, tmp_path):
    again = configure(tmp_path / "lake", corpus="embedded", source="embedded", embedded_megabytes=1.0, validation={})
    pipeline.discover(again)
    assert contents(again.source) == contents(embedded.source)
    assert (again.source / "shards.json").read_bytes() == (embedded.source / "shards.json").read_bytes()


def test_the_lake_can_be_moved_after_discovery(tmp_path):
    corpus = configure(tmp_path / "here", source="embedded", embedded_megabytes=0.1)
    pipeline.discover(corpus)
    os.rename(tmp_path / "here", tmp_path / "there")  # noqa: PTH104
    moved = configure(tmp_path / "there", source="embedded", embedded_megabytes=0.1)
    assert pipeline.extract(moved).metrics["num_documents"] > 10


def test_only_validation_is_harvested_for_another_source(tmp_path):
    from tests.corpus.corpora import rows, write_gz

    write_gz(tmp_path / "in" / "a.json.gz", rows(60))
    corpus = configure(tmp_path / "lake", source=str(tmp_path / "in"), validation={})
    pipeline.ingest(corpus.lake, corpus.name)
    assert sorted(contents(corpus.source)) == ["validation.json.gz"]
    assert (corpus.validation / "guide.parquet").exists()


@pytest.mark.parametrize(
    ("marked_up", "clean"),
    [
        ("[![build](https://b/x.svg)](https://b)\n\nA library.", "A library."),
        ("# Title\n\nSee [the docs](https://d) or `guide <https://g>`_.", "Title\n\nSee the docs or guide."),
        ("Run:\n\n```sh\npip install x\n```\n\nDone.", "Run:\n\nDone."),
        ("Title\n=====\n\n.. image:: https://i\n   :alt: logo\n\nText::\n\n    code\n\nEnd.", "Title\n\nText::\n\nEnd."),
        ("<!-- licence -->\n<p align='center'>Hello</p>", "Hello"),
        ("| a | b |\n|---|---|\n| 1 | 2 |\nAfter.", "After."),
    ],
)
def test_cleaning_takes_the_mark_up_off(marked_up, clean):
    assert prose.clean(marked_up) == clean


def test_long_texts_are_cut_at_a_boundary():
    paragraph = "word " * 300
    cut = harvest._cut("\n\n".join([paragraph.strip()] * 30))
    assert len(cut) <= 20_000
    assert cut.endswith("word")
    assert len(cut) % (len(paragraph.strip()) + 2) == len(paragraph.strip())
