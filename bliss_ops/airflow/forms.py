"""Trigger forms made from the settings' own schema, and the command lines made from what was entered.

A form has the recipe and the few things that name a run, then every setting of the recipe, empty, in collapsed sections: empty means
"as the recipe says". Each filled field becomes one `--set section.field=value` argument; its value is JSON, so text stays text.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from airflow.sdk import Param

from bliss_ops.config import Recipe, RunConfig
from bliss_ops.recipes import RECIPES, load_recipe
from bliss_ops.selectors import known_methods

DEFAULT_RECIPE = "demo"
NAMING = ("recipe", "method", "seed", "round", "name", "compare_with")  # fields of a round's form that are not settings of the recipe
CHOICE = ("recipe", "methods", "seeds", "name", "baseline")  # of a comparison's
BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "minLength", "maxLength", "enum")


def corpus_params() -> dict[str, Param]:
    """The form of `bliss_ingest`."""
    return {"recipe": _recipe_param()} | {key: param for key, param in _settings() if key.startswith("ingest.")}


def round_params() -> dict[str, Param]:
    """The form of `bliss_round`."""
    fields = RunConfig.model_json_schema()["properties"]
    return {
        "recipe": _recipe_param(),
        "method": Param("bliss", type="string", enum=known_methods(), title="Method", description=fields["method"]["description"]),
        "seed": Param(0, type="integer", minimum=0, maximum=2**31 - 1, title="Seed", description=fields["seed"]["description"]),
        "round": Param(1, type="integer", minimum=1, title="Round", description="Round to run; the next one is triggered when it is done."),
        "name": Param(None, type=["null", "string"], title="Run name", description=fields["name"]["description"]),
        "compare_with": Param(
            [], type="array", items={"type": "string"}, title="Compare with", description=fields["compare_with"]["description"]
        ),
    } | dict(_settings())


def comparison_params() -> dict[str, Param]:
    """The form of `bliss_compare`."""
    methods = known_methods()
    return {
        "recipe": _recipe_param(),
        "methods": Param(
            ["random", "dsir", "bliss"],
            type="array",
            items={"type": "string", "enum": methods},
            minItems=2,
            uniqueItems=True,
            examples=methods,
            title="Methods",
            description="Selectors, or variants of them; each is run with every seed.",
        ),
        "seeds": Param(
            [0, 1, 2],
            type="array",
            items={"type": "integer", "minimum": 0, "maximum": 2**31 - 1},
            minItems=1,
            uniqueItems=True,
            title="Seeds",
            description="Whole numbers. Runs of one seed share initial weights and data order, so differences are taken seed by seed.",
        ),
        "name": Param(
            None,
            type=["null", "string"],
            title="Name",
            description="Of the comparison and the beginning of its runs' names; empty takes the recipe's.",
        ),
        "baseline": Param(
            "random", type="string", enum=methods, title="Baseline", description="The method that the others are held against."
        ),
    } | dict(_settings())


def overrides(params: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that were filled in, by dotted name."""
    return {key: value for key, value in params.items() if key not in (*NAMING, *CHOICE) and value is not None and value != ""}


def recipe(params: Mapping[str, Any]) -> Recipe:
    """The recipe with what was filled in.

    Raises:
        ValueError: a setting is out of range or unknown.
    """
    return load_recipe(params["recipe"], overrides(params), method=params.get("method"))


def configure_arguments(subcommand: str, params: Mapping[str, Any]) -> list[str]:
    """The arguments of `bliss configure` or `bliss configure-corpus` for a filled form.

    `--option=value` in one element: a value that begins with a dash cannot become an option of its own.
    """
    arguments = [subcommand, str(params["recipe"])]
    if subcommand == "configure":
        arguments += [f"--method={params['method']}", f"--seed={params['seed']}"]
        arguments += [f"--name={params['name']}"] if params.get("name") else []
        arguments += [f"--compare-with={name}" for name in params.get("compare_with") or ()]
    return arguments + _set_arguments(params)


def comparison_arguments(params: Mapping[str, Any]) -> list[str]:
    """The arguments of `bliss configure-comparison` for a filled form."""
    arguments = ["configure-comparison", str(params["recipe"])]
    arguments += [f"--methods={','.join(params['methods'])}", f"--seeds={','.join(map(str, params['seeds']))}"]
    arguments += [f"--name={params['name']}"] if params.get("name") else []
    arguments += [f"--baseline={params['baseline']}"]
    return arguments + _set_arguments(params)


def _set_arguments(params: Mapping[str, Any]) -> list[str]:
    return [f"--set={key}={json.dumps(value)}" for key, value in overrides(params).items()]


def _recipe_param() -> Param:
    names = sorted(path.stem for path in RECIPES.glob("*.toml"))
    descriptions = {name: load_recipe(name).description for name in names}
    text = "\n".join(f"- **{name}**: {descriptions[name]}" for name in names).replace("`", "")  # code spans overlap the lines above
    return Param(DEFAULT_RECIPE, type="string", enum=names, title="Recipe", description_md=text)


def _settings() -> Iterator[tuple[str, Param]]:
    """Every setting of a recipe as an optional field; nested settings under their section's name."""
    schema = Recipe.model_json_schema()
    skipped = {"description"}  # of the recipe itself
    yield from _fields(
        schema, {name: field for name, field in schema["properties"].items() if name not in skipped}, prefix="", section="Rounds"
    )


def _fields(schema: dict[str, Any], properties: dict[str, Any], *, prefix: str, section: str) -> Iterator[tuple[str, Param]]:
    for name, field in properties.items():
        if "$ref" in field:
            nested = schema["$defs"][field["$ref"].rsplit("/", 1)[1]]
            title = section if prefix else _title(name)
            yield from _fields(
                schema, nested["properties"], prefix=f"{prefix}{name}.", section=f"{title}: {_title(name)}" if prefix else title
            )
        else:
            yield f"{prefix}{name}", _optional(name, field, section)


def _optional(name: str, field: dict[str, Any], section: str) -> Param:
    """One setting that may stay empty. Its default is not shown: what counts is the recipe's value."""
    value = next((option for option in field.get("anyOf", ()) if option.get("type") != "null"), field)
    bounds = {key: value[key] for key in BOUNDS if key in value}
    if value["type"] == "array":  # of names, of numbers, or of tables, which the form takes as JSON
        bounds["items"] = {"type": "object"} if "$ref" in value["items"] else value["items"]
    if "enum" in bounds:
        bounds["enum"] = [*bounds["enum"], None]
    return Param(
        None, type=["null", value["type"]], title=_title(name), description=field.get("description", ""), section=section, **bounds
    )


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()
