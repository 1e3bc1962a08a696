"""What each stage asks of an object store: its requests and bytes, and the requests of the same command on what is finished.

    .venv/bin/python benchmarks/stage_requests.py                     # about a minute; prints the table of docs/s3.md

Every stage of a corpus, a round and a re-scoring of the recipe `smoke`, one process, on an S3 server in memory that counts
(stand_ins/object_store.py), through the same s3fs as in production. Ends with one line of JSON.
"""

import argparse
import json
import logging
import tempfile
from collections.abc import Callable, Iterator

from stand_ins.object_store import Counted, Counts, num_requests, serve

from bliss_ops import pipeline
from bliss_ops.configure import configure_corpus, configure_run
from bliss_ops.lake import Lake
from bliss_ops.recipes import load_recipe

METHOD = "bliss"
KINDS = {"get": "GET", "head": "HEAD", "list": "LIST", "put": "PUT", "part": "multipart", "delete": "DELETE"}
MEGABYTES = {"bytes_put": "MB up", "bytes_got": "MB down"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="smoke")
    parser.add_argument("--latency-seconds", type=float, default=0.002, help="of every answer of the object store")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.ERROR)
    with serve(arguments.latency_seconds) as store, tempfile.TemporaryDirectory() as scratch:
        tempfile.tempdir = scratch  # the loader keeps its working file there
        figures = {name: (counted(store, command), counted(store, command)) for name, command in commands(arguments.recipe)}
        tempfile.tempdir = None
    print(table(figures))
    print(json.dumps({name: {"first": first, "again": again} for name, (first, again) in figures.items()}))


def commands(recipe: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """The stages by their names, each to be called when the one before is finished."""
    lake = Lake.open("s3://bucket/lake")
    corpus = configure_corpus(lake, load_recipe(recipe))
    for stage in pipeline.CORPUS_STAGES:
        yield stage.command, lambda stage=stage: stage.do(lake.corpus(corpus.name))  # type: ignore[misc]
    run = configure_run(lake, recipe, METHOD, seed=0)
    for stage in pipeline.ROUND_STAGES:
        yield stage.command, lambda stage=stage: stage.do(lake.run(run.name), 1)  # type: ignore[misc]
    yield "rescore", lambda: pipeline.rescore(lake.run(run.name), 1, lake.corpus(corpus.name))
    ((_, scores),) = lake.further_score_names()
    yield "load-scores", lambda: pipeline.load_scores(lake.corpus(corpus.name), scores)


def counted(store: Counted, command: Callable[[], object]) -> Counts:
    store.counts()
    command()
    return store.counts()


def table(figures: dict[str, tuple[Counts, Counts]]) -> str:
    """Markdown, without kinds that nothing has asked for; `again` is the number of all requests of the second time."""
    kinds = [kind for kind in KINDS if any(first.get(kind) for first, _ in figures.values())]
    lines = [["stage", *(KINDS[kind] for kind in kinds), *MEGABYTES.values(), "again"]]
    lines.append(["---"] * len(lines[0]))
    for name, (first, again) in figures.items():
        requests = [str(first.get(kind, "")) for kind in kinds]
        megabytes = [f"{first.get(kind, 0) / 1e6:.1f}" for kind in MEGABYTES]
        lines.append([name, *requests, *megabytes, str(num_requests(again))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    main()
