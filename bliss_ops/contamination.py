"""Which candidate sequences, and which rows of the validation set, share text with the tasks that the target is evaluated on.

A sequence is contaminated by a task when it has a run of n words (13 as in GPT-3) of one of the task's texts: a question with its
right answer, a passage. Texts of 8 to n - 1 words are looked for as a whole, shorter ones not at all (they are counted). Sequences are
decoded and cut at end-of-text; runs do not reach from one sequence into the next. The cost is linear in the corpus, memory is that
of one batch and 8 bytes for each of the tasks' n-grams.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from bliss_ops import schemas
from bliss_ops.config import EvaluationConfig
from bliss_ops.lake import Run, shard_file, write_parquet
from bliss_ops.manifest import describe, find_manifest
from bliss_ops.sharding import Metrics, ShardRecord, report_part

if TYPE_CHECKING:
    from bliss_ops.corpus.tokenizer import Tokenizer
    from bliss_ops.evaluation.word_runs import Index

log = logging.getLogger(__name__)

_BATCH_TOKENS = 1 << 18  # decoded at a time
_OF = "num_contaminated:"  # metric of a shard, with the name of a task behind it


def index_of(settings: EvaluationConfig) -> "Index":
    """The n-grams of every task's texts.

    Raises:
        ValueError: rows of a task are not there.
    """
    from bliss_ops.evaluation.harness import read_data
    from bliss_ops.evaluation.rows import TASKS
    from bliss_ops.evaluation.word_runs import Index

    index = Index(settings.contamination_ngram)
    for data in read_data(settings):
        index.add(data.task, [text for row in data.rows for text in TASKS[data.task].texts(row)])
        log.info("contamination: %s has %s n-grams", data.task, f"{len(index.hashes[data.task]):,}")
    return index


def make_worker(settings: EvaluationConfig, sequences: UPath, tokenizer_dir: UPath, directory: UPath) -> Callable[[int], ShardRecord]:
    """The returned function writes one shard's contaminated sequences: id, task, number of n-grams."""
    from bliss_ops.corpus import tokenizer
    from bliss_ops.corpus.reading import iter_shard, num_sequences

    index, decoder = index_of(settings), tokenizer.load(tokenizer_dir)

    def check_shard(shard: int) -> ShardRecord:
        path = shard_file(sequences, shard)
        total, seen, num_tokens = num_sequences(path), 0, 0
        ids: list[np.ndarray] = []
        tasks: list[str] = []
        counts: list[np.ndarray] = []
        for sequence_ids_B, input_ids_BT in iter_shard(path, 256):
            for task, count_B in shared(index, decoder, list(input_ids_BT)).items():
                found_B = count_B > 0
                ids.append(sequence_ids_B[found_B])
                counts.append(count_B[found_B])
                tasks += [task] * int(found_B.sum())
            seen, num_tokens = seen + len(sequence_ids_B), num_tokens + input_ids_BT.size
            report_part(seen / total, num_tokens)
        table = pa.table(
            {"sequence_id": np.concatenate([np.zeros(0, np.int64), *ids]), "task": tasks, "num_ngrams": np.concatenate([[], *counts])},
            schema=schemas.CONTAMINATED,
        ).sort_by([("sequence_id", "ascending"), ("task", "ascending")])
        target = shard_file(directory, shard)
        write_parquet(target, table)
        metrics: dict[str, int | float] = {"num_sequences": total, "num_tokens": num_tokens}
        metrics["num_contaminated"] = len(set(table["sequence_id"].to_pylist()))
        metrics |= {f"{_OF}{task}": tasks.count(task) for task in sorted(set(tasks))}
        return ShardRecord(shard=shard, outputs=[describe(directory, target.name, rows=len(table))], metrics=metrics)

    return check_shard


def make_check(run: Run) -> Callable[[list[ShardRecord]], Metrics]:
    """The returned function turns all shards' counts into the artifact's metrics, the validation set's beside the candidates'."""

    def check(records: list[ShardRecord]) -> Metrics:
        totals = {name: sum(int(record.metrics.get(name, 0)) for record in records) for name in ("num_sequences", "num_contaminated")}
        index = index_of(run.config.evaluation)
        by_task = {task: sum(int(record.metrics.get(f"{_OF}{task}", 0)) for record in records) for task in index.hashes}
        rows = list(_validation(run, index))
        for name, count in by_task.items():
            log.info("contamination: %s of %s candidates share n-grams with %s", f"{count:,}", f"{totals['num_sequences']:,}", name)
        for row in rows:
            log.info("contamination: %s of %s rows of %s (%s)", *(row[key] for key in ("num_contaminated", "num_rows", "set", "part")))
        return totals | {
            "by_task": by_task,
            "validation": rows,
            "num_ngrams": {task: len(hashes) for task, hashes in index.hashes.items()},
            "num_texts_too_short": index.num_short,
        }

    return check


def shared(index: "Index", decoder: "Tokenizer", rows: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """How many n-grams each row of tokens has in common with each task that has any."""
    from bliss_ops.corpus.ngrams import documents

    totals: dict[str, np.ndarray] = {}
    for begin, end in _batches(rows):
        pieces = [(number, piece) for number in range(begin, end) for piece in documents(rows[number], decoder.eot_id)]
        row_P = np.array([number for number, _ in pieces], np.int64)
        for task, count_P in index.count(decoder.decode_batch([piece for _, piece in pieces])).items():
            counts = totals.setdefault(task, np.zeros(len(rows), np.int64))
            counts += np.bincount(row_P, count_P, minlength=len(rows)).astype(np.int64)
    return totals


def of_selection(run: Run, round_number: int) -> dict[str, int] | None:
    """How many of the selected sequences are contaminated, by task and `any`; None without a check or a selection."""
    here = run.round(round_number)
    checked, selected = find_manifest(here / "contamination"), find_manifest(here / "selection")
    if checked is None or selected is None or not checked.shards:
        return None
    counts = dict.fromkeys(["any", *checked.metrics["by_task"]], 0)
    for shard in selected.metrics["shards"]:
        with shard_file(here / "selection", shard).open("rb") as file:
            ids = pq.read_table(file, columns=["sequence_id"])["sequence_id"].to_numpy()
        with shard_file(here / "contamination", shard).open("rb") as file:
            table = pq.read_table(file)
        is_selected = np.isin(table["sequence_id"].to_numpy(), ids)
        counts["any"] += len(np.unique(table["sequence_id"].to_numpy()[is_selected]))
        for task in table.filter(pa.array(is_selected))["task"].to_pylist():
            counts[str(task)] += 1
    return counts


def _validation(run: Run, index: "Index") -> Iterator[dict[str, Any]]:
    """Contaminated rows of every part of every validation set."""
    from bliss_ops.corpus import tokenizer, validation

    if not (run.corpus.validation / "guide.parquet").is_file():
        return
    decoder = tokenizer.load(run.corpus.tokenizer)
    for part in validation.PARTS:
        rows = validation.read(run.corpus.validation, part)
        for number, name in enumerate(validation.set_names(run.corpus.config.validation)):
            of_set = validation.unpadded(rows.take(rows.set_N == number))
            counts = shared(index, decoder, of_set)
            is_any_N = np.zeros(len(of_set), bool)
            for count_N in counts.values():
                is_any_N |= count_N > 0
            by_task = {task: int((counts[task] > 0).sum()) if task in counts else 0 for task in index.hashes}
            yield {"set": name, "part": part, "num_rows": len(of_set), "num_contaminated": int(is_any_N.sum()), "by_task": by_task}


def _batches(rows: Sequence[np.ndarray]) -> Iterable[tuple[int, int]]:
    """Ranges of rows of at most about `_BATCH_TOKENS` tokens."""
    begin = num_tokens = 0
    for number, row in enumerate(rows):
        if num_tokens and num_tokens + len(row) > _BATCH_TOKENS:
            yield begin, number
            begin, num_tokens = number, 0
        num_tokens += len(row)
    if begin < len(rows):
        yield begin, len(rows)
