"""Chosen documents come back whole, by id, from any shard, without reading the rest."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upath import UPath

from bliss_ops import schemas
from bliss_ops.corpus.texts import iter_documents, read_documents
from bliss_ops.lake import Corpus, shard_file
from bliss_ops.sharding import ROWS_PER_SHARD
from tests.lakes import SCRIPT, make_corpus


def test_documents_of_several_shards_in_the_order_of_their_ids(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path).corpus("tiny")
    found = read_documents(corpus, [ROWS_PER_SHARD, 3, 3, ROWS_PER_SHARD + 5])
    assert list(found) == [3, ROWS_PER_SHARD, ROWS_PER_SHARD + 5]
    assert found[ROWS_PER_SHARD].text == SCRIPT
    assert found[3].text.startswith("prose document 3. ")
    assert (found[3].source, found[3].url, found[3].domain) == ("prose", "https://prose.example/3", "prose.example")


def test_ids_that_do_not_exist_are_left_out(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path).corpus("tiny")
    assert list(read_documents(corpus, [-1, 2, 9_999, 7 * ROWS_PER_SHARD])) == [2]


def test_a_cut_text_says_how_long_the_whole_is(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path).corpus("tiny")
    (whole,) = read_documents(corpus, [1]).values()
    (cut,) = read_documents(corpus, [1], most_characters=12).values()
    assert (cut.text, cut.num_characters, cut.is_cut, whole.is_cut) == (whole.text[:12], len(whole.text), True, False)


def many_row_groups(corpus: Corpus, num_documents: int, rows_per_group: int) -> None:
    columns = {
        "document_id": list(range(num_documents)),
        "source": ["é"] * num_documents,
        "url": [None] * num_documents,
        "domain": [None] * num_documents,
        "timestamp": [None] * num_documents,
        "text": [f"text {row} \N{GRINNING FACE}" for row in range(num_documents)],
        "num_bytes": [0] * num_documents,
    }
    path = Path(shard_file(corpus.documents, 0).path)
    pq.write_table(pa.table(columns, schema=schemas.DOCUMENTS), path, row_group_size=rows_per_group)


def test_only_the_row_groups_asked_for_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = make_corpus(tmp_path).corpus("tiny")
    many_row_groups(corpus, 1000, 100)
    read: list[int] = []
    original = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, group, **kwargs: (read.append(group), original(self, group, **kwargs))[1]
    )
    texts = [(document.document_id, document.text, document.url) for document in iter_documents(corpus, [999, 0, 99, 100, 550])]
    assert texts == [(row, f"text {row} \N{GRINNING FACE}", "") for row in (0, 99, 100, 550, 999)]
    assert read == [0, 1, 5, 9]


def test_a_lake_on_an_object_store(tmp_path: Path) -> None:
    local = make_corpus(tmp_path).corpus("tiny")
    memory = make_corpus_in_memory(local)
    assert read_documents(memory, [4]) == read_documents(local, [4])


def make_corpus_in_memory(local: Corpus) -> Corpus:
    from bliss_ops.lake import Lake

    root = UPath("memory://texts-lake")
    for file in Path(local.lake.root.path).rglob("*"):
        if file.is_file():
            target = root / str(file.relative_to(local.lake.root.path))
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    return Lake(root).corpus("tiny")
