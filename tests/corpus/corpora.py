"""Small corpora on disk for the tests of ingestion: written by hand, ingested by the real pipeline."""

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from bliss_ops.config import IngestConfig
from bliss_ops.lake import Corpus, Lake, write_json

SENTENCES = (
    "The river was high that spring, and nobody crossed it before noon.",
    "A lamp burned in the kitchen while the letters were being written.",
    "They counted the boats twice and found that one of them was missing.",
    "Nothing in the report explained why the bridge had been left open.",
)
REAL = Path(__file__).parents[3] / "shared" / "data"


def text_of(number: int, sentences: int = 6) -> str:
    """A document that differs from the others in its numbers and in the order of its sentences."""
    return " ".join(f"{number}.{i} {SENTENCES[(number * 7 + i * i) % len(SENTENCES)]}" for i in range(sentences))


def rows(count: int, start: int = 0, sentences: int = 6) -> list[dict[str, Any]]:
    return [
        {"text": text_of(n, sentences), "url": f"https://Site{n % 3}.example.org/{n}", "timestamp": "2019-04-25T12:57:54Z"}
        for n in range(start, start + count)
    ]


def json_lines(values: Sequence[dict[str, Any] | bytes]) -> bytes:
    """JSON lines; a bytes value is a line as it is."""
    return b"".join((value if isinstance(value, bytes) else json.dumps(value).encode()) + b"\n" for value in values)


def write_gz(path: Path, values: Sequence[dict[str, Any] | bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(json_lines(values), mtime=0))
    return path


def configure(root: Path | str, **settings: Any) -> Corpus:
    """A corpus of a lake at `root`, configured as the command line would, ready for the pipeline's stages."""
    values = {"corpus": "tiny", "sequence_length": 32, "vocab_size": 512, "validation": {"name": "none", "source": None}} | settings
    config = IngestConfig.model_validate(values)
    corpus = Lake.open(root).corpus(config.corpus)
    write_json(corpus.path / "config.json", config.model_dump(mode="json"))
    return corpus


def table(corpus_path: Any, name: str) -> pa.Table:
    """A Parquet file of an artifact."""
    return pq.read_table(str(corpus_path / name))


def contents(directory: Path | Any) -> dict[str, bytes]:
    """Every data file below `directory` (records with dates left out), by relative path."""
    root = Path(str(directory))
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.suffix in (".parquet", ".gz") and p.is_file()}
