"""A lake that can be evaluated: a tokenizer, a validation set and a trained target, all of them tiny and made in a second."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from upath import UPath

from bliss_ops import schemas
from bliss_ops.config import IngestConfig, RunConfig
from bliss_ops.corpus.tokenizer import load
from bliss_ops.corpus.validation import windows
from bliss_ops.lake import Lake, Run, shard_file, write_bytes, write_json, write_parquet
from bliss_ops.models import language
from bliss_ops.sharding import ROWS_PER_SHARD
from tests.evaluation.published import FILES
from tests.lakes import produce

T = 96
VOCAB = 600
STEPS = (20, 30)  # of the branch in the middle and of the model at the end


def make_lake(root: Path, guide: Sequence[str] = ()) -> Lake:
    """`guide`: texts of the guide part, a row each; both parts are random tokens without them."""
    lake = Lake.open(root)
    ingest = IngestConfig(
        corpus="tiny",
        source="made for tests",
        sequence_length=T,
        vocab_size=VOCAB,
        validation={"name": "v", "source": "/none/holdout.jsonl"},
    )
    corpus = lake.corpus("tiny")
    write_json(corpus.path / "config.json", ingest.model_dump(mode="json"))

    def tokenizer(directory: UPath) -> tuple[list[str], dict[str, Any]]:
        write_bytes(directory / "tokenizer.json", trained_tokenizer())
        return ["tokenizer.json"], {"vocab_size": VOCAB, "eot_id": 0}

    def validation(directory: UPath) -> tuple[list[str], dict[str, Any]]:
        ids = np.random.default_rng(0).integers(1, VOCAB, (8, T)).astype(np.int32)
        labels = {"guide": ids, "holdout": ids}
        if guide:
            padded, labels["guide"] = windows(load(corpus.tokenizer), guide, T)
        for part in ("guide", "holdout"):
            values = {"input_ids": padded if guide and part == "guide" else ids, "labels": labels[part]}
            columns = {name: pa.array(list(rows), schemas.validation(T).field(name).type) for name, rows in values.items()}
            write_parquet(directory / f"{part}.parquet", pa.table(columns, schema=schemas.validation(T)))
        return ["guide.parquet", "holdout.parquet"], {}

    produce(lake, corpus.tokenizer, "train_tokenizer", tokenizer)
    produce(lake, corpus.validation, "prepare_validation", validation)
    return lake


def make_sequences(lake: Lake, texts_of_shard: Sequence[Sequence[Sequence[str]]]) -> None:
    """Packed sequences: for each shard, for each sequence, the documents in it (the rest is filled with `the the the`)."""
    corpus = lake.corpus("tiny")
    reading = load(corpus.tokenizer)
    (filler,) = reading.encode_batch([" the"])

    def sequences(directory: UPath) -> tuple[list[str], dict[str, Any]]:
        for shard, texts_N in enumerate(texts_of_shard):
            rows = [packed(texts) for texts in texts_N]
            ids = shard * ROWS_PER_SHARD + np.arange(len(rows))
            kind = schemas.sequences(T, VOCAB)
            table = pa.table({"sequence_id": ids, "input_ids": pa.array(rows, kind.field("input_ids").type)}, schema=kind)
            write_parquet(shard_file(directory, shard), table)
        return [f"shard-{shard:05d}.parquet" for shard in range(len(texts_of_shard))], {"num_sequences": sum(map(len, texts_of_shard))}

    def packed(texts: Sequence[str]) -> list[int]:
        tokens = [token for text in texts for token in (*map(int, reading.encode_batch([text])[0]), reading.eot_id)]
        assert len(tokens) <= T, f"{len(tokens)} tokens do not fit"
        return tokens + [int(filler[0])] * (T - len(tokens))

    produce(lake, corpus.sequences, "pack", sequences, shards=range(len(texts_of_shard)))


def make_run(lake: Lake, name: str, *, seeds: Sequence[int] = (1,), with_models: bool = True, **evaluation: Any) -> Run:
    """A run whose first round is trained: a model of random weights for each seed, the last one at the end of the round."""
    corpus = lake.corpus("tiny")
    config = RunConfig.model_validate(
        {
            "name": name,
            "recipe": "demo",
            "method": "random",
            "ingest": corpus.config.model_dump(),
            "compute": {"num_threads": 1},
            "evaluation": evaluation,
        }
    )
    run = lake.run(name)
    write_json(run.path / "config.json", config.model_dump(mode="json"))

    def pretrain(directory: UPath) -> tuple[list[str], dict[str, Any]]:
        files, models = [], []
        for seed, step in zip(seeds, STEPS[-len(seeds) :], strict=True):
            path = "model" if step == STEPS[-1] else f"branches/step-{step:06d}/model"
            model = language.build("tiny-neox-64", vocab_size=VOCAB, sequence_length=T, seed=seed)
            files += language.save(model, directory, path)
            models.append({"path": path, "step": step, "num_tokens": step * 1000})
        return files, {"models": models} if with_models else {}

    produce(lake, run.round(1) / "pretrain", "pretrain", pretrain)
    return run


def trained_tokenizer() -> bytes:
    """A byte-level BPE of what the tasks' files say."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([*FILES.values(), "the quick brown fox reads every page of the long report " * 3], trainer)
    return str(tokenizer.to_str()).encode()
