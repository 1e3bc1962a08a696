"""A tiny run whose warmed-up proxy and scores are there: random tokens of two kinds, a validation set made of one of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from upath import UPath

from bliss_ops import schemas
from bliss_ops.lake import Lake, Run, shard_file, write_json, write_parquet
from bliss_ops.models import language
from bliss_ops.sharding import ROWS_PER_SHARD
from bliss_ops.training.state import PROXY, TARGET, TrainState, adamw
from tests.lakes import T, make_corpus, make_run, produce

VOCAB = 64
SHAPE = "tiny-neox-64"


@pytest.fixture
def make_tiny_run(tmp_path: Path) -> Callable[..., Run]:
    """`make_tiny_run(method, proxy={...}, ...)`: sections override the settings of the run."""

    def make(method: str = "bliss", num_rounds: int = 1, **sections: dict[str, Any]) -> Run:
        lake = make_corpus(tmp_path)
        _fill(lake)
        run = make_run(lake, method, num_rounds=num_rounds)
        config = json.loads((run.path / "config.json").read_text())
        config["proxy"] |= {"shape": SHAPE, "warmup_steps": 4}
        config["target"] |= {"shape": SHAPE}
        config["compute"] |= {"num_threads": 1}
        config["bilevel"] |= {"num_steps": 2, "batch_sequences": 8}
        config["fidelity"] = {"num_probes": 24, "validation_rows": 4}
        for name, values in sections.items():
            config[name] |= values
        write_json(run.path / "config.json", config)
        steps = {name: {"num_steps": config[name]["warmup_steps"]} for name in ("proxy", "target")}
        produce(lake, run.warmup, "warm_up", lambda directory: (_write_states(directory, PROXY, TARGET), steps))
        for number in range(1, num_rounds + 1):
            produce(lake, run.round(number) / "pretrain", "pretrain", lambda directory: (_write_states(directory, TARGET), {}))
        return lake.run(run.name)  # reads the changed settings

    return make


def _fill(lake: Lake) -> None:
    """Tokens below 32 in shard 0 and above in shard 1; the validation set is like shard 0, with padding."""
    corpus, generator = lake.corpus("tiny"), np.random.default_rng(0)

    def sequences(directory: UPath) -> tuple[list[str], dict[str, Any]]:
        files = []
        for shard in (0, 1):
            schema = schemas.sequences(T, VOCAB)
            rows = generator.integers(32 * shard, 32 * shard + 32, (30, T)) // 4 * 4
            columns = {"sequence_id": shard * ROWS_PER_SHARD + np.arange(30), "input_ids": pa.array(rows.tolist(), schema.field(1).type)}
            write_parquet(shard_file(directory, shard), pa.table(columns, schema=schema))
            files += [shard_file(directory, shard).name, f"spans/{shard_file(directory, shard).name}"]
        return files, {"num_sequences": 60}

    def validation(directory: UPath) -> tuple[list[str], dict[str, Any]]:
        rows = generator.integers(0, 32, (10, T)) // 4 * 4
        labels = rows.copy()
        labels[::2, 9:] = -100
        schema = schemas.validation(T)
        columns = {name: pa.array(values.tolist(), schema.field(name).type) for name, values in (("input_ids", rows), ("labels", labels))}
        write_parquet(directory / "guide.parquet", pa.table(columns, schema=schema))
        return ["guide.parquet"], {}

    produce(lake, corpus.sequences, "pack", sequences, shards=(0, 1))
    produce(lake, corpus.tokenizer, "train_tokenizer", lambda directory: ([], {"vocab_size": VOCAB}))
    produce(lake, corpus.validation, "prepare_validation", validation)


def _write_states(directory: UPath, *names: str) -> list[str]:
    """Models with moments, after four steps on random tokens."""
    for number, name in enumerate(names):
        model = language.build(SHAPE, vocab_size=VOCAB, sequence_length=T, seed=number)
        state = TrainState(model, adamw(model, 1e-3, 0.1))
        for step in range(4):
            tokens = torch.from_numpy(np.random.default_rng(step).integers(0, VOCAB, (8, T)))
            model(input_ids=tokens, labels=tokens).loss.backward()
            state.optimizer.step()
            state.optimizer.zero_grad()
        state.step = 4
        language.write_tensors(directory / name, state.tensors())
    return list(names)


def read_influences(run: Run, round_number: int = 1) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = pq.read_table(str(run.round(round_number) / "fidelity" / "influences.parquet")).to_pydict()
    return columns
