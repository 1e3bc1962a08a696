"""Exports go to S3, and scores come from there; the mock server is a server all the same."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bliss_ops.exchange import export
from bliss_ops.exchange.imported import import_scores
from bliss_ops.lake import Run
from tests.corpus.corpora import contents
from tests.lakes import make_corpus


@pytest.fixture(scope="module", autouse=True)
def bucket(s3: Any) -> None:
    s3.mkdir("exchange")


def test_an_export_to_s3_is_the_one_to_disk(run: Run, tmp_path: Path, s3: Any) -> None:
    for format_name in ("parquet", "megatron"):
        export(run, 1, str(tmp_path / format_name), format_name)  # type: ignore[arg-type]
        first = export(run, 1, f"s3://exchange/{format_name}", format_name)  # type: ignore[arg-type]
        assert export(run, 1, f"s3://exchange/{format_name}", format_name) == first  # type: ignore[arg-type]
        names = set(contents(tmp_path / format_name)) | ({"tokens.bin", "tokens.idx"} if format_name == "megatron" else set())
        assert names
        for name in names | {"README.md"}:
            assert s3.cat_file(f"exchange/{format_name}/{name}") == (tmp_path / format_name / name).read_bytes()


def test_scores_are_taken_from_s3(tmp_path: Path, s3: Any) -> None:
    pq.write_table(pa.table({"sequence_id": np.arange(30), "score": np.arange(30.0)}), tmp_path / "s.parquet")
    s3.put_file(str(tmp_path / "s.parquet"), "exchange/in/s.parquet")
    corpus = make_corpus(tmp_path / "lake").corpus("tiny")
    assert import_scores(corpus, "one", "s3://exchange/in/s.parquet").metrics["num_sequences"] == 30
    assert import_scores(corpus, "all", "s3://exchange/in").metrics["mean"] == 14.5
    with pytest.raises(ValueError, match=r"s3://exchange/none.parquet does not exist: check bucket"):
        import_scores(corpus, "none", "s3://exchange/none.parquet")
