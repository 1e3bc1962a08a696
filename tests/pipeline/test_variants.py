"""Variants of a method: settings of its own over the recipe's, under the settings given on the command line."""

from pathlib import Path
from typing import Any

import pytest

from bliss_ops import recipes, selectors
from bliss_ops.cli import main
from bliss_ops.config import RunConfig
from bliss_ops.lake import Lake
from bliss_ops.recipes import VARIANTS, load_recipe

SHIPPED = sorted(path.stem for path in VARIANTS.glob("*.toml"))
RECIPES = sorted(path.stem for path in VARIANTS.parent.glob("*.toml"))


def configured(root: Path, method: str, *settings: str) -> RunConfig:
    arguments = [part for setting in settings for part in ("--set", setting)]
    assert main(["configure", "small", "--method", method, "--lake", str(root), *arguments]) == 0
    return Lake.open(root).run(f"small-{method}-s0").config


def changed(before: Any, after: Any, path: str = "") -> set[str]:
    """Dotted names of the fields that differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        return {name for key in before for name in changed(before[key], after[key], f"{path}.{key}" if path else key)}
    return set() if before == after else {path}


@pytest.fixture
def one_variant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of variants with one in it."""
    file = tmp_path / "variants" / "bliss-mine.toml"
    file.parent.mkdir()
    file.write_text('description = "x"\n[bilevel]\nnum_steps = 7\ntemperature = 2.5\n[proxy]\nwarmup_steps = 3\n')
    monkeypatch.setattr(recipes, "VARIANTS", file.parent)
    monkeypatch.setattr(selectors, "VARIANTS", file.parent)
    return file


def test_a_variant_changes_its_fields_and_no_other(tmp_path: Path, one_variant: Path) -> None:
    plain, variant = configured(tmp_path, "bliss"), configured(tmp_path, "bliss-mine")
    expected = {"name", "method", "bilevel.num_steps", "bilevel.temperature", "proxy.warmup_steps"}
    assert changed(plain.model_dump(), variant.model_dump()) == expected
    assert (variant.bilevel.num_steps, variant.bilevel.temperature, variant.proxy.warmup_steps) == (7, 2.5, 3)


def test_settings_of_the_command_line_count_more(tmp_path: Path, one_variant: Path) -> None:
    run = configured(tmp_path, "bliss-mine", "bilevel.num_steps=9", "selection.fraction=0.3")
    assert (run.bilevel.num_steps, run.bilevel.temperature, run.selection.fraction) == (9, 2.5, 0.3)


def test_a_variant_is_its_selector_under_another_name(one_variant: Path) -> None:
    assert "bliss-mine" in selectors.known_methods()
    assert "bliss-paper" not in selectors.known_methods()  # this folder holds one
    assert selectors.load("bliss-mine") is selectors.load("bliss")
    assert selectors.uses_proxy("bliss-mine")


def test_the_recipe_of_a_method_without_variant_is_the_recipe() -> None:
    assert load_recipe("small", method="random") == load_recipe("small")


@pytest.mark.parametrize("command", [["configure", "small", "--method"], ["run", "small", "--methods"]])
def test_unknown_variants_are_refused_with_the_list(tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]) -> None:
    assert main([*command, "bliss-nonsense", "--lake", str(tmp_path / "lake")]) == 1
    message = capsys.readouterr().err
    assert "there is no method 'bliss-nonsense': known methods are bliss, bliss-paper, bliss-released, " in message
    assert not (tmp_path / "lake").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[bilevel]\nnum_stepz = 3\n", "recipe small.toml with variant bliss-mine:\n  bilevel.num_stepz: there is no such setting"),
        ("[pretraining]\nnum_steps = 3\n", "pretraining is not a variant's to set; it may hold proxy, bilevel"),
        ("num_rounds = 3\n", "num_rounds is not a variant's to set"),
        ("[bilevel\n", "is not valid TOML"),
    ],
)
def test_a_variant_that_cannot_be_used(
    tmp_path: Path, one_variant: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    one_variant.write_text(text)
    assert main(["configure", "small", "--method", "bliss-mine", "--lake", str(tmp_path / "lake")]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("method", SHIPPED)
@pytest.mark.parametrize("recipe", RECIPES)
def test_shipped_variants_fit_every_recipe(method: str, recipe: str) -> None:
    difference = changed(load_recipe(recipe).model_dump(), load_recipe(recipe, method=method).model_dump())
    assert difference
    assert all(name.startswith(recipes.METHOD_SECTIONS) for name in difference)
    assert method in selectors.known_methods()
    assert selectors.load(method).__name__ == f"bliss_ops.selectors.{selectors.selector_of(method)}"
