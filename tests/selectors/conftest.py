"""The candidate window every selector is tried on."""

import numpy as np
import pyarrow as pa
import pytest
from upath import UPath

from bliss_ops import schemas
from bliss_ops.config import RunConfig
from bliss_ops.corpus.reading import SequenceReader
from bliss_ops.lake import shard_file, write_parquet
from bliss_ops.models import language
from bliss_ops.selectors import SelectorInputs
from bliss_ops.sharding import ROWS_PER_SHARD
from bliss_ops.training.loop import train
from bliss_ops.training.metrics import StepMetrics
from bliss_ops.training.state import PROXY, TARGET, new_state
from tests.selectors.windows import LENGTH, ROWS, VOCABULARY, counting, write_tokenizer


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> SelectorInputs:
    """A window of two shards: one counts like the validation set, one in the other half of the vocabulary."""
    root = UPath(tmp_path_factory.mktemp("selector"))
    rng = np.random.default_rng(0)
    schema = schemas.sequences(LENGTH, VOCABULARY)
    for shard in (0, 1):
        tokens = counting(ROWS, shard, rng).astype(np.uint16)
        ids = shard * ROWS_PER_SHARD + np.arange(ROWS)
        table = pa.table([pa.array(ids), pa.FixedSizeListArray.from_arrays(pa.array(tokens.ravel()), LENGTH)], schema=schema)
        write_parquet(shard_file(root / "sequences", shard), table)
    good = counting(64, 0, rng).astype(np.int32)
    column = pa.FixedSizeListArray.from_arrays(pa.array(good.ravel()), LENGTH)
    write_parquet(root / "validation" / "guide.parquet", pa.table([column, column], schema=schemas.validation(LENGTH)))
    config = RunConfig(
        name="r",
        recipe="r",
        method="bliss",
        ingest={"sequence_length": LENGTH},
        proxy={"shape": "tiny-neox-64"},
        target={"shape": "tiny-neox-64"},
        bilevel={
            "num_steps": 40,
            "batch_sequences": 32,
            "score_learning_rate": 1e-3,
            "checkpoint_every_steps": 15,
            "validation_batch_sequences": 32,
        },
        mates={
            "num_probes": 96,
            "validation_rows": 16,
            "num_epochs": 8,
            "regressor_batch_sequences": 16,
            "regressor_learning_rate": 1e-3,
            "evaluate_every_steps": 5,
            "checkpoint_every_steps": 15,
        },
        less={"num_checkpoints": 2, "num_warmup_steps": 6},
        pretraining={"batch_sequences": 32, "warmup_steps": 2, "checkpoint_every_steps": 2},
        compute={"num_threads": 1},
    )
    reader = SequenceReader([shard_file(root / "sequences", shard) for shard in (0, 1)])
    proxy = new_state(config, config.proxy, VOCABULARY)
    metrics = StepMetrics(root / "warmup" / "metrics.jsonl", "warm up", 10, 512)
    settings = {"learning_rate": lambda _step: 1e-3, "micro_batch_sequences": 32, "max_gradient_norm": 1.0, "metrics": metrics}
    train(proxy, lambda step: reader.batch(step, 32, 0)[1], 10, **settings)
    for name in (PROXY, TARGET):
        language.write_tensors(root / "warmup" / name, proxy.tensors())
    write_tokenizer(root / "tokenizer")
    return SelectorInputs(
        config,
        1,
        vocab_size=VOCABULARY,
        tokenizer=root / "tokenizer",
        candidates=reader,
        validation=root / "validation",
        warmup=root / "warmup",
        reference=root / "warmup",
        previous=None,
    )
