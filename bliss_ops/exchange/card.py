"""README.md of an export: a data set card whose first lines tell Hugging Face `datasets` which files to read, and a page for people."""

from upath import UPath

from bliss_ops import schemas
from bliss_ops.exchange.selected import Selected
from bliss_ops.lake import write_bytes
from bliss_ops.manifest import Manifest

COLUMNS = {
    "text": "the whole document",
    "score": "token-weighted mean of the scores of the document's sequences; higher is better",
    "num_tokens": "its tokens in packed sequences, end-of-text included",
    "num_selected_tokens": "those of them in selected sequences",
    "document_id": "its id in the corpus",
    "source": "label of the shard it came from",
    "url": "as ingested",
    "domain": "host of the url",
    "timestamp": "as ingested",
    "corpus": "the corpus in the lake",
    "run": "the run that selected it",
    "round": "and the round",
    "selector_fingerprint": "settings and inputs of the score model, as a hash",
}
assert list(COLUMNS) == schemas.EXPORTED_DOCUMENTS.names

CARD = """---
pretty_name: {title}
tags: [data-selection, bliss]
{configs}---

# {title}

{sentence}

| | |
|---|---|
{facts}

{body}
## Load it

```python
{snippet}
```

`manifest.json` has the sha256 of every file and the fingerprints of what they were made from.
"""

LOAD_DOCUMENTS = """from datasets import load_dataset

documents = load_dataset("./{directory}", split="train")"""

LOAD_NANOGPT = """import json
from pathlib import Path

import numpy as np
from datasets import Dataset

directory = Path("{directory}")
meta = json.loads((directory / "meta.json").read_text())
tokens = np.memmap(directory / "train.bin", dtype=meta["dtype"], mode="r")


def rows(T=meta["sequence_length"]):
    for start in range(0, len(tokens) - T + 1, T):
        yield {{"input_ids": tokens[start : start + T].astype("int64")}}


sequences = Dataset.from_generator(rows)"""

LOAD_MEGATRON = """import json
from pathlib import Path

import numpy as np
from datasets import Dataset

directory = Path("{directory}")
meta = json.loads((directory / "meta.json").read_text())
tokens = np.memmap(directory / "tokens.bin", dtype=meta["dtype"], mode="r")
with (directory / "tokens.idx").open("rb") as index:
    index.seek(9 + 8 + 1)  # after magic, version and type
    num_pieces, _ = np.fromfile(index, "<u8", 2)
    ends = np.cumsum(np.fromfile(index, "<i4", int(num_pieces)), dtype="int64")


def rows():
    for start, end in zip(np.append(0, ends[:-1]), ends):
        yield {{"input_ids": tokens[start:end].astype("int64")}}


pieces = Dataset.from_generator(rows)"""


def write(directory: UPath, manifest: Manifest, selected: Selected) -> None:
    """Write `README.md` beside the finished files, unless it is there."""
    path = directory / "README.md"
    if not path.is_file():
        write_bytes(path, text(directory, manifest, selected).encode())


def text(directory: UPath, manifest: Manifest, selected: Selected) -> str:
    """The card of a finished export."""
    settings, metrics, counts = manifest.identity, manifest.metrics, selected.selection.metrics
    format_name, config = settings["format"], selected.run.config
    facts = {
        "corpus": settings["corpus"],
        "run": f"{settings['run']}, round {settings['round']} (method {settings['method']}, seed {config.seed}, recipe {config.recipe})",
        "selector": settings["selector_fingerprint"][:16] or "none",
        "selected": f"{counts['num_selected']:,} of {counts['num_candidates']:,} sequences of {config.ingest.sequence_length} tokens",
    }
    kept = f"{counts['num_selected'] * config.ingest.sequence_length:,}"
    if format_name in ("jsonl", "parquet"):
        pattern = "shard-*.parquet" if format_name == "parquet" else "shard-*.jsonl*"
        facts["documents"] = f"{metrics['num_documents']:,}, with {metrics['num_tokens']:,} tokens"
        facts["selected tokens"] = f"{metrics['num_selected_tokens']:,} of the selection's {kept} are in these documents"
        facts["least share"] = f"{settings['min_share']:g} of a document's tokens in selected sequences"
        sentence = (
            "Documents chosen by their influence scores. A selection is of token sequences: a document is here, whole, when at least the "
            "share of its tokens given below is in selected sequences."
        )
        columns = "\n".join(
            f"| `{name}` | {schemas.EXPORTED_DOCUMENTS.field(name).type} | {meaning} |" for name, meaning in COLUMNS.items()
        )
        body = f"| column | type | |\n|---|---|---|\n{columns}\n"
        configs = f'configs:\n- config_name: default\n  data_files:\n  - split: train\n    path: "{pattern}"\n'
        snippet = LOAD_DOCUMENTS
    else:
        facts["tokens"] = ", ".join(f"{value:,} {name.removeprefix('num_').replace('_', ' ')}" for name, value in sorted(metrics.items()))
        sentence = (
            "Tokens exactly as selected, in corpus order; documents end with the end-of-text token they were packed with."
            if not settings["end_pieces"]
            else "Selected tokens in corpus order; every piece of a document ends with end-of-text, added where the selection cuts."
        )
        body = "`meta.json` has the type of the tokens, the vocabulary size and the end-of-text id; `tokenizer.json` is the tokenizer.\n"
        configs, snippet = "", LOAD_NANOGPT if format_name == "nanogpt" else LOAD_MEGATRON
    return CARD.format(
        title=f"{settings['run']}, round {settings['round']}",
        configs=configs,
        sentence=sentence,
        facts="\n".join(f"| {name} | {value} |" for name, value in facts.items()),
        body=body,
        snippet=snippet.format(directory=directory.name),  # relative, so that the directory can be moved or uploaded
    )
