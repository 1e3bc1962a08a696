"""A small but complete lake, written by the real schemas and manifests: two shards, two sources, runs with scores to evaluation.

Documents are 24 tokens, sequences 16, so spans can be followed by hand: of every two documents the first fills sequence 0 and half
of 1, the second the other half of 1 and all of 2. Shard 0 is `prose`, shard 1 is `code`.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from upath import UPath

from bliss_ops import schemas
from bliss_ops.config import IngestConfig, RunConfig
from bliss_ops.evaluation import measures
from bliss_ops.lake import Lake, Run, shard_file, write_bytes, write_json, write_parquet
from bliss_ops.manifest import Artifact, Manifest, describe, read_manifest
from bliss_ops.sharding import ROWS_PER_SHARD

SOURCES = ("prose", "code")
SCRIPT = "<script>alert('a document is text & nothing else')</script>"
T = 16

ScoreOf = Callable[[int, np.ndarray], np.ndarray]  # (shard, row numbers) -> scores


def make_corpus(root: Path | str, *, num_sequences: int = 30, num_shards: int = 2) -> Lake:
    """A lake with one corpus of `num_shards` shards with `num_sequences` sequences each (a multiple of 3)."""
    lake = Lake.open(root)
    corpus = lake.corpus("tiny")
    config = IngestConfig(corpus="tiny", source="made for tests", sequence_length=T, vocab_size=512)
    write_json(corpus.path / "config.json", config.model_dump())
    words = ["the", "quick", "brown", "fox", "reads", "every", "page", "of", "the", "long", "report", "before", "it", "sleeps"]
    num_documents = num_sequences * T // 24

    def documents(directory: UPath) -> tuple[list[str], dict[str, Any]]:
        for shard in range(num_shards):
            source = SOURCES[shard % 2]
            rows = np.arange(num_documents)
            texts = [f"{source} document {row}. " + " ".join(words[(row + k) % len(words)] for k in range(40)) for row in rows]
            texts[0] = SCRIPT if shard == 1 else texts[0]
            table = {
                "document_id": shard * ROWS_PER_SHARD + rows,
                "source": [source] * num_documents,
                "url": [f"https://{source}.example/{row}" for row in rows],
                "domain": [f"{source}.example"] * num_documents,
                "timestamp": [f"2024-{1 + row % 3:02d}-15T10:00:00Z" for row in rows],
                "text": texts,
                "num_bytes": [len(text.encode()) for text in texts],
            }
            write_parquet(shard_file(directory, shard), pa.table(table, schema=schemas.DOCUMENTS))
        return [f"shard-{shard:05d}.parquet" for shard in range(num_shards)], {"num_documents": num_documents * num_shards}

    def sequences(directory: UPath) -> tuple[list[str], dict[str, Any]]:
        for shard in range(num_shards):
            token_documents = np.arange(num_documents * 24) // 24
            spans = [
                (shard * ROWS_PER_SHARD + row, shard * ROWS_PER_SHARD + int(document), int(count))
                for row in range(num_sequences)
                for document, count in zip(*np.unique(token_documents[row * T : (row + 1) * T], return_counts=True), strict=True)
            ]
            columns = dict(zip(schemas.SPANS.names, zip(*spans, strict=True), strict=True))
            write_parquet(shard_file(directory / "spans", shard), pa.table(columns, schema=schemas.SPANS))
            ids = shard * ROWS_PER_SHARD + np.arange(num_sequences)
            tokens = pa.array([[shard] * T] * num_sequences, schemas.sequences(T, 512).field("input_ids").type)
            write_parquet(
                shard_file(directory, shard), pa.table({"sequence_id": ids, "input_ids": tokens}, schema=schemas.sequences(T, 512))
            )
        files = [f"{folder}shard-{shard:05d}.parquet" for shard in range(num_shards) for folder in ("", "spans/")]
        return files, {"num_sequences": num_sequences * num_shards}

    extracted = produce(lake, corpus.documents, "extract", documents)
    produce(lake, corpus.sequences, "pack", sequences, shards=range(num_shards), inputs=[extracted])
    return lake


def make_run(
    lake: Lake,
    method: str = "bliss",
    *,
    seed: int = 0,
    num_rounds: int = 1,
    score: ScoreOf | None = None,
    compare_with: tuple[str, ...] = (),
    losses: tuple[float, ...] = (6.0, 4.5, 4.0),
    finished: bool = True,
    answers: pa.Table | None = None,
) -> Run:
    """A finished run of `lake`; `finished=False` stops after the selection. `answers` are those of its evaluation to tasks."""
    name = f"demo-{method}-s{seed}"
    config = RunConfig.model_validate(
        {
            "name": name,
            "recipe": "demo",
            "method": method,
            "seed": seed,
            "num_rounds": num_rounds,
            "compare_with": compare_with,
            "ingest": {"corpus": "tiny", "sequence_length": T, "vocab_size": 512},
        }
    )
    run = lake.run(name)
    write_json(run.path / "config.json", config.model_dump(mode="json"))
    for round_number in range(1, num_rounds + 1):
        make_round(run, round_number, score or _scores(method, seed), losses, finished, answers)
    return run


def make_round(
    run: Run,
    round_number: int,
    score: ScoreOf,
    losses: tuple[float, ...] = (6.0, 4.5, 4.0),
    finished: bool = True,
    answers: pa.Table | None = None,
) -> None:
    lake, here = run.lake, run.round(round_number)
    packed = read_manifest(run.corpus.sequences, made_by="make_corpus")
    shards, num_sequences = packed.shards, packed.metrics["num_sequences"] // len(packed.shards)
    everything: dict[int, pa.Table] = {}

    def selector(directory: UPath) -> tuple[list[str], dict[str, Any]]:
        write_bytes(directory / "weights.bin", f"{run.name} {round_number}".encode())
        if run.config.method != "bliss":
            return ["weights.bin"], {}
        lines = (json.dumps(outer_step(step)) + "\n" for step in range(1, 41))
        write_bytes(directory / "metrics.jsonl", "".join(lines).encode())
        return ["weights.bin", "metrics.jsonl"], {}

    def scores(directory: UPath) -> tuple[list[str], dict[str, Any]]:
        rows = np.arange(num_sequences)
        for shard in shards:
            values = score(shard, rows).astype(np.float32)
            everything[shard] = pa.table({"sequence_id": shard * ROWS_PER_SHARD + rows, "score": values}, schema=schemas.SCORES)
            write_parquet(shard_file(directory, shard), everything[shard])
        return [f"shard-{shard:05d}.parquet" for shard in shards], {"num_sequences": num_sequences * len(shards)}

    def selection(directory: UPath) -> tuple[list[str], dict[str, Any]]:
        together = pa.concat_tables(everything.values()).sort_by([("score", "descending"), ("sequence_id", "ascending")])
        kept = together.slice(0, max(1, len(together) // 5))
        threshold = kept["score"][-1].as_py()
        files = []
        for shard in shards:
            ids = [i for i in kept["sequence_id"].to_pylist() if i // ROWS_PER_SHARD == shard]
            if ids:
                mask = pa.array(np.isin(everything[shard]["sequence_id"].to_numpy(), ids))
                write_parquet(shard_file(directory, shard), everything[shard].filter(mask))
                files.append(f"shard-{shard:05d}.parquet")
        ties = together["score"].to_pylist().count(threshold)
        return files, {
            "num_candidates": len(together),
            "num_selected": len(kept),
            "threshold": threshold,
            "num_ties_at_threshold": ties,
            "num_ties_kept": kept["score"].to_pylist().count(threshold),
            "num_tokens": len(kept) * T,
            "shards": sorted({i // ROWS_PER_SHARD for i in kept["sequence_id"].to_pylist()}),
        }

    def pretrain(directory: UPath) -> tuple[list[str], dict[str, Any]]:
        lines = []
        for point, loss in enumerate(losses):
            step = 10 * point
            if step:
                lines += [
                    {"step": s, "loss": loss + 0.1, "learning_rate": 1e-3, "tokens": s * 64, "seconds": 0.1}
                    for s in range(step - 9, step + 1)
                ]
            lines.append({"step": step, "validation_loss": loss})
        write_bytes(directory / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())
        return ["metrics.jsonl"], {}

    def evaluation(directory: UPath) -> tuple[list[str], dict[str, Any]]:
        table: dict[str, list[Any]] = {
            "task": ["validation"] * 2,
            "metric": ["loss", "perplexity"],
            "value": [losses[-1], float(np.exp(losses[-1]))],
            "standard_error": [0.01, None],
            "num_examples": [64] * 2,
            "step": [10 * (len(losses) - 1)] * 2,
            "num_tokens": [640 * (len(losses) - 1)] * 2,
        }
        if answers is None:
            write_parquet(directory / "results.parquet", pa.table(table, schema=schemas.EVALUATION))
            return ["results.parquet"], {}
        for one in measures.measures(list(measures.outcomes(answers))):
            row = (one.task, one.metric, one.value, one.standard_error, one.num_questions, table["step"][0], table["num_tokens"][0])
            for column, value in zip(table.values(), row, strict=True):
                column.append(value)
        write_parquet(directory / "results.parquet", pa.table(table, schema=schemas.EVALUATION))
        write_parquet(directory / "questions.parquet", answers)
        return ["results.parquet", "questions.parquet"], {}

    fitted = produce(lake, here / "selector", "fit", selector, inputs=[packed])
    scored = produce(lake, here / "scores", "score", scores, shards=shards, inputs=[fitted])
    produce(lake, here / "selection", "select", selection, inputs=[scored])
    if finished:
        produce(lake, here / "pretrain", "pretrain", pretrain)
        produce(lake, here / "evaluation", "evaluate", evaluation)


def outer_step(step: int) -> dict[str, float]:
    """What the bilevel loop logs about one outer step."""
    decay = float(np.exp(-step / 20))
    return {
        "step": step,
        "validation_loss": 5 + 2 * decay,
        "proxy_loss": 5.2 + 2 * decay,
        "effective_sample_size": 0.5 + 0.5 * decay,
        "hypergradient_norm": 0.1 + decay,
        "score_std": 1 - decay,
        "alignment_score_correlation": 0.8 * (1 - decay),
        "z_norm": 1.0,
        "validation_gradient_norm": 1.0 + decay,
        "z_gradient_cosine": 0.9,
        "seconds": 0.1,
    }


def make_further_scores(
    lake: Lake,
    name: str,
    score: ScoreOf,
    *,
    corpus: str = "tiny",
    of: tuple[Run, int] | None = None,
    shards: Sequence[int] | None = None,
) -> Manifest:
    """`scores/<corpus>/<name>`: re-scored by the selector `of` (run, round); imported where there is none."""
    packed = read_manifest(lake.corpus(corpus).sequences, made_by="make_corpus")
    num_sequences = packed.metrics["num_sequences"] // len(packed.shards)
    mine = list(packed.shards if shards is None else shards)
    inputs, stage, identity = [packed], "import_scores", {"method": name, "origin": "made for tests"}
    if of is not None:
        run, round_number = of
        inputs.append(read_manifest(run.round(round_number) / "selector", made_by="make_run"))
        stage, config = "rescore", run.config
        identity = {"run": run.name, "round": round_number, "recipe": config.recipe, "method": config.method, "seed": config.seed}

    def scores(directory: UPath) -> tuple[list[str], dict[str, Any]]:
        rows, everything = np.arange(num_sequences), []
        for shard in mine:
            values = score(shard, rows).astype(np.float32)
            everything.append(values)
            table = {"sequence_id": shard * ROWS_PER_SHARD + rows, "score": values}
            write_parquet(shard_file(directory, shard), pa.table(table, schema=schemas.SCORES))
        together = np.concatenate(everything).astype(np.float64)
        metrics = {"num_sequences": len(together), "mean": float(together.mean()), "standard_deviation": float(together.std())}
        return [f"shard-{shard:05d}.parquet" for shard in mine], metrics

    return produce(lake, lake.further_scores(corpus, name), stage, scores, shards=mine, inputs=inputs, identity=identity)


def produce(
    lake: Lake,
    directory: UPath,
    stage: str,
    make: Any,
    shards: Any = (),
    *,
    inputs: Sequence[Manifest] = (),
    identity: dict[str, Any] | None = None,
) -> Manifest:
    """Write an artifact anew, whatever is there: tests change shards on purpose."""
    artifact = Artifact(lake, directory, stage=stage, identity=identity or {}, inputs=inputs, replaceable=True)
    artifact.begin()
    files, metrics = make(directory)
    return artifact.commit([describe(directory, file) for file in files], metrics, shards=list(shards))


def _scores(method: str, seed: int) -> ScoreOf:
    def score(shard: int, rows: np.ndarray) -> np.ndarray:
        generator = np.random.default_rng([seed, shard])
        return generator.random(len(rows)) if method == "random" else generator.normal(0.5 - shard, 0.6, len(rows))

    return score
