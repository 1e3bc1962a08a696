"""Ingestion beside datatrove and beside plain `tokenizers`: MB of text a second on one CPU core, and whether the token ids are the same.

    .venv/bin/python benchmarks/ingest.py                                      # the embedded corpus and a tokenizer trained on it
    .venv/bin/python benchmarks/ingest.py --source 'c4/*.json.gz' --tokenizer gpt-neox-20b/tokenizer.json \\
        --datatrove-python other-environment/bin/python

    ours         `pipeline.extract` and `pipeline.pack`: gzip to documents and rejects, documents to sequences and spans, all as Parquet,
                 with hashes, records and manifests
    datatrove    its JsonlReader and DocumentTokenizer (unshuffled), which write tokens and document ends and no text; null where it is
                 not installed
    tokenizers   `encode_batch` on texts in memory, 1,000 at a time, ids to numpy; nothing is read or written

All get the source as one gzip file, in turn, each in a fresh process pinned to the same core; imports and the tokenizer's loading are
not counted, nor is the listing of files. The clock is the process's CPU time, which a neighbour on the machine does not disturb; with
more than one core it is wall time. Ends with one line of JSON.
"""

import argparse
import gzip
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

END_OF_TEXT = "<|endoftext|>"
WAYS = ("datatrove", "ours", "tokenizers")

# Run by the Python that has datatrove, which need not have bliss_ops.
DATATROVE = """
import json, os, sys, time
from pathlib import Path
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.tokens import DocumentTokenizer
source, tokenizer, directory = sys.argv[1:]
read = JsonlReader(str(Path(source).parent), glob_pattern=Path(source).name, compression="gzip")
write = DocumentTokenizer(
    directory, tokenizer_name_or_path=tokenizer, eos_token="<|endoftext|>", shuffle_documents=False, save_final_metadata=False
)
write.tokenizer
clock = time.process_time if len(os.sched_getaffinity(0)) == 1 else time.perf_counter
begun = clock()
for _ in write.run(read.run(None, 0, 1), 0, 1) or ():
    pass
print(json.dumps({"seconds": clock() - begun}))
"""


def main() -> None:
    arguments = parse_arguments()
    if arguments.way:
        print(json.dumps(measure(arguments.way, Path(arguments.directory), arguments.sequence_length)))
        return
    python = arguments.datatrove_python or (sys.executable if importlib.util.find_spec("datatrove") else None)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-arguments.cores :])
    with tempfile.TemporaryDirectory(prefix="bliss-benchmark-") as name:
        directory = Path(name)
        num_bytes = prepare(directory, arguments.source, arguments.tokenizer)
        seconds: dict[str, list[float]] = {way: [] for way in WAYS if way != "datatrove" or python}
        for repetition in range(arguments.repetitions):
            for way in seconds:
                shutil.rmtree(directory / way, ignore_errors=True)
                own = [sys.executable, __file__, "--way", way, "--directory", name, "--sequence-length", str(arguments.sequence_length)]
                theirs = [str(python), "-c", DATATROVE, *(str(directory / part) for part in ("all.json.gz", "tokenizer.json", way))]
                done = subprocess.run(theirs if way == "datatrove" else own, check=True, capture_output=True, text=True)
                seconds[way].append(json.loads(done.stdout.splitlines()[-1])["seconds"])
                print(f"{repetition} {way:10} {num_bytes / seconds[way][-1] / 1e6:7.2f} MB/s", flush=True)
        tokens = {way: tokens_of(way, directory) for way in seconds}
        num_tokens = len(tokens["ours"])  # whole sequences: the others have the tail too
        identical = all(np.array_equal(ids[:num_tokens], tokens["ours"]) for ids in tokens.values())
    rate = {way: num_bytes / statistics.median(values) / 1e6 for way, values in seconds.items()}

    def speedup(rival: str) -> float | None:
        if rival not in seconds:
            return None
        return round(statistics.median(a / b for a, b in zip(seconds[rival], seconds["ours"], strict=True)), 1)

    result = {
        "megabytes": round(num_bytes / 1e6, 1),
        "cores": arguments.cores,
        "speedup_vs_datatrove": speedup("datatrove"),
        "speedup_vs_tokenizers": speedup("tokenizers"),
        "identical_ids": identical,
        "num_tokens_compared": num_tokens,
        **{f"{way}_megabytes_per_second": round(rate[way], 2) if way in rate else None for way in WAYS},
    }
    print(json.dumps(result))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", default="embedded", help="a glob of .json.gz shards")
    parser.add_argument("--tokenizer", help="a tokenizer.json with <|endoftext|>; trained on the source unless given")
    parser.add_argument("--sequence-length", type=int, default=1024)
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--datatrove-python", help="the Python of an environment with datatrove[io]")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    parser.add_argument("--directory", help=argparse.SUPPRESS)
    return parser.parse_args()


def clock() -> float:
    return time.process_time() if len(os.sched_getaffinity(0)) == 1 else time.perf_counter()


def corpus_of(directory: Path, name: str, sequence_length: int, **settings: Any) -> Any:
    """A corpus of a lake in `directory`, configured as the command line would."""
    from bliss_ops.config import IngestConfig
    from bliss_ops.lake import Lake, write_json

    values = {"corpus": "benchmark", "sequence_length": sequence_length, "validation": {"name": "none", "source": None}} | settings
    config = IngestConfig.model_validate(values)
    corpus = Lake.open(directory / name).corpus(config.corpus)
    write_json(corpus.path / "config.json", config.model_dump(mode="json"))
    return corpus


def prepare(directory: Path, source: str, tokenizer: str | None) -> int:
    """Write `all.json.gz` and `tokenizer.json`; returns the UTF-8 bytes of text."""
    from bliss_ops import pipeline

    if source == "embedded":
        corpus = corpus_of(directory, "harvest", 1024)
        pipeline.discover(corpus)
        files = sorted(Path(str(corpus.source)).rglob("*.json*.gz"))
    else:
        files = sorted(Path().glob(source) if not source.startswith("/") else Path("/").glob(source[1:]))
    assert files, f"no file matches {source}"
    lines = b"".join(gzip.decompress(file.read_bytes()) for file in files)
    (directory / "all.json.gz").write_bytes(gzip.compress(lines, 6, mtime=0))
    if tokenizer:
        (directory / "tokenizer.json").write_bytes(Path(tokenizer).read_bytes())
    else:
        corpus = corpus_of(directory, "trained", 1024, source=str(directory / "all.json.gz"))
        for stage in (pipeline.discover, pipeline.extract, pipeline.train_tokenizer):
            stage(corpus)
        (directory / "tokenizer.json").write_bytes((corpus.tokenizer / "tokenizer.json").read_bytes())
    return sum(len(text.encode()) for text in read_texts(directory))


def read_texts(directory: Path) -> list[str]:
    with gzip.open(directory / "all.json.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line)["text"] for line in file]


def measure(way: str, directory: Path, sequence_length: int) -> dict[str, float]:
    return {"ours": ours, "tokenizers": plain_tokenizers}[way](directory, sequence_length)


def ours(directory: Path, sequence_length: int) -> dict[str, float]:
    """Both stages as the command line runs them; what it takes to make a worker is not counted."""
    from bliss_ops import pipeline
    from bliss_ops.sharding import map_locally

    paths = {"source": str(directory / "all.json.gz"), "tokenizer": str(directory / "tokenizer.json")}
    corpus = corpus_of(directory, "ours", sequence_length, **paths)
    pipeline.discover(corpus)
    loading = 0.0

    def mapper(make_worker: Callable[[], Any], shards: Any, **settings: Any) -> Any:
        nonlocal loading
        begun = clock()
        worker = make_worker()
        loading += clock() - begun
        return map_locally(lambda: worker, shards, **settings)

    work = pipeline.Work(mapper=mapper)
    import bliss_ops.corpus.documents
    import bliss_ops.corpus.packing  # noqa: F401 - imports are not counted

    begun = clock()
    pipeline.extract(corpus, work)
    seconds = clock() - begun
    pipeline.train_tokenizer(corpus)
    begun = clock()
    pipeline.pack(corpus, work)
    return {"seconds": seconds + clock() - begun - loading}


def plain_tokenizers(directory: Path, _sequence_length: int) -> dict[str, float]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    end = [tokenizer.token_to_id(END_OF_TEXT)]
    texts = read_texts(directory)
    begun = clock()
    parts = []
    for first in range(0, len(texts), 1000):
        for encoding in tokenizer.encode_batch(texts[first : first + 1000], add_special_tokens=False):
            parts += [np.asarray(encoding.ids, np.uint32), np.asarray(end, np.uint32)]
    ids = np.concatenate(parts)
    seconds = clock() - begun
    (directory / "tokenizers").mkdir()
    ids.tofile(directory / "tokenizers" / "ids.uint32")
    return {"seconds": seconds}


def tokens_of(way: str, directory: Path) -> np.ndarray:
    """The token ids that it wrote, documents one after the other with the end-of-text token between them."""
    import pyarrow.parquet as pq

    if way == "ours":
        file = next((directory / way).rglob("sequences-*/shard-00000.parquet"))
        column = pq.read_table(file)["input_ids"]
        return np.concatenate([chunk.flatten().to_numpy() for chunk in column.chunks])
    if way == "tokenizers":
        return np.fromfile(directory / way / "ids.uint32", np.uint32)
    tokenizer_size = len(json.loads((directory / "tokenizer.json").read_bytes())["model"]["vocab"])
    return np.fromfile(next((directory / way).glob("*.ds")), np.uint16 if tokenizer_size <= 1 << 16 else np.uint32)


if __name__ == "__main__":
    main()
