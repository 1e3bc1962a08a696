"""The corpus's tokenizer: copied when one is given, else a byte-level BPE trained on the documents.

Encoding goes through gigatoken, measured 20-50 times faster than `tokenizers`; `tokenizers` stays the reference that a sample
of every shard is held against, and takes over, with a warning, where the two differ or gigatoken does not know the kind.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import pyarrow.parquet as pq
from upath import UPath

from bliss_ops.config import IngestConfig
from bliss_ops.corpus.addresses import read_whole, readable, resolve
from bliss_ops.corpus.arrays import Int64s, Integers
from bliss_ops.lake import Corpus, shard_file, write_bytes
from bliss_ops.manifest import read_manifest
from bliss_ops.sharding import Metrics

log = logging.getLogger(__name__)

FILE = "tokenizer.json"
END_OF_TEXT = "<|endoftext|>"

_END_TOKENS = (END_OF_TEXT, "</s>", "<eos>", "<|end_of_text|>", "<|im_end|>")
_KINDS = ("BPE", "Unigram", "WordPiece", "WordLevel")
_FILE_BYTES = 512 << 20  # of a tokenizer.json: the largest known have 40 MB
_TRAINING_BYTES = 20_000_000
_TRAINING_SHARDS = 64  # shards the training text is taken from, evenly spaced
_CHECKED_CHARACTERS = 5_000  # per checked document: the reference needs a second per MB


class Tokenizer:
    """Text to token ids and back.

    Raises:
        ValueError: the content is not a tokenizer file, or has no end-of-text token.
    """

    def __init__(self, content: bytes, where: str) -> None:
        self._reference = _parse(content, where)
        self._reference.no_truncation()  # settings some files carry for their model's context
        self._reference.no_padding()
        ids = self._reference.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(ids.values()) + 1
        end = next((token for token in _END_TOKENS if token in ids), None)
        if end is None:
            raise ValueError(f"{where} has no end-of-text token (one of {', '.join(_END_TOKENS)}): add one to the tokenizer")
        self.eot_id: int = ids[end]
        self._fast = _load_fast(content, where)
        added = [str(token) for token in self._reference.get_added_tokens_decoder().values()]
        if self._fast is not None and not (self._fast.vocab_size == self.vocab_size and self.fast_agrees(added)):
            log.warning("gigatoken reads the vocabulary of %s differently: encoding with tokenizers, 20 to 50 times slower", where)
            self._fast = None

    @property
    def is_fast(self) -> bool:
        return self._fast is not None

    def encode_batch(self, texts: Sequence[str]) -> list[Integers]:
        """Token ids of each text, without end-of-text."""
        ids, lengths = self.encode_flat(texts)
        return np.split(ids, np.cumsum(lengths)[:-1]) if len(texts) else []

    def encode_flat(self, texts: Sequence[str], *, fast: bool = True) -> tuple[Integers, Int64s]:
        """Token ids of all texts in one array, and how many belong to each."""
        if not texts:
            return np.zeros(0, np.uint32), np.zeros(0, np.int64)
        if fast and self._fast is not None:
            layout = self._fast.encode_batch(list(texts)).layout
            offsets = np.asarray(layout.offsets.data)
            return np.asarray(layout.content.data)[offsets[0] : offsets[-1]], np.diff(offsets)
        rows = [encoding.ids for encoding in self._reference.encode_batch(list(texts), add_special_tokens=False)]
        return np.concatenate([np.asarray(row, np.uint32) for row in rows]), np.array([len(row) for row in rows], np.int64)

    def decode(self, ids: Sequence[int] | Integers) -> str:
        return self.decode_batch([ids])[0]

    def decode_batch(self, rows: Sequence[Sequence[int] | Integers]) -> list[str]:
        """The text of each row of token ids; bytes that are no whole character become U+FFFD."""
        texts: list[str] = self._reference.decode_batch([np.asarray(row).tolist() for row in rows], skip_special_tokens=False)
        return texts

    def for_transformers(self) -> tuple[Any, str]:
        """The `tokenizers.Tokenizer` that `PreTrainedTokenizerFast` wraps, and its end-of-text token."""
        return self._reference, str(self._reference.id_to_token(self.eot_id))

    def fast_agrees(self, texts: Sequence[str]) -> bool:
        """Whether gigatoken gives the reference's ids on `texts` (their beginnings)."""
        if self._fast is None:
            return False
        sample = [text[:_CHECKED_CHARACTERS] for text in texts]
        return all(
            np.array_equal(ours, theirs)
            for ours, theirs in zip(self.encode_flat(sample), self.encode_flat(sample, fast=False), strict=True)
        )


def load(directory: UPath) -> Tokenizer:
    """The tokenizer of a tokenizer artifact."""
    path = directory / FILE
    return Tokenizer(path.read_bytes(), str(path))


def copy(source: UPath, directory: UPath) -> str:
    """Copy the tokenizer file of one artifact into another that must stand alone; returns its name."""
    write_bytes(directory / FILE, (source / FILE).read_bytes())
    return FILE


def vocab_size(corpus: Corpus) -> int:
    """Number of tokens of the corpus's tokenizer, from its manifest."""
    return int(read_manifest(corpus.tokenizer, made_by=f"bliss train-tokenizer {corpus.name}").metrics["vocab_size"])


def train_or_copy(config: IngestConfig, documents_dir: UPath, directory: UPath) -> tuple[list[str], Metrics]:
    """Write `tokenizer.json` into `directory`: the given one, or one trained on the documents.

    Raises:
        ValueError: the given file cannot be read or is not a tokenizer.
    """
    content = _fetch(config.tokenizer) if config.tokenizer else _train(documents_dir, config.vocab_size)
    tokenizer = Tokenizer(content, config.tokenizer or "the trained tokenizer")
    write_bytes(directory / FILE, content)
    return [FILE], {"vocab_size": tokenizer.vocab_size, "eot_id": tokenizer.eot_id, "is_fast": tokenizer.is_fast}


def _fetch(uri: str) -> bytes:
    address = resolve(uri)
    with readable(address.uri, address.scheme):
        if address.scheme == "" and address.fs.isdir(address.path):
            address = resolve(f"{address.path}/{FILE}")
    return read_whole(address, _FILE_BYTES)


def _parse(content: bytes, where: str) -> Any:
    import tokenizers

    not_one = f"{where} is not a tokenizer file: give a Hugging Face tokenizer.json"
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:  # the latter where it is nested without end
        raise ValueError(f"{not_one} (it is not JSON)") from error
    model = value.get("model") if isinstance(value, dict) else None
    if not isinstance(model, dict) or "vocab" not in model or model.get("type", "BPE") not in _KINDS:
        raise ValueError(f"{not_one} (it has no model with a vocabulary)")
    try:
        tokenizer = tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises bare Exception, so there is nothing narrower to name
        raise ValueError(f"{not_one} ({error})") from error
    if not tokenizer.get_vocab_size(with_added_tokens=True):
        raise ValueError(f"{not_one} (its vocabulary is empty)")
    return tokenizer


def _load_fast(content: bytes, where: str) -> Any:
    try:
        import gigatoken
    except ImportError:
        log.warning("gigatoken is not installed: encoding with tokenizers, 20 to 50 times slower")
        return None
    try:
        return gigatoken.Tokenizer.from_json(content)
    except (ValueError, TypeError, KeyError, NotImplementedError, RuntimeError) as error:
        log.warning("gigatoken does not take %s (%s): encoding with tokenizers, 20 to 50 times slower", where, error)
        return None


def _train(documents_dir: UPath, vocab_size: int) -> bytes:
    from tokenizers import Tokenizer as Trained
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = Trained(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],  # first, so its id is 0
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_training_texts(documents_dir), trainer)
    return (str(tokenizer.to_str(pretty=True)) + "\n").encode()


def _training_texts(documents_dir: UPath) -> Iterator[str]:
    """The first documents of evenly spaced shards, 20 MB in all."""
    shards = [shard_file(documents_dir, shard) for shard in sorted(read_manifest(documents_dir, made_by="bliss extract CORPUS").shards)]
    chosen = shards[:: -(-len(shards) // _TRAINING_SHARDS) or 1]
    for shard in chosen:
        yield from _first_texts(shard, _TRAINING_BYTES // len(chosen))


def _first_texts(shard: UPath, num_bytes: int) -> Iterator[str]:
    with shard.open("rb") as stream:
        for batch in pq.ParquetFile(stream).iter_batches(batch_size=64, columns=["text"], use_threads=False):
            for text in cast("list[str]", batch.column("text").to_pylist()):
                yield text[:num_bytes]
                num_bytes -= len(text.encode())
                if num_bytes <= 0:
                    return
