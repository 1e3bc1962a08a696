"""DSIR on its authors' toy data, against an implementation of the published algorithm that shares no line with ours.

The unit there is a document: each is one row here, padded with end-of-text, which counts as no word. Documents differ in length, and a
log weight is a sum over words, so the published filter (100 words) decides what is picked; sequences of fixed length need none.
"""

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from upath import UPath

from bliss_ops import schemas, scoring, selection
from bliss_ops.corpus import tokenizer, validation
from bliss_ops.corpus.reading import SequenceReader
from bliss_ops.lake import shard_file, write_bytes, write_parquet
from bliss_ops.selectors import SelectorInputs, dsir, random

DATA = Path(__file__).parents[3] / "shared" / "data" / "reference" / "dsir"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="the authors' toy data is kept beside the repository, not in it")

BUCKETS, SMOOTHING, MIN_WORDS = 10_000, 1e-8, 100
LENGTH = 1800  # bytes of the longest document, and its end-of-text
TARGETS = ("FreeLaw", "PubMed Abstracts")  # two subjects of the toy data with documents enough


# ---- the published algorithm, by hand --------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    return re.findall(r"\w+|[^\w\s]+", text.lower())


def ngram_counts(text: str) -> np.ndarray:
    found = words(text)
    grams = Counter(found) + Counter(f"{a} {b}" for a, b in pairwise(found))
    counts = np.zeros(BUCKETS)
    for gram, number in grams.items():
        counts[int(hashlib.sha256(gram.encode("utf-8")).hexdigest(), 16) % BUCKETS] += number
    return counts


def log_weights(target: list[str], raw: list[str]) -> np.ndarray:
    p, q = (np.sum([ngram_counts(text) for text in texts], axis=0) for texts in (target, raw))
    log_ratio = np.log(p / p.sum() + SMOOTHING) - np.log(q / q.sum() + SMOOTHING)
    return np.array([ngram_counts(text) @ log_ratio for text in raw])


# ---- ours ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Window:
    """The toy documents as a candidate window, with some of one subject taken out as the target text."""

    inputs: SelectorInputs
    texts: list[str]
    subjects: np.ndarray
    target: list[str]


def write_bytes_tokenizer(directory: UPath) -> None:
    """Every byte a token: any text survives, whatever it is."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = Tokenizer(models.BPE(vocab={name: number for number, name in enumerate([tokenizer.END_OF_TEXT, *alphabet])}, merges=[]))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    write_bytes(directory / tokenizer.FILE, model.to_str().encode())


def toy(inputs: SelectorInputs, root: UPath, subject: str | None) -> Window:
    """Every second document of the subject is the target text, or the one in the authors' target file."""
    rows = [json.loads(line) for line in (DATA / "toy_pile_data.jsonl").read_text().splitlines()]
    texts, subjects = [row["contents"] for row in rows], np.array([row["metadata"]["pile_set_name"] for row in rows])
    if subject is None:
        target = [json.loads((DATA / "toy_target_data.jsonl").read_text())["contents"]]
    else:
        taken = np.flatnonzero(subjects == subject)[::2]
        target = [texts[row] for row in taken]
        texts, subjects = [text for row, text in enumerate(texts) if row not in set(taken.tolist())], np.delete(subjects, taken)
    write_bytes_tokenizer(root / "tokenizer")
    tokens = tokenizer.load(root / "tokenizer")
    schema = schemas.sequences(LENGTH, tokens.vocab_size)
    ids, _ = validation.windows(tokens, texts, LENGTH)
    assert len(ids) == len(texts)
    column = pa.array(ids.tolist(), schema.field("input_ids").type)
    write_parquet(shard_file(root / "sequences", 0), pa.table([pa.array(np.arange(len(texts))), column], schema=schema))
    guide = validation.windows(tokens, target, LENGTH)
    columns = [pa.array(part.tolist(), schemas.validation(LENGTH).field(0).type) for part in guide]
    write_parquet(root / "validation" / "guide.parquet", pa.table(columns, schema=schemas.validation(LENGTH)))
    reader = SequenceReader([shard_file(root / "sequences", 0)])
    there = replace(inputs, tokenizer=root / "tokenizer", candidates=reader, validation=root / "validation", vocab_size=tokens.vocab_size)
    return Window(there, texts, subjects, target)


def scores(window: Window, directory: UPath, **settings: Any) -> np.ndarray:
    """Of every document, in order."""
    config = window.inputs.config
    changed = config.model_copy(update={"dsir": config.dsir.model_copy(update=settings)})
    dsir.fit(replace(window.inputs, config=changed), directory)
    ids, tokens = next(window.inputs.candidates.sample(len(window.texts), 0))
    found = np.empty(len(ids), np.float32)
    found[ids] = dsir.load_scorer(directory)(ids, tokens)
    return found


def selected(window: Window, score_N: np.ndarray, keep: int, directory: UPath) -> list[int]:
    """The ids that `bliss select` keeps of the documents long enough."""
    long = np.flatnonzero([len(words(text)) >= MIN_WORDS for text in window.texts])
    scoring.write_shard(directory / "scores", 0, long, score_N[long])
    config = window.inputs.config
    budget = config.model_copy(update={"selection": config.selection.model_copy(update={"fraction": (keep + 0.5) / len(long)})})
    selection.select(budget, directory / "scores", [0], directory / "selection")
    return sorted(pq.read_table(str(shard_file(directory / "selection", 0)))["sequence_id"].to_pylist())


@pytest.mark.parametrize("sampling", ["top_k", "gumbel"])
def test_weights_and_selection_are_the_published_ones(inputs: SelectorInputs, tmp_path: Path, sampling: str) -> None:
    """The authors' target text, which is one of the raw documents and so the first to be picked."""
    window = toy(inputs, UPath(tmp_path), None)
    ours = scores(window, UPath(tmp_path / "selector"), sampling=sampling)
    by_hand = log_weights(window.target, window.texts)
    if sampling == "gumbel":
        by_hand = by_hand + random.gumbel(np.arange(len(by_hand)), inputs.config.seed, 1, stream=0x64736972)
    np.testing.assert_allclose(ours, by_hand, rtol=1e-5, atol=1e-3)
    long = [row for row, text in enumerate(window.texts) if len(words(text)) >= MIN_WORDS]
    best = sorted(long, key=lambda row: -by_hand[row])[:50]
    assert selected(window, ours, 50, UPath(tmp_path)) == sorted(best)
    assert window.texts[best[0]] == window.target[0]


@pytest.mark.parametrize("subject", TARGETS)
def test_held_out_text_of_the_targets_subject_is_picked(inputs: SelectorInputs, tmp_path: Path, subject: str) -> None:
    """Half of a subject is the target; of as many documents as the other half has, at least half are of it, 2 % by chance."""
    window = toy(inputs, UPath(tmp_path), subject)
    held_out = int((window.subjects == subject).sum())
    chosen = selected(window, scores(window, UPath(tmp_path / "selector")), held_out, UPath(tmp_path))
    share = (window.subjects[chosen] == subject).mean()
    assert share >= 0.5
    assert (window.subjects == subject).mean() < 0.03
