"""What two lakes are compared by: their finished artifacts, and the scores of their stores."""

from pathlib import Path
from typing import Any

import duckdb

from bliss_ops.lake import Lake
from bliss_ops.manifest import Manifest, read_manifest


def manifests(lake: Lake, folder: str = "") -> dict[str, Manifest]:
    """Every finished artifact below a folder of the lake, by its address; reports, which say how long things took, apart."""
    paths = sorted((lake.root / folder).glob("**/manifest.json"), key=str)
    found = [read_manifest(path.parent, made_by="") for path in paths]
    return {manifest.artifact: manifest for manifest in found if manifest.stage != "report"}


def stored_scores(lake: Lake, directory: Path) -> list[tuple[Any, ...]]:
    """Every score of the published store, by run and sequence; the store is copied first, as a reader on S3 does."""
    directory.mkdir(parents=True, exist_ok=True)
    copy = directory / "scores.duckdb"
    copy.write_bytes(lake.score_store.read_bytes())
    with duckdb.connect(str(copy), read_only=True) as con:
        return con.execute("select score_run_id, sequence_id, score from all_scores order by all").fetchall()
