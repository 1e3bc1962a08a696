"""Packing: sequences are the documents' token stream cut every T, spans add up, and equal input gives equal bytes."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bliss_ops import pipeline, schemas
from bliss_ops.corpus import documents, packing, tokenizer
from tests.corpus.corpora import REAL, configure, contents, rows, table, text_of, write_gz

T = 32


def packed(tmp_path, shards, **values):
    for name, lines in shards.items():
        write_gz(tmp_path / "in" / name, lines)
    corpus = configure(tmp_path / "lake", source=str(tmp_path / "in"), **({"sequence_length": T} | values))
    for stage in pipeline.CORPUS_STAGES[:3]:
        stage.do(corpus)
    return corpus, pipeline.pack(corpus)


def stream(corpus, shard):
    """Every token of a shard with the document it belongs to, by the plainest means."""
    ours = tokenizer.load(corpus.tokenizer)
    tokens, owners = [], []
    for row in table(corpus.documents, f"shard-{shard:05d}.parquet").to_pylist():
        ids = [*ours.encode_flat([row["text"]], fast=False)[0].tolist(), ours.eot_id]
        tokens += ids
        owners += [row["document_id"]] * len(ids)
    return tokens, owners


def check_shard(corpus, shard, length=T):
    tokens, owners = stream(corpus, shard)
    sequences = table(corpus.sequences, f"shard-{shard:05d}.parquet")
    spans = table(corpus.sequences, f"spans/shard-{shard:05d}.parquet")
    count = len(tokens) // length
    assert sequences.schema.equals(schemas.sequences(length, 512))
    assert spans.schema.equals(schemas.SPANS)
    assert sequences["sequence_id"].to_pylist() == list(range(shard * 10_000_000, shard * 10_000_000 + count))
    assert [token for row in sequences["input_ids"].to_pylist() for token in row] == tokens[: count * length]
    expanded = [(row["sequence_id"], row["document_id"]) for row in spans.to_pylist() for _ in range(row["num_tokens"])]
    assert expanded == [(shard * 10_000_000 + position // length, owners[position]) for position in range(count * length)]
    return count, len(tokens) - count * length


def test_sequences_are_the_stream_cut_every_t_tokens(tmp_path):
    corpus, manifest = packed(tmp_path, {"a.json.gz": rows(60), "b.json.gz": rows(40, start=500)})
    counts = [check_shard(corpus, shard) for shard in (0, 1)]
    assert manifest.metrics["num_sequences"] == sum(count for count, _ in counts)
    assert manifest.metrics["num_tail_tokens"] == sum(tail for _, tail in counts)
    assert manifest.metrics["num_tokens"] == T * manifest.metrics["num_sequences"]
    assert manifest.metrics["num_documents"] == 100
    assert manifest.metrics["num_shards_encoded_slowly"] == 0


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 400), min_size=1, max_size=25), group=st.integers(1, 5), group_bytes=st.integers(50, 3000))
def test_any_mix_of_document_lengths_and_row_groups(tmp_path_factory, lengths, group, group_bytes):
    tmp_path = tmp_path_factory.mktemp("mix")
    texts = [{"text": text_of(0)}] + [{"text": (text_of(n) * 9)[:length] or "x"} for n, length in enumerate(lengths)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schemas, "SEQUENCES_PER_ROW_GROUP", group)
        patch.setattr(documents, "_BYTES_PER_GROUP", group_bytes)
        corpus, manifest = packed(tmp_path, {"a.json.gz": texts})
    assert check_shard(corpus, 0) == (manifest.metrics["num_sequences"], manifest.metrics["num_tail_tokens"])


def test_full_row_groups_and_equal_bytes_twice(tmp_path):
    shards = {"a.json.gz": rows(700), "b.json.gz": rows(5)}
    corpus, _ = packed(tmp_path / "one", shards)
    again, _ = packed(tmp_path / "two", shards)
    assert contents(corpus.sequences) == contents(again.sequences)
    import pyarrow.parquet as pq

    metadata = pq.ParquetFile(str(corpus.sequences / "shard-00000.parquet")).metadata
    counts = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    assert len(counts) > 2
    assert set(counts[:-1]) == {schemas.SEQUENCES_PER_ROW_GROUP}


def test_a_deleted_or_killed_shard_is_made_again(tmp_path):
    corpus, _ = packed(tmp_path, {f"{name}.json.gz": rows(40, start=n * 99) for n, name in enumerate("abc")})
    before = contents(corpus.sequences)
    untouched = (corpus.sequences / "shard-00002.parquet").stat().st_mtime_ns
    (corpus.sequences / "spans" / "shard-00001.parquet").unlink()
    (corpus.sequences / "manifest.json").unlink()
    (corpus.sequences / "_shards" / "shard-00000.json").unlink()  # killed between its files and its record
    pipeline.pack(corpus)
    assert contents(corpus.sequences) == before
    assert (corpus.sequences / "shard-00002.parquet").stat().st_mtime_ns == untouched


def test_a_shard_too_short_for_a_sequence_is_counted(tmp_path, caplog):
    corpus, manifest = packed(tmp_path, {"a.json.gz": rows(30), "b.json.gz": [{"text": "short"}], "c.json.gz": []})
    assert manifest.metrics["num_empty_shards"] == 2
    assert table(corpus.sequences, "shard-00001.parquet").num_rows == 0
    assert table(corpus.sequences, "spans/shard-00001.parquet").num_rows == 0
    assert "shard 1 fills no sequence (1 documents" in caplog.text


def test_no_sequence_at_all_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"fills no sequence: 1 shards hold \d+ tokens.*sequence_length"):
        packed(tmp_path, {"a.json.gz": [{"text": "short"}]})


class Lying:
    """A fast tokenizer that is wrong about one text, wherever it stands."""

    def __init__(self, honest, wrong):
        self.honest, self.wrong = honest, wrong

    def encode_batch(self, texts):
        return self.honest.encode_batch([text.swapcase() if text.startswith(self.wrong) else text for text in texts])


@pytest.mark.parametrize("liar", [0, 599])
def test_where_the_fast_tokenizer_differs_the_reference_takes_over(tmp_path, monkeypatch, caplog, liar):
    values = rows(600)
    monkeypatch.setattr(documents, "_BYTES_PER_GROUP", sum(len(value["text"]) for value in values[:-1]))  # the last text is a row group
    corpus, _ = packed(tmp_path, {"a.json.gz": values})
    honest = contents(corpus.sequences)

    load = tokenizer.load

    def load_liar(directory):
        ours = load(directory)
        ours._fast = Lying(ours._fast, values[liar]["text"][:20])
        return ours

    monkeypatch.setattr(packing, "load", load_liar)
    record = packing.make_worker(corpus.documents, corpus.tokenizer, corpus.sequences, T)(0)
    assert record.metrics["num_shards_encoded_slowly"] == 1
    assert "give different ids on shard 0" in caplog.text
    assert contents(corpus.sequences) == honest


def test_real_c4_shards(tmp_path):
    source = REAL / "corpora" / "c4-train.0000*.json.gz"
    tokenizer_json = REAL / "tokenizers" / "gpt-neox-20b" / "tokenizer.json"
    if not tokenizer_json.is_file():
        pytest.skip("the real C4 shards are not on this machine")
    lambada = str(REAL / "bench" / "lambada" / "lambada_test.part1.jsonl")
    corpus = configure(
        tmp_path / "lake",
        source=str(source),
        tokenizer=str(tokenizer_json),
        sequence_length=1024,
        validation={"name": "lambada", "source": lambada},
    )
    pipeline.ingest(corpus.lake, corpus.name)
    counts = [table(corpus.documents, f"shard-0000{n}.parquet").num_rows for n in range(3)]
    assert counts == [1000, 999, 300]
    ours = tokenizer.load(corpus.tokenizer)
    texts = table(corpus.documents, "shard-00002.parquet")["text"].to_pylist()
    expected = np.concatenate([np.append(ids, ours.eot_id) for ids in ours.encode_batch(texts)])
    written = np.concatenate(table(corpus.sequences, "shard-00002.parquet")["input_ids"].to_pylist())
    assert np.array_equal(written, expected[: len(written)])
    assert 0 <= len(expected) - len(written) < 1024
