"""A test words cannot win: intact prose beside its own word-shuffled copies, far sources, and text that repeats itself.

    .venv/bin/python benchmarks/word_order.py --source 'corpora/*.json.gz' --validation lambada.jsonl \\
        --seeds 0 1 2 --methods random,classifier,dsir,bliss --lake lakes/word-order
    .venv/bin/python benchmarks/word_order.py --source 'corpora/*.json.gz' --only-build corpora/word-order

The derived corpus has four groups, told apart by the first word of a source: `intact-*`, prose with its whitespace made single spaces;
`shuffled-*`, exactly the same pieces with their words in random order, so that no count of words tells the two apart; `far-*`, other
text as it is; `repeated-*`, one sentence over and over, cheap to learn and worth nothing. A method that reads order selects the intact
ones, and a target trained on its selection has the lower held-out loss. Ends with one line of JSON.
"""

import argparse
import gzip
import json
import re
import sys
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from selection_quality import Row, Scored, add_arguments, auc, measure, names, print_row, print_summary, summary

from bliss_ops.corpus.readers import ENDINGS, Document, read_records
from bliss_ops.corpus.source import expand

PROSE = "books,speeches,openwebtext,movie-reviews,wikipedia,pile-openwebtext2,cc-ccby,c4-train.00000-of-00003"
FAR = "pile-dm-mathematics,pile-ubuntu-irc,github,pile-uspto-backgrounds,stackexchange,arxiv"
GROUPS = ("intact", "shuffled", "far", "repeated")

PIECE_WORDS = 1000  # longer documents are cut, so that one long document does not stand for its source
REPEATED_WORDS = 400  # about three sequences of 128 tokens
SENTENCE_WORDS = range(8, 25)  # short enough to come round several times within one sequence
MAX_DOCUMENT_BYTES = 100_000_000

_WORD = re.compile(r"\S+\s*")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


@dataclass(frozen=True)
class Piece:
    """A document, or a part of a long one, and where it came from."""

    text: str
    url: str


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser, recipe="small")
    parser.add_argument("--source", required=True, help="C4-format shards, one file per source")
    parser.add_argument("--prose", default=PROSE, help="file names of natural prose, without endings (default: %(default)s)")
    parser.add_argument("--far", default=FAR, help="file names of far sources (default: %(default)s)")
    parser.add_argument("--megabytes", type=float, default=4.0, help="intact text; shuffled and far are as much, repeated a quarter")
    parser.add_argument("--build-seed", type=int, default=0, help="seed of the derived corpus, the same for all runs")
    parser.add_argument("--only-build", metavar="DIRECTORY", help="write the derived corpus and stop")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bliss-word-order-") as scratch:
        root = arguments.lake or scratch
        directory = Path(arguments.only_build or Path(root) / "word-order")
        settings = {"prose": names(arguments.prose), "far": names(arguments.far)}
        sizes = build(directory, arguments.source, megabytes=arguments.megabytes, seed=arguments.build_seed, **settings)
        if arguments.only_build:
            print(json.dumps(sizes))
            return 0
        arguments.corpus = arguments.corpus or "word-order"
        rows: list[Row] = []
        for seed in arguments.seeds:
            for row, scored in measure(seed, root, arguments, source=str(directory / "*.json.gz")):
                rows.append(row | order_facts(scored))
                print_row(rows[-1])
    print_summary(rows, columns=("intact_over_shuffled", "repeated_over_intact", *GROUPS, "fidelity", "seconds"))
    print(json.dumps({"corpus": sizes} | summary(rows, arguments)))
    return 0


def order_facts(scored: Scored) -> Row:
    """Composition of the selection, and how the scores rank the groups against each other (AUC)."""
    group_N = np.char.partition(scored.source_N, "-")[:, 0]
    score_of = {group: scored.score_N[group_N == group] for group in GROUPS}
    shares = {group: float((group_N[scored.selected_N] == group).mean()) for group in GROUPS}
    return shares | {
        "intact_over_shuffled": auc(score_of["intact"], score_of["shuffled"]),
        "repeated_over_intact": auc(score_of["repeated"], score_of["intact"]),
        "intact_over_far": auc(score_of["intact"], score_of["far"]),
    }


# ---- the derived corpus ----------------------------------------------------------------------------------------------


def build(
    directory: Path,
    source: str,
    *,
    prose: Sequence[str] = tuple(PROSE.split(",")),
    far: Sequence[str] = tuple(FAR.split(",")),
    megabytes: float = 4.0,
    seed: int = 0,
) -> dict[str, Row]:
    """Write the four groups into `directory`; the same arguments write the same bytes.

    Args:
        directory: takes `<group>-<source>.json.gz`.
        source: the shards that `prose` and `far` name files of.
        prose: file names, without endings, of natural prose.
        far: the same of text unlike it.
        megabytes: text of the intact group, spread evenly over its sources as far as they reach.
        seed: of the choice of documents, their words' order and the repeated sentences.

    Returns:
        For each group the number of documents and of bytes of text.

    Raises:
        ValueError: a named file is not among the shards.
    """
    files = {_stem(uri): uri for uri in expand(source)}
    if unknown := sorted({*prose, *far} - files.keys()):
        raise ValueError(f"no file of {source!r} is called {', '.join(unknown)}: there are {', '.join(sorted(files))}")
    budget = int(megabytes * 1_000_000)
    read_prose = {name: _pieces(files[name], name, seed) for name in prose}
    chosen = _spread({name: map(_with_single_spaces, pieces) for name, pieces in read_prose.items()}, budget)
    repeated = _spread({"prose": _repeated(read_prose, seed)}, budget // 4)
    groups = {
        "intact": chosen,
        "shuffled": {name: _shuffled(pieces, name, seed) for name, pieces in chosen.items()},
        "far": _spread({name: iter(_pieces(files[name], name, seed)) for name in far}, budget),
        "repeated": repeated,
    }
    directory.mkdir(parents=True, exist_ok=True)
    for stale in (file for group in GROUPS for file in directory.glob(f"{group}-*.json.gz")):
        stale.unlink()
    for group, sources in groups.items():
        for name, pieces in sources.items():
            _write(directory / f"{group}-{name}.json.gz", pieces)
    return {group: _size(piece for pieces in sources.values() for piece in pieces) for group, sources in groups.items()}


def _pieces(uri: str, name: str, seed: int) -> list[Piece]:
    """The pieces of one file, in a seeded order."""
    pieces = []
    for record in read_records(uri, MAX_DOCUMENT_BYTES):
        if isinstance(record, Document):
            words = _WORD.findall(record.text)
            parts = ["".join(words[begin : begin + PIECE_WORDS]) for begin in range(0, len(words), PIECE_WORDS)]
            pieces += [Piece(part, record.url or f"{name}#{record.line_number}") for part in parts]
    return [pieces[i] for i in _random(seed, name, "order").permutation(len(pieces))]


def _spread(sources: dict[str, Iterator[Piece]], budget: int) -> dict[str, list[Piece]]:
    """Pieces until `budget` bytes are reached, each time from the source that has given least and has some left."""
    chosen: dict[str, list[Piece]] = {name: [] for name in sources}
    given = dict.fromkeys(sources, 0)
    left = dict(sources)
    while left and sum(given.values()) < budget:
        name = min(left, key=given.__getitem__)
        piece = next(left[name], None)
        if piece is None:
            del left[name]
        else:
            chosen[name].append(piece)
            given[name] += len(piece.text.encode())
    return {name: pieces for name, pieces in chosen.items() if pieces}


def _with_single_spaces(piece: Piece) -> Piece:
    """Shuffled copies cannot keep line breaks where they were, so the intact ones may not have any either."""
    return Piece(" ".join(piece.text.split()), piece.url)


def _shuffled(pieces: Sequence[Piece], name: str, seed: int) -> list[Piece]:
    random = _random(seed, name, "words")
    return [Piece(" ".join(random.permutation(np.array(piece.text.split(), dtype=object))), piece.url) for piece in pieces]


def _repeated(sources: dict[str, list[Piece]], seed: int) -> Iterator[Piece]:
    """One sentence of each piece, repeated; every sentence once."""
    seen: set[str] = set()
    pieces = [piece for listed in sources.values() for piece in listed]
    for i in _random(seed, "prose", "sentences").permutation(len(pieces)):
        sentences = [" ".join(sentence.split()) for sentence in _SENTENCE_END.split(pieces[i].text)]
        sentence = next((text for text in sentences if len(text.split()) in SENTENCE_WORDS and text not in seen), None)
        if sentence is not None:
            seen.add(sentence)
            yield Piece(" ".join([sentence] * (REPEATED_WORDS // len(sentence.split()))), pieces[i].url)


def _random(seed: int, *purpose: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32("/".join(purpose).encode())])


def _stem(uri: str) -> str:
    name = uri.rsplit("/", 1)[-1]
    return next((name.removesuffix(ending) for ending in ENDINGS if name.endswith(ending)), name)


def _write(path: Path, pieces: Sequence[Piece]) -> None:
    lines = "".join(json.dumps({"text": piece.text, "url": piece.url, "timestamp": None}) + "\n" for piece in pieces)
    path.write_bytes(gzip.compress(lines.encode(), mtime=0))


def _size(pieces: Iterator[Piece]) -> Row:
    lengths = [len(piece.text.encode()) for piece in pieces]
    return {"num_documents": len(lengths), "num_bytes": sum(lengths)}


if __name__ == "__main__":
    sys.exit(main())
