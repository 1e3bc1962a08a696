"""Recipes and variants: TOML files that override the defaults of `bliss_ops/config/`.

A *recipe* (`<name>.toml` here, or a path) says how an experiment is done; a *variant* (`variants/<selector>-<label>.toml`) overrides the
settings of one method, so that it can be compared under a name of its own.
"""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bliss_ops.config import Recipe, check_name, parse

RECIPES = Path(__file__).parent
VARIANTS = RECIPES / "variants"

_MOST_BYTES = 1 << 20  # of a recipe
METHOD_SECTIONS = ("proxy", "bilevel", "classifier", "dsir", "less", "mates")  # of a recipe: the others are shared by all methods compared


def load_recipe(name_or_path: str, overrides: dict[str, Any] | None = None, *, method: str | None = None) -> Recipe:
    """Read a recipe by name (a file of `bliss_ops/recipes`) or by path, as it is for `method`.

    Where several say something, the later counts: the defaults, the recipe, the variant when `method` is one, and `overrides`,
    dotted settings such as {"bilevel.num_steps": 10}.

    Raises:
        ValueError: unknown recipe, unreadable TOML, or a setting that does not exist, is out of range, or is no variant's to set.
    """
    path = Path(name_or_path) if name_or_path.endswith(".toml") else RECIPES / f"{check_name(name_or_path)}.toml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
        raise ValueError(f"no recipe {name_or_path!r}: known recipes are {known}; or give the path of a .toml file")
    values, where = _read_toml(path), f"recipe {path.name}"
    if method is not None and (variant := VARIANTS / f"{check_name(method)}.toml").is_file():
        where += f" with variant {method}"
        for key, value in _variant_settings(variant):
            _set_dotted(values, key, value)
    for key, value in (overrides or {}).items():
        _set_dotted(values, key, value)
    return parse(Recipe, values, where=where)


def _variant_settings(path: Path) -> Iterator[tuple[str, Any]]:
    """Dotted settings of a variant. Everything outside a method's own sections is the same for all methods compared."""
    for section, fields in _read_toml(path).items():
        if section == "description":
            continue
        if section not in METHOD_SECTIONS or not isinstance(fields, dict):
            raise ValueError(f"variant {path}: {section} is not a variant's to set; it may hold {', '.join(METHOD_SECTIONS)}")
        yield from ((f"{section}.{name}", value) for name, value in fields.items())


def _read_toml(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"recipe {path} has more than {_MOST_BYTES >> 20} MB, far more than a recipe: check the path")
    try:
        return tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:  # a ValueError is also what a number of 5,000 digits raises
        raise ValueError(f"recipe {path} is not valid TOML: {error}") from error


def _set_dotted(values: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ValueError(f"{key}: there is no such setting: {section} is a value, not a section")  # noqa: TRY004 - a setting is wrong
    values[last] = value
