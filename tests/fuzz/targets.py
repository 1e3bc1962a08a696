"""What is fuzzed: every parser of what comes from outside, as a function of bytes that returns or raises one of its documented errors.

Both drivers use this table: hypothesis in `make test` (test_parsers.py), atheris by name (`python -m tests.fuzz.atheris_run TARGET`).
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from upath import UPath

from bliss_ops.cli.arguments import settings
from bliss_ops.config import RunConfig, parse
from bliss_ops.corpus.bounds import Bounds
from bliss_ops.corpus.parquet import damage_is_a_value_error
from bliss_ops.corpus.readers import read_records
from bliss_ops.corpus.source import label_of, read_list
from bliss_ops.manifest import find_manifest
from bliss_ops.names import check_address, check_name, quoted_identifier, quoted_text, redacted
from bliss_ops.recipes import load_recipe

SMALL = Bounds(file_bytes=1 << 24)


@contextmanager
def file_of(data: bytes, name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:  # noqa: S108 - memory, not a disk
        path = Path(folder) / name
        path.write_bytes(data)
        yield path


def reader(ending: str) -> Callable[[bytes], None]:
    def read(data: bytes) -> None:
        with file_of(data, f"a{ending}") as path:
            for record in read_records(str(path), 1000, SMALL):
                assert record.line_number >= 1

    return read


def addresses(data: bytes) -> None:
    text = data.decode("utf-8", "surrogatepass" if len(data) % 2 else "replace")
    redacted(text)
    scheme = check_address(text)
    label_of(text)
    assert not scheme or redacted(text) == text  # what was taken carries no credential


def lists(data: bytes) -> None:
    with file_of(data, "x.list") as path:
        for line in read_list(str(path)):
            check_address(line)


def recipes(data: bytes) -> None:
    with file_of(data, "x.toml") as path:
        load_recipe(str(path))


def dotted_settings(data: bytes) -> None:
    load_recipe("smoke", settings(data.decode("utf-8", "replace").split("\n")))


def run_config(data: bytes) -> None:
    parse(RunConfig, data, where="config.json")


def manifests(data: bytes) -> None:
    with file_of(data, "manifest.json") as path:
        find_manifest(UPath(path.parent))


def names(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    for check in (check_name, quoted_identifier):
        try:
            assert "/" not in check(text)
        except ValueError:
            continue
    quoted = quoted_text(text)
    assert "'" not in quoted[1:-1].replace("''", "")


@cache
def _store() -> Any:
    import duckdb

    from bliss_ops.sql import connect_read_only

    folder = Path(tempfile.mkdtemp())
    with duckdb.connect(str(folder / "s.duckdb")) as con:
        con.execute("create table scores as select range as sequence_id, 0.5 as score from range(10)")
    return connect_read_only(folder / "s.duckdb", str(folder / "spill"), memory_limit="256MB", threads=1)


def statements(data: bytes) -> None:
    """Which statements are run; nothing that is not a SELECT may be."""
    import duckdb

    from bliss_ops.sql import check_reads

    text = data.decode("utf-8", "replace")
    con = _store()
    try:
        check_reads(con, text)
    except duckdb.Error as error:
        raise ValueError(str(error)) from error
    first = con.extract_statements(text)
    assert len(first) == 1
    assert first[0].type in (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN)


def imported_scores(data: bytes) -> None:
    from bliss_ops.exchange.imported import _batches

    with file_of(data, "x.parquet") as path, damage_is_a_value_error(str(path)), path.open("rb") as stream:
        for _ in _batches(str(path), stream, "sequence_id", "score"):
            pass


def tensors(data: bytes) -> None:
    from bliss_ops.models.language import read_tensors

    with file_of(data, "model.safetensors") as path:
        read_tensors(UPath(path))


def tokenizers(data: bytes) -> None:
    from bliss_ops.corpus.tokenizer import Tokenizer

    Tokenizer(data, "tokenizer.json")


def model_configs(data: bytes) -> None:
    from bliss_ops.models.architecture import read

    with file_of(data, "config.json") as path:
        read(str(path))


@cache
def _params() -> dict[str, Any]:
    from bliss_ops.airflow import forms

    return forms.round_params()


def form_values(data: bytes) -> None:
    """A run's conf as the API takes it: what the form's schema refuses is a ValueError, what it lets pass goes on to the settings."""
    from bliss_ops.airflow import forms

    values = json.loads(data)
    if not isinstance(values, dict):
        raise ValueError("Airflow takes an object")  # noqa: TRY004 - what the settings raise
    params = {key: param.value for key, param in _params().items()}
    for key, value in values.items():
        params[key] = _params()[key].resolve(value) if key in _params() else value
    command = forms.configure_arguments("configure", params)
    assert all(isinstance(argument, str) for argument in command)
    forms.recipe(params)


LINES = b'{"text": "a", "url": "http://h/"}\n'
TARGETS: dict[str, tuple[Callable[[bytes], None], tuple[type[Exception], ...], list[bytes]]] = {
    # what is called with bytes, what it may raise, seeds
    "json-lines": (reader(".jsonl"), (ValueError,), [LINES, b'{"text": "\\ud800"}', b"[" * 2000]),
    "gzip": (reader(".json.gz"), (ValueError,), []),
    "zstandard": (reader(".json.zst"), (ValueError,), []),
    "parquet": (reader(".parquet"), (ValueError,), []),
    "addresses": (
        addresses,
        (ValueError,),
        [b"https://user:pass@host/a.jsonl?sig=1", b"s3://b/../a", b"hf://datasets/o/n/a", b"file:///x"],
    ),
    "lists": (lists, (ValueError,), [b"a.jsonl\n# b\nhttps://h/a.jsonl\n"]),
    "recipes": (recipes, (ValueError,), [b"num_rounds = 1\n[ingest]\nsource = 'x'\n[[ingest.validation.others]]\nsource='y'\n"]),
    "settings": (dotted_settings, (ValueError,), [b"bilevel.num_steps=3", b'ingest.validation.others=[{"source": "x"}]', b"a.b.c=1"]),
    "run-config": (run_config, (ValueError,), [b'{"name": "x", "recipe": "smoke", "method": "bliss", "num_rounds": 1}']),
    "manifests": (
        manifests,
        (ValueError,),
        [b'{"stage": "x", "artifact": "y", "fingerprint": "z", "identity": {}, "inputs": {}, "outputs": []}'],
    ),
    "names": (names, (ValueError,), [b"a.b-c_1", b"' or 1=1", b"../x"]),
    "statements": (
        statements,
        (ValueError,),
        [b"select 1; drop table scores", b"explain analyze select 1", b"update extensions", b"from scores"],
    ),
    "imported-scores": (imported_scores, (ValueError,), []),
    "safetensors": (tensors, (ValueError,), []),
    "tokenizers": (tokenizers, (ValueError,), [b'{"model": {"type": "WordLevel", "vocab": {"a": 0, "</s>": 1}, "unk_token": "a"}}']),
    "model-configs": (model_configs, (ValueError,), [b'{"model_type": "gpt2", "n_layer": 1, "n_embd": 4, "n_head": 2, "vocab_size": 10}']),
    "form-values": (form_values, (ValueError,), [b'{"name": "x", "bilevel.num_steps": 3}', b'{"ingest.source": "file:///x", "a.b": 1}']),
}


def run(target: str, data: bytes) -> None:
    """Feed one input; anything but the documented errors is a finding."""
    function, errors, _ = TARGETS[target]
    try:
        function(data)
    except errors:
        return


def seeds(target: str) -> list[bytes]:
    """Well formed inputs, so that a fuzzer gets past the first bytes."""
    import gzip
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    given = list(TARGETS[target][2])
    buffer = io.BytesIO()
    if target == "gzip":
        return [gzip.compress(LINES), gzip.compress(LINES) * 2]
    if target == "zstandard":
        return [pa.compress(LINES, "zstd", asbytes=True)]
    if target in ("parquet", "imported-scores"):
        columns: dict[str, Any] = (
            {"text": ["a", "b"], "url": ["x", None]} if target == "parquet" else {"sequence_id": [0, 1], "score": [0.5, 1.5]}
        )
        pq.write_table(pa.table(columns), buffer)
        return [buffer.getvalue()]
    if target == "safetensors":
        import numpy as np
        from safetensors.numpy import save

        return [save({"a": np.zeros((2, 2), np.float32)})]
    return given
