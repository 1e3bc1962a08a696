"""Tokenizers: trained or copied, refused when they are none, and the fast path held against the reference."""

import json

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers
from upath import UPath

from bliss_ops import pipeline
from bliss_ops.corpus import tokenizer
from tests.corpus.corpora import REAL, configure, rows, write_gz

STRANGE = [
    "",
    " ",
    "\n\n\t ",
    "naïve café — “quotes” … ½ ﬁ",
    "日本語とEnglishと한국어 🏴‍☠️👩‍👩‍👧 e\u0301",
    "a" * 5000,
    "1234567890" * 50,
    "<|endoftext|> inside a text",
    "\u200b\ufeff\u202e",
    "it's they'll I'D  don''t",
    "x = {'a': [1, 2]}\n    return  x\r\n",
]


def trained(tmp_path, **settings):
    write_gz(tmp_path / "in" / "a.json.gz", rows(150))
    write_gz(tmp_path / "in" / "b.json.gz", rows(150, start=1000))
    corpus = configure(tmp_path / "lake", source=str(tmp_path / "in"), **settings)
    pipeline.discover(corpus)
    pipeline.extract(corpus)
    return corpus, pipeline.train_tokenizer(corpus)


def test_training_is_deterministic_and_end_of_text_is_zero(tmp_path):
    corpus, manifest = trained(tmp_path / "one")
    again, _ = trained(tmp_path / "two")
    assert manifest.metrics == {"vocab_size": 512, "eot_id": 0, "is_fast": True}
    assert (corpus.tokenizer / "tokenizer.json").read_bytes() == (again.tokenizer / "tokenizer.json").read_bytes()
    ours = tokenizer.load(corpus.tokenizer)
    assert ours.decode([0]) == "<|endoftext|>"
    assert [ours.decode(ids) for ids in ours.encode_batch(STRANGE)] == STRANGE


def test_fast_ids_equal_the_reference_on_strange_text(tmp_path):
    corpus, _ = trained(tmp_path)
    ours = tokenizer.load(corpus.tokenizer)
    reference = tokenizers.Tokenizer.from_file(str(corpus.tokenizer / "tokenizer.json"))
    assert ours.is_fast
    assert [ids.tolist() for ids in ours.encode_batch(STRANGE)] == [reference.encode(text).ids for text in STRANGE]
    assert ours.encode_batch([]) == []
    assert ours.fast_agrees(STRANGE)


@pytest.mark.parametrize("name", ["gpt-neox-20b", "gpt2", "RedPajama-INCITE-Base-7B-v0.1"])
def test_real_tokenizers(tmp_path, name):
    path = REAL / "tokenizers" / name / "tokenizer.json"
    if not path.is_file():
        pytest.skip("the real tokenizers are not on this machine")
    corpus = configure(tmp_path / "lake", source="embedded", tokenizer=str(path))
    files, metrics = tokenizer.train_or_copy(corpus.config, corpus.documents, corpus.tokenizer)
    assert files == ["tokenizer.json"]
    assert metrics["vocab_size"] == {"gpt2": 50257}.get(name, 50277)
    assert metrics["eot_id"] == {"gpt2": 50256}.get(name, 0)
    assert (corpus.tokenizer / "tokenizer.json").read_bytes() == path.read_bytes()
    ours, reference = tokenizer.load(corpus.tokenizer), tokenizers.Tokenizer.from_file(str(path))
    assert [ids.tolist() for ids in ours.encode_batch(STRANGE)] == [
        reference.encode(text, add_special_tokens=False).ids for text in STRANGE
    ]


def test_a_directory_stands_for_its_tokenizer(tmp_path):
    corpus, _ = trained(tmp_path)
    copy = configure(tmp_path / "lake", corpus="copy", source="embedded", tokenizer=str(corpus.tokenizer))
    tokenizer.train_or_copy(copy.config, copy.documents, copy.tokenizer)
    assert (copy.tokenizer / "tokenizer.json").read_bytes() == (corpus.tokenizer / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x00\x01\x02", "is not a tokenizer file.*not JSON"),
        (b"", "is not a tokenizer file.*not JSON"),
        (b"[]", "is not a tokenizer file.*no model"),
        (b'{"model": {"type": "BPE"}}', "is not a tokenizer file.*no model"),
        (b'{"model": {"type": "BPE", "vocab": 3, "merges": []}}', "is not a tokenizer file"),
        (b'{"model": {"type": "BPE", "vocab": {}, "merges": []}}', "is not a tokenizer file"),
        (b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}', "no end-of-text token"),
    ],
)
def test_what_is_not_a_tokenizer_is_refused(tmp_path, content, message):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    corpus = configure(tmp_path / "lake", source="embedded", tokenizer=str(path))
    with pytest.raises(ValueError, match=message):
        tokenizer.train_or_copy(corpus.config, corpus.documents, corpus.tokenizer)
    assert not (corpus.tokenizer / "tokenizer.json").exists()


def test_missing_tokenizer(tmp_path):
    corpus = configure(tmp_path / "lake", source="embedded", tokenizer=str(tmp_path / "gone.json"))
    with pytest.raises(ValueError, match=r"gone\.json does not exist"):
        tokenizer.train_or_copy(corpus.config, corpus.documents, corpus.tokenizer)


def word_level(tmp_path) -> UPath:
    """A kind that gigatoken does not take."""
    words = tokenizers.Tokenizer(models.WordLevel(unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.train_from_iterator(["the river was high"], trainers.WordLevelTrainer(special_tokens=["<unk>", "</s>"]))
    words.enable_truncation(2)
    words.enable_padding(length=8)
    (tmp_path / "tokenizer.json").write_text(words.to_str())
    return UPath(tmp_path)


def test_other_kinds_fall_back_to_the_reference_with_a_warning(tmp_path, caplog):
    ours = tokenizer.load(word_level(tmp_path))
    assert not ours.is_fast
    assert "gigatoken does not take" in caplog.text
    assert ours.eot_id == 1
    [ids] = ours.encode_batch(["the river was unheard of"])
    assert ours.decode(ids) == "the river was <unk> <unk>"  # neither cut nor padded by the file's settings
    assert not ours.fast_agrees(["the river"])


def test_a_gap_in_the_ids_is_read_as_the_reference_does(tmp_path, caplog):
    corpus, _ = trained(tmp_path)
    value = json.loads((corpus.tokenizer / "tokenizer.json").read_bytes())
    value["added_tokens"].append({**value["added_tokens"][0], "id": 600, "content": "<far>"})
    (tmp_path / "tokenizer.json").write_text(json.dumps(value))
    ours = tokenizer.load(UPath(tmp_path))  # tokenizers renumbers the gap away, gigatoken does not: ids must follow the reference
    assert not ours.is_fast
    assert "reads the vocabulary of" in caplog.text
    assert ours.encode_batch(["<far>"])[0].tolist() == [ours.vocab_size - 1]
