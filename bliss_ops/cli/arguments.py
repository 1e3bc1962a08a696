"""What the commands share: their common options, settings from `--set`, and who does the work."""

import argparse
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bliss_ops import pipeline
from bliss_ops.config import EMBEDDED, NO_VALIDATION, Recipe
from bliss_ops.recipes import load_recipe

ADDRESSES = ("ingest.source", "ingest.tokenizer", "ingest.validation.source")  # settings that may be local paths
MODELS = ("proxy.shape", "target.shape")  # settings that are one where they end in .json


def add_command(commands: Any, name: str, function: Callable[[argparse.Namespace], int], help_text: str) -> argparse.ArgumentParser:
    """A sub-command with the options that every one has."""
    command: argparse.ArgumentParser = commands.add_parser(name, help=help_text, description=help_text)
    command.set_defaults(command=function)
    command.add_argument("--lake", help="root of the lake: a path or s3://... (default: $BLISS_LAKE, else ./lake)")
    command.add_argument("--traceback", action="store_true", help="show the Python traceback of an error")
    return command


def add_group(command: argparse.ArgumentParser) -> None:
    command.add_argument("--group", type=_group, metavar="K/N", help="only group K (from 0) of N groups of shards")


def add_settings(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--set", action="append", default=[], metavar="SECTION.FIELD=VALUE", help="override one setting of the recipe; repeatable"
    )


def round_number(text: str) -> int:
    if not (_is_number(text) and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not a round: rounds count from 1")
    return int(text)


def settings(items: Iterable[str]) -> dict[str, Any]:
    """`--set SECTION.FIELD=VALUE`, repeated, as dotted settings; a value is JSON, or else text."""
    values: dict[str, Any] = {}
    for item in items:
        key, separator, value = item.partition("=")
        if not separator:
            raise ValueError(f"--set {item!r}: write SECTION.FIELD=VALUE, for example bilevel.num_steps=300")
        values[key.strip()] = _value(value)
    return values


def overrides(arguments: argparse.Namespace, source: str | None = None) -> dict[str, Any]:
    """`--set` and the named shortcuts as dotted settings."""
    values = settings(arguments.set)
    shortcuts = {"ingest.source": source}
    shortcuts |= {f"ingest.{name}": getattr(arguments, name, None) for name in ("corpus", "tokenizer")}
    validation = getattr(arguments, "validation", None)
    if validation is not None:
        shortcuts |= {"ingest.validation.source": validation, "ingest.validation.name": _label(validation)}
    if source is not None and shortcuts["ingest.corpus"] is None and "ingest.corpus" not in values:
        shortcuts["ingest.corpus"] = _label(source)
    values = {key: value for key, value in shortcuts.items() if value is not None} | values
    for other in values.get("ingest.validation.others") or ():
        if isinstance(other, dict) and "source" in other:
            other["source"] = absolute(other["source"])
    paths = [*ADDRESSES, *(key for key in MODELS if str(values.get(key)).endswith(".json"))]
    return values | {key: absolute(values[key]) for key in paths if key in values}


def recipe_of(name: str, arguments: argparse.Namespace, source: str | None = None) -> Recipe:
    return load_recipe(name, overrides(arguments, source))


def who_works(group: tuple[int, int] | None = None) -> pipeline.Work:
    """Inside a Ray job the cluster takes the shards and the training workers; elsewhere this process and its children do."""
    if os.environ.get("RAY_ADDRESS"):
        from bliss_ops.ray.shards import map_on_ray
        from bliss_ops.ray.training import launch_on_ray

        return pipeline.Work(group, map_on_ray, launch_on_ray)
    return pipeline.Work(group)


def absolute(address: Any) -> Any:
    """A local path as seen from everywhere: a Ray job or a task of Airflow has another working directory."""
    is_local = isinstance(address, str) and address and address not in (EMBEDDED, NO_VALIDATION) and "://" not in address
    return str(Path(address).absolute()) if is_local else address


def _group(text: str) -> tuple[int, int]:
    number, _, total = text.partition("/")
    if not (_is_number(number) and _is_number(total) and int(number) < int(total)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a group: write K/N with K from 0 to N-1, for example 0/4")
    return int(number), int(total)


def _is_number(text: str) -> bool:
    """Digits as everybody writes them, and no more of them than a count has."""
    return text.isascii() and text.isdecimal() and len(text) < 10


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # a ValueError is also what a number of 5,000 digits raises
        return text


def _label(source: str) -> str:
    """A name for a corpus or validation set from its address: the last directory or file without wildcards and endings."""
    parts = [part for part in source.rstrip("/").split("/") if part and not any(c in part for c in "*?[")]
    last = (parts or ["corpus"])[-1].split(".")[0].lower()
    return "".join(c if c.isalnum() else "-" for c in last).strip("-") or "corpus"
