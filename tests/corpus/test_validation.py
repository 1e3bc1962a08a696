"""The validation set: windows of single documents, labels, and two parts that never share a document."""

import numpy as np
import pytest

from bliss_ops import pipeline, schemas
from bliss_ops.config import ValidationConfig
from bliss_ops.corpus import tokenizer, validation
from bliss_ops.manifest import read_manifest
from tests.corpus.corpora import configure, contents, rows, table, text_of, write_gz

T = 16


def prepared(tmp_path, lines, name="v.jsonl.gz", **values):
    write_gz(tmp_path / "in" / "a.json.gz", rows(60))
    write_gz(tmp_path / "valid" / name, lines)
    settings = {"name": "valid", "source": str(tmp_path / "valid" / name)} | values
    corpus = configure(tmp_path / "lake", source=str(tmp_path / "in"), sequence_length=T, validation=settings)
    for stage in pipeline.CORPUS_STAGES[:3]:
        stage.do(corpus)
    return corpus, pipeline.prepare_validation(corpus)


def test_documents_are_split_in_order_and_come_back_whole(tmp_path):
    lines = [{"text": text_of(n, sentences=1 + n % 5)} for n in range(10)]
    corpus, manifest = prepared(tmp_path, lines, holdout_fraction=0.3)
    ours = tokenizer.load(corpus.tokenizer)
    expected = [[*ids.tolist(), ours.eot_id] for ids in ours.encode_batch([line["text"] for line in lines])]
    for part, texts in (("guide", expected[:7]), ("holdout", expected[7:])):
        read = validation.read(corpus.validation, part)
        input_ids, labels = read.input_ids_NT, read.labels_NT
        assert (read.weight_N == 1).all()
        assert table(corpus.validation, f"{part}.parquet").schema.equals(schemas.validation(T))
        assert input_ids.dtype == labels.dtype == np.int64
        assert input_ids.shape == labels.shape == (manifest.metrics[f"num_{part}_rows"], T)
        counted = labels != validation.IGNORED
        assert np.array_equal(input_ids[counted], labels[counted])
        assert (input_ids[~counted] == ours.eot_id).all()
        assert counted.sum() == manifest.metrics[f"num_{part}_tokens"]
        assert not (~counted[:, :-1] & counted[:, 1:]).any()  # padding only at the end of a row
        # Whole and in order; only an end-of-text that would stand alone in its window is missing.
        assert labels[counted].tolist() == [token for text in texts for token in (text[:-1] if len(text) % T == 1 else text)]


def test_a_window_of_one_token_is_left_out(tmp_path):
    corpus, _ = prepared(tmp_path, [{"text": text_of(0)}, {"text": text_of(1)}])
    ours = tokenizer.load(corpus.tokenizer)
    words = ours.decode(ours.encode_batch([text_of(2)])[0][:T])
    exact = next(words[:cut] for cut in range(len(words), 0, -1) if len(ours.encode_batch([words[:cut]])[0]) == T)
    input_ids, labels = validation.windows(ours, [exact], T)
    assert input_ids.shape == (1, T)
    assert (labels != validation.IGNORED).all()


def test_several_sets_are_one_with_weights(tmp_path):
    lines = [{"text": text_of(n, sentences=1 + n % 5)} for n in range(10)]
    other = write_gz(tmp_path / "valid" / "other.jsonl.gz", [{"text": text_of(n, sentences=9)} for n in range(20, 24)])
    corpus, manifest = prepared(tmp_path, lines, weight=3.0, others=[{"source": str(other), "weight": 1.0}])
    alone, _ = prepared(tmp_path / "alone", [{"text": text_of(n, sentences=9)} for n in range(20, 24)])
    assert manifest.metrics["num_documents"] == 14
    assert validation.set_names(corpus.config.validation) == ["v", "other"]
    for part in validation.PARTS:
        read = validation.read(corpus.validation, part)
        assert table(corpus.validation, f"{part}.parquet").schema.equals(schemas.validation(T, several_sets=True))
        assert len(read) == manifest.metrics[f"num_{part}_rows"]
        second = read.take(read.set_N == 1)
        assert np.array_equal(second.labels_NT, validation.read(alone.validation, part).labels_NT)  # each set is split for itself
        # Any loss per token: its weighted mean over all tokens is the mean of the sets' means, three parts to one.
        counted = read.labels_NT[:, 1:] != validation.IGNORED
        loss_NT = np.random.default_rng(0).random(counted.shape)
        mean = [loss_NT[read.set_N == k][counted[read.set_N == k]].mean() for k in (0, 1)]
        weighted = np.average(loss_NT[counted], weights=np.broadcast_to(read.weight_N[:, None], counted.shape)[counted])
        assert weighted == pytest.approx((3 * mean[0] + mean[1]) / 4, rel=1e-12)
        assert (counted.sum(1) * read.weight_N).sum() == pytest.approx(counted.sum(), rel=1e-12)


def test_every_set_must_be_large_enough(tmp_path):
    other = write_gz(tmp_path / "valid" / "other.jsonl.gz", [{"text": "only one"}])
    with pytest.raises(ValueError, match=r"other\.jsonl\.gz' has 1 usable documents"):
        prepared(tmp_path, [{"text": text_of(n)} for n in range(4)], others=[{"source": str(other)}])


def test_sets_of_the_same_name_are_told_apart():
    config = ValidationConfig(source="a/v.jsonl", others=({"source": "b/v.jsonl"}, {"source": "c.jsonl"}))
    assert validation.set_names(config) == ["v-1", "v-2", "c"]


def test_weight_of_a_set_alone_changes_nothing(tmp_path):
    lines = [{"text": text_of(n)} for n in range(6)]
    corpus, manifest = prepared(tmp_path / "one", lines)
    other, weighted = prepared(tmp_path / "two", lines, weight=5.0)
    assert contents(corpus.validation) == contents(other.validation)
    assert manifest.identity.keys() == {"name", "source", "holdout_fraction", "sequence_length"}
    assert weighted.identity.keys() == manifest.identity.keys()


def test_equal_input_gives_equal_bytes(tmp_path):
    lines = [{"text": text_of(n)} for n in range(6)]
    assert contents(prepared(tmp_path / "one", lines)[0].validation) == contents(prepared(tmp_path / "two", lines)[0].validation)


def test_bad_lines_are_counted(tmp_path, caplog):
    _, manifest = prepared(tmp_path, [{"text": text_of(1)}, b"not JSON", {"text": text_of(2)}])
    assert manifest.metrics["num_rejects"] == 1
    assert "1 not JSON" in caplog.text


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "0 usable documents"),
        ([{"text": "only one"}], "1 usable documents.*at least two"),
        ([{"other": "x"}, {"text": ""}], r"0 usable documents \(rejected: 1 empty text, 1 no text key\)"),
    ],
)
def test_a_set_too_small_to_split_is_an_error(tmp_path, lines, message):
    with pytest.raises(ValueError, match=message):
        prepared(tmp_path, lines)


@pytest.mark.parametrize("source", [None, ""])
def test_no_validation_set(tmp_path, source):
    with pytest.raises(ValueError, match=r"no validation set: set ingest\.validation\.source"):
        prepared(tmp_path, [{"text": "x"}], source=source)


def test_missing_validation_file(tmp_path):
    with pytest.raises(ValueError, match=r"gone\.jsonl does not exist"):
        prepared(tmp_path, [{"text": "x"}], source=str(tmp_path / "gone.jsonl"))


def test_unpadded_rows_are_the_text_alone():
    masked = np.array([[-100, 2, 3, -100], [4, 5, -100, -100], [6, 7, 8, 9], [-100] * 4])
    rows = validation.ValidationRows.unweighted(np.array([[1, 2, 3, 0], [4, 5, 0, 0], [6, 7, 8, 9], [0] * 4]), masked)
    assert [row.tolist() for row in validation.unpadded(rows)] == [[1, 2, 3], [4, 5], [6, 7, 8, 9], []]


def test_a_corpus_can_be_without_one_but_not_be_trained_on(tmp_path):
    corpus = configure(
        tmp_path / "lake", source=str(write_gz(tmp_path / "a.json.gz", rows(9))), validation={"name": "none", "source": "none"}
    )
    for stage in pipeline.CORPUS_STAGES:
        stage.do(corpus)
    assert read_manifest(corpus.validation, made_by="").outputs == []
    with pytest.raises(ValueError, match="ingested to be scored only"):
        validation.read(corpus.validation, "guide")
