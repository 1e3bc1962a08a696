"""What is entered in a trigger form reaches the command line as data, whatever it is."""

import shlex

import pytest

pytest.importorskip("airflow")

from bliss_ops.airflow import forms
from bliss_ops.airflow.operator import BlissStageOperator
from bliss_ops.airflow.owner import submission_id
from bliss_ops.airflow.rounds import next_run_id
from bliss_ops.config import Recipe

FILLED = {"recipe": "smoke", "method": "bliss", "seed": 3, "round": 1, "name": None, "compare_with": []}


def test_an_empty_form_sets_nothing() -> None:
    params = {key: param.value for key, param in forms.round_params().items()}
    assert forms.configure_arguments("configure", params) == ["configure", "demo", "--method=bliss", "--seed=0"]


def test_every_setting_of_a_recipe_is_a_field_with_its_sentence() -> None:
    def names(model: type, prefix: str = "") -> set[str]:
        found = set()
        for name, field in model.model_fields.items():
            nested = field.annotation
            found |= names(nested, f"{prefix}{name}.") if hasattr(nested, "model_fields") else {f"{prefix}{name}"}
        return found

    params = forms.round_params()
    assert set(params) == {*forms.NAMING, *names(Recipe)} - {"description"}
    assert all(param.description or param.schema.get("description_md") for param in params.values())


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("bilevel.temperature", 2.5, 0),
        ("ingest.num_groups", 64, 65),
        ("compute.device", "cpu", "tpu"),
        ("num_rounds", 2, "two"),
        ("compute.num_workers", 4, 0),
    ],
)
def test_fields_have_the_bounds_of_the_settings(key: str, good: object, bad: object) -> None:
    param = forms.round_params()[key]
    assert param.resolve(good) == good
    assert param.resolve(None) is None
    with pytest.raises(ValueError, match="Failed validating"):
        param.resolve(bad)


def test_tables_are_entered_as_json() -> None:
    others = [{"source": "more.jsonl", "weight": 0.5}]
    param = forms.round_params()["ingest.validation.others"]
    assert param.resolve(others) == others
    with pytest.raises(ValueError, match="Failed validating"):
        param.resolve(["more.jsonl"])
    assert forms.recipe(FILLED | {"ingest.validation.others": others}).ingest.validation.others[0].weight == 0.5


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [("evaluation.tasks", ["sciq", "lambada_openai"], ["trivia"]), ("pretraining.decay_at_steps", [100, 200], ["soon"])],
)
def test_lists_of_names_and_numbers_are_checked_by_the_form(key: str, good: object, bad: object) -> None:
    param = forms.round_params()[key]
    assert param.resolve(good) == good
    with pytest.raises(ValueError, match="Failed validating"):
        param.resolve(bad)


def test_variants_are_methods_of_the_form_and_change_its_recipe() -> None:
    param = forms.round_params()["method"]
    assert param.resolve("bliss-released") == "bliss-released"
    assert forms.recipe(FILLED | {"method": "bliss-released"}).bilevel.score_head == "sigmoid"
    assert forms.recipe(FILLED | {"method": "bliss-released", "bilevel.score_head": "linear"}).bilevel.score_head == "linear"


def test_the_number_of_workers_reaches_the_run_and_the_tasks_that_start_them() -> None:
    from bliss_ops import cli
    from bliss_ops.airflow import tasks
    from bliss_ops.cli import arguments as cli_arguments
    from bliss_ops.pipeline import ROUND_STAGES

    arguments = forms.configure_arguments("configure", FILLED | {"compute.num_workers": 4})
    assert cli_arguments.overrides(cli.build_parser().parse_args(arguments)) == {"compute.num_workers": 4}
    stages = [stage for stage in ROUND_STAGES if not (stage.sharded or stage.is_light)]
    operators = {stage.name: tasks._stage_task(stage, tasks.configure_task("configure")) for stage in stages}
    assert {name for name, operator in operators.items() if "num_workers" in operator.num_workers} == {"warm_up", "fit", "pretrain"}


COMPARISON = {"recipe": "smoke", "methods": ["random", "bliss-paper"], "seeds": [0, 7], "name": None, "baseline": "random"}


def test_a_comparisons_form_reaches_the_command_line() -> None:
    from bliss_ops import cli
    from bliss_ops.cli import arguments as cli_arguments

    params = {key: param.value for key, param in forms.comparison_params().items()}
    expected = ["configure-comparison", "demo", "--methods=random,dsir,bliss", "--seeds=0,1,2", "--baseline=random"]
    assert forms.comparison_arguments(params) == expected
    arguments = forms.comparison_arguments(COMPARISON | {"name": "--lake=/x", "bilevel.num_steps": 3})
    parsed = cli.build_parser().parse_args(arguments)
    assert (parsed.methods, parsed.seeds, parsed.comparison_name, parsed.lake) == ("random,bliss-paper", "0,7", "--lake=/x", None)
    assert cli_arguments.overrides(parsed) == {"bilevel.num_steps": 3}


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("methods", ["random", "dsir"], ["random"]),
        ("methods", ["random", "bliss-released"], ["random", "nonsense"]),
        ("methods", ["random", "dsir"], ["dsir", "dsir"]),
        ("seeds", [0], []),
        ("seeds", [0, 1], [0, 0]),
        ("seeds", [5], ["five"]),
        ("seeds", [5], [-1]),
        ("baseline", "dsir", "nonsense"),
    ],
)
def test_the_choice_of_a_comparison_is_checked_by_the_form(key: str, good: object, bad: object) -> None:
    param = forms.comparison_params()[key]
    assert param.resolve(good) == good
    with pytest.raises(ValueError, match="Failed validating"):
        param.resolve(bad)


@pytest.mark.parametrize("hostile", ["; rm -rf /", "$(reboot)", "a b\nc", "--lake=/elsewhere", "'\"`", "123", "null"])
def test_a_hostile_value_stays_one_argument_and_text(hostile: str) -> None:
    arguments = forms.configure_arguments("configure-corpus", FILLED | {"ingest.corpus": hostile})
    assert len(arguments) == len(forms.configure_arguments("configure-corpus", FILLED | {"ingest.corpus": "tame"}))
    assert shlex.split(shlex.join(arguments)) == arguments

    from bliss_ops import cli
    from bliss_ops.cli import arguments as cli_arguments

    parsed = cli.build_parser().parse_args(arguments)
    assert parsed.recipe == "smoke"
    assert cli_arguments.overrides(parsed)["ingest.corpus"] == hostile


def test_a_hostile_run_name_cannot_become_an_option() -> None:
    from bliss_ops import cli

    arguments = forms.configure_arguments("configure", FILLED | {"name": "--lake=/elsewhere", "compare_with": ["--traceback"]})
    parsed = cli.build_parser().parse_args(arguments)
    assert (parsed.run_name, parsed.compare_with, parsed.lake, parsed.traceback) == ("--lake=/elsewhere", ["--traceback"], None, False)


def test_a_stage_command_is_an_argument_list() -> None:
    operator = BlissStageOperator(task_id="score", subcommand="score", subject="a; reboot", round_number="2", group="0/4")
    assert operator.command == ["bliss", "score", "a; reboot", "--round", "2", "--group", "0/4"]


def test_values_are_checked_against_the_recipe() -> None:
    assert forms.recipe(FILLED | {"bilevel.num_steps": 7}).bilevel.num_steps == 7
    with pytest.raises(ValueError, match=r"bilevel\.num_steps"):
        forms.recipe(FILLED | {"bilevel.num_steps": 0})


def test_submission_ids_are_readable_and_never_collide() -> None:
    first = submission_id("bliss_round", "demo-bliss-s0-round-01", "fit", -1, 1)
    assert first.startswith("demo-bliss-s0-round-01.fit.")
    assert first == submission_id("bliss_round", "demo-bliss-s0-round-01", "fit", -1, 1)
    others = [
        submission_id("bliss_round", "demo-bliss-s0-round-01", "fit", -1, 2),
        submission_id("bliss_round", "demo-bliss-s0-round-01", "fit", 0, 1),
        submission_id("bliss_ingest", "demo-bliss-s0-round-01", "fit", -1, 1),
        submission_id("bliss_round", "manual__2026+01", "fit", -1, 1),
        submission_id("bliss_round", "manual__2026:01", "fit", -1, 1),
    ]
    assert len({first, *others}) == 6


def test_the_next_rounds_run_id_counts_on() -> None:
    assert next_run_id("demo-bliss-s0", 1, "demo-bliss-s0-round-01") == "demo-bliss-s0-round-02"
    assert next_run_id("demo-bliss-s0", 9, "demo-bliss-s0-round-09.2") == "demo-bliss-s0-round-10.2"
    from_ui = next_run_id("demo-bliss-s0", 1, "manual__2026-01-01T00:00:00+00:00")
    assert from_ui == "demo-bliss-s0-round-02.manual__2026-01-01T00-00-00-00-00"
    assert next_run_id("demo-bliss-s0", 2, from_ui) == from_ui.replace("round-02", "round-03")
