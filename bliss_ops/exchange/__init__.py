"""Selections leave in the forms other trainers read; scores made elsewhere come in as score runs.

An export is an artifact in a directory of the user's choice, local or on an object store: the same manifest as in the lake, shard
records so that a killed export resumes, and a README.md that is a data set card for Hugging Face `datasets` and for people.
"""

from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from upath import UPath

from bliss_ops.exchange import card, documents, tokens
from bliss_ops.exchange.documents import Compression
from bliss_ops.exchange.selected import Selected
from bliss_ops.lake import Lake, Run, is_local
from bliss_ops.manifest import Artifact, Manifest

Format = Literal["jsonl", "parquet", "nanogpt", "megatron"]


def export(
    run: Run,
    round_number: int,
    output: str | UPath,
    format_name: Format = "parquet",
    *,
    min_share: float = 0.5,
    compression: Compression | None = None,
    end_pieces: bool = False,
    validation_fraction: float = 0.0,
) -> Manifest:
    """Write what a round selected to the directory `output`; the same call again does no second work.

    Args:
        run: the run whose selection leaves.
        round_number: from 1.
        output: a directory, local or on an object store; made when missing.
        format_name: `jsonl` or `parquet` (documents), `nanogpt` or `megatron` (tokens).
        min_share: documents: the least share of a document's tokens that must be in selected sequences.
        compression: documents: of the files; zstd for Parquet and gzip for JSON lines unless given, which every reader of theirs opens.
        end_pieces: tokens: end a document that the selection cuts with an end-of-text token.
        validation_fraction: nanogpt: share of the documents whose tokens go to `val.bin`.

    Returns:
        The manifest; its metrics count documents and tokens.

    Raises:
        ValueError: a setting is out of bounds, the selection is not finished, or nothing is left to write.
        ArtifactMismatchError: `output` holds an export with other settings.
    """
    compression = compression or ("gzip" if format_name == "jsonl" else "zstd")
    _check(format_name, min_share, compression, validation_fraction)
    directory = _absolute(output)
    selected = Selected(run, round_number)
    settings: dict[str, Any] = {"format": format_name, "method": run.config.method} | selected.origin
    inputs = [selected.selection, selected.scores, selected.sequences]
    if format_name in ("jsonl", "parquet"):
        settings |= {"min_share": min_share, "compression": compression}
        inputs.append(selected.documents)
    else:
        settings |= {"end_pieces": end_pieces} | ({"validation_fraction": validation_fraction} if format_name == "nanogpt" else {})
    artifact = Artifact(Lake(directory.parent), directory, stage="export", identity=settings, inputs=inputs)
    manifest: Manifest | None
    if format_name in ("jsonl", "parquet"):
        make_worker = partial(documents.make_worker, selected, directory, format_name, min_share, compression)
        manifest = artifact.produce_shards(
            make_worker, selected.shards, check=partial(documents.check, min_share=min_share, where=directory)
        )
    elif format_name == "nanogpt":
        manifest = artifact.produce(partial(tokens.write_nanogpt, selected, end_pieces=end_pieces, validation_fraction=validation_fraction))
    else:
        manifest = artifact.produce(partial(tokens.write_megatron, selected, end_pieces=end_pieces))
    assert manifest is not None, "all shards were asked for"
    card.write(directory, manifest, selected)
    return manifest


def _check(format_name: str, min_share: float, compression: str, validation_fraction: float) -> None:
    if format_name not in get_args(Format):
        raise ValueError(f"format {format_name!r} does not exist: use one of {', '.join(get_args(Format))}")
    if compression not in get_args(Compression):
        raise ValueError(f"compression {compression!r} does not exist: use one of {', '.join(get_args(Compression))}")
    if not 0 < min_share <= 1:
        raise ValueError(f"min_share is {min_share}: use a share above 0, up to 1 (only documents selected whole)")
    if not 0 <= validation_fraction < 1:
        raise ValueError(f"validation_fraction is {validation_fraction}: use a share from 0 (no val.bin) to below 1")


def _absolute(output: str | UPath) -> UPath:
    path = UPath(output)
    return UPath(Path(path.path).absolute()) if is_local(path) else path
