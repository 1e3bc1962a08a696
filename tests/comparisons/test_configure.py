"""Configuring a comparison: every run's config at once or none, one warm-up per seed, and what is refused."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bliss_ops import comparisons
from bliss_ops.cli import main
from bliss_ops.configure import configure_run
from bliss_ops.lake import Lake
from bliss_ops.training import sharing


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake.open(tmp_path / "lake")


def configured(lake: Lake, methods: str = "random,dsir,bliss", seeds: str = "0,1", **options: Any) -> comparisons.Comparison:
    return comparisons.configure(lake, "smoke", methods.split(","), [int(seed) for seed in seeds.split(",")], **options)


def warmups(comparison: comparisons.Comparison) -> dict[str, str]:
    return {member.run: member.warmup for member in comparison.runs}


def test_every_run_gets_its_config_and_the_comparison_its_own(lake: Lake) -> None:
    comparison = configured(lake, overrides={"pretraining.num_steps": 4})
    names = [f"smoke-{method}-s{seed}" for method in ("random", "dsir", "bliss") for seed in (0, 1)]
    assert [member.run for member in comparison.runs] == names
    assert [member.label for member in comparison.runs][:3] == ["random s0", "random s1", "dsir s0"]
    assert lake.run_names() == sorted(names)
    for member in comparison.runs:
        config = lake.run(member.run).config
        assert (config.method, config.seed, config.pretraining.num_steps) == (member.method, member.seed, 4)
        assert config.compare_with == (() if member.method == "random" else (f"smoke-random-s{member.seed}",))
    assert comparisons.read(lake, "smoke") == comparison
    assert lake.corpus_names() == ["smoke"]


def test_whoever_has_a_proxy_warms_up_for_its_seed(lake: Lake) -> None:
    assert warmups(configured(lake)) == {
        f"smoke-{method}-s{seed}": f"smoke-bliss-s{seed}" for method in ("random", "dsir", "bliss") for seed in (0, 1)
    }
    run = lake.run("smoke-random-s1")
    assert run.config.warmup_of == "smoke-bliss-s1"
    assert run.warmup == lake.run("smoke-bliss-s1").path / "warmup"


def test_without_a_proxy_the_first_run_of_a_seed_warms_up(lake: Lake) -> None:
    comparison = configured(lake, "random,dsir")
    assert comparison.warmups == ["smoke-random-s0", "smoke-random-s1"]


def test_a_method_that_is_added_leaves_what_is_there_and_warms_up_for_itself(lake: Lake) -> None:
    before = warmups(configured(lake, "random,dsir", "0"))
    after = warmups(configured(lake, "random,dsir,bliss,perplexity", "0"))
    assert {name: after[name] for name in before} == before == dict.fromkeys(before, "smoke-random-s0")
    assert after["smoke-bliss-s0"] == after["smoke-perplexity-s0"] == "smoke-bliss-s0"


def test_a_variant_with_another_proxy_has_a_warm_up_of_its_own(lake: Lake, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bliss-wide.toml").write_text("[proxy]\nwarmup_steps = 7\n")
    for module in ("bliss_ops.recipes", "bliss_ops.selectors"):
        monkeypatch.setattr(f"{module}.VARIANTS", tmp_path)
    found = warmups(configured(lake, "random,bliss,bliss-wide", "0"))
    assert found == {
        "smoke-random-s0": "smoke-bliss-s0",
        "smoke-bliss-s0": "smoke-bliss-s0",
        "smoke-bliss-wide-s0": "smoke-bliss-wide-s0",
    }


def test_a_round_that_is_configured_again_keeps_its_warm_up(lake: Lake) -> None:
    """As the DAG of a later round does, which knows nothing of comparisons."""
    configured(lake)
    assert configure_run(lake, "smoke", "random", 0).config.warmup_of == "smoke-bliss-s0"


def test_a_name_of_its_own_makes_runs_of_its_own(lake: Lake) -> None:
    comparison = configured(lake, "random,dsir", "3", name="tiny")
    assert [member.run for member in comparison.runs] == ["tiny-random-s3", "tiny-dsir-s3"]
    assert (lake.root / "comparisons" / "tiny" / "comparison.json").exists()


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"methods": "random,nonsense"}, "there is no method 'nonsense': known methods are .*random"),
        ({"methods": "random,dsir,dsir"}, "method dsir is named twice"),
        ({"seeds": "0,1,0"}, "seed 0 is named twice"),
        ({"methods": "random"}, "needs two methods or more, got random"),
        ({"methods": "bliss,dsir"}, r"the baseline 'random' is not among the methods \(bliss, dsir\)"),
        ({"baseline": "mates"}, "the baseline 'mates' is not among the methods"),
        ({"overrides": {"bilevel.num_steps": 0}}, r"bilevel\.num_steps: .*got 0"),
        ({"name": "../elsewhere"}, "is not a valid name"),
    ],
)
def test_a_wrong_choice_is_refused_before_anything_is_written(lake: Lake, choice: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        configured(lake, **choice)
    assert not lake.root.exists()


def test_runs_of_that_name_with_other_settings_are_all_named_and_nothing_is_written(lake: Lake) -> None:
    configured(lake, "random,dsir", "0")
    there = {path: path.read_bytes() for path in sorted(Path(lake.root.path).rglob("*.json"))}
    with pytest.raises(ValueError, match="was written with other settings") as caught:
        configured(lake, "random,dsir,bliss", "0,1", overrides={"pretraining.num_steps": 9, "ingest.vocab_size": 600})
    text = str(caught.value)
    assert "smoke-dsir-s0:\n" in text
    assert text.count("pretraining.num_steps: was 6, now 9") == 2
    assert "corpus smoke:\n    vocab_size: was 512, now 600" in text
    assert "smoke-bliss-s0" not in text, "it was not there"
    assert {path: path.read_bytes() for path in sorted(Path(lake.root.path).rglob("*.json"))} == there


def test_an_unknown_comparison_says_how_to_make_one(lake: Lake) -> None:
    with pytest.raises(ValueError, match="there is no comparison 'none' in the lake"):
        comparisons.read(lake, "none")


def test_a_report_without_results_says_how_far_every_run_is(lake: Lake) -> None:
    comparison = configured(lake, "random,dsir", "0")
    with pytest.raises(ValueError, match="has 0 runs with results, a report needs two:\n  smoke-random-s0: nothing is done"):
        comparisons.report(lake, comparison)


class TestCommands:
    def test_configure_comparison_prints_what_is_to_be_done(self, lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
        options = ["--methods", "random, dsir", "--seeds", "4", "--lake", str(lake.root)]
        assert main(["configure-comparison", "smoke", *options]) == 0
        said = json.loads(capsys.readouterr().out)
        assert (said["name"], said["corpus"], said["num_rounds"]) == ("smoke", "smoke", 2)
        assert [(member["run"], member["label"], member["warmup"]) for member in said["unfinished"]] == [
            ("smoke-random-s4", "random s4", "smoke-random-s4"),
            ("smoke-dsir-s4", "dsir s4", "smoke-random-s4"),
        ]

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--recipe", "smoke", "a-run"], "--recipe makes the runs itself: leave out runs"),
            (["a-run", "b-run", "--set", "num_rounds=2"], "--set: only with --recipe"),
            (["--recipe", "smoke", "--seeds", "0,-1"], "--seeds 0,-1: -1 is not a seed"),
            (["--recipe", "smoke", "--methods", "random,nonsense"], "there is no method 'nonsense'"),
            ([], "name two runs or more"),
        ],
    )
    def test_what_does_not_fit_together_is_one_paragraph(
        self, lake: Lake, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
    ) -> None:
        assert main(["compare", *arguments, "--lake", str(lake.root)]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error

    def test_configuring_needs_nothing_heavy(self, tmp_path: Path) -> None:
        code = (
            "import sys; from bliss_ops.cli import main; "
            f"main(['configure-comparison', 'smoke', '--methods', 'random,dsir,bliss', '--lake', {str(tmp_path)!r}]); "
            "assert not {'torch', 'transformers', 'ray', 'duckdb', 'airflow'} & set(sys.modules), 'heavy'"
        )
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


class TestSharing:
    def test_another_warm_up_is_refused_with_what_differs(self, lake: Lake) -> None:
        configure_run(lake, "smoke", "bliss", 0)
        for options, message in (
            ({"seed": 1}, "seed: was 0, now 1"),
            ({"overrides": {"target.warmup_steps": 3}}, "target.warmup_steps: was 0, now 3"),
            ({"overrides": {"pretraining.learning_rate": 0.5}}, r"pretraining.learning_rate: was 0.001, now 0.5"),
            ({"overrides": {"proxy.warmup_steps": 6}}, "proxy.warmup_steps: was 5, now 6"),
            ({"overrides": {"ingest.corpus": "another"}}, "corpus: was 'smoke', now 'another'"),
        ):
            choice: dict[str, Any] = {"seed": 0} | options
            with pytest.raises(ValueError, match=f"cannot start from the warm-up of 'smoke-bliss-s0':\n  {message}"):
                configure_run(lake, "smoke", "perplexity", choice.pop("seed"), name="other", warmup_of="smoke-bliss-s0", **choice)
        assert lake.run_names() == ["smoke-bliss-s0"]

    def test_a_method_without_a_proxy_cannot_warm_up_for_one_that_has(self, lake: Lake) -> None:
        configure_run(lake, "smoke", "random", 0)
        with pytest.raises(ValueError, match="the method random of smoke-random-s0 has no proxy, bliss needs one"):
            configure_run(lake, "smoke", "bliss", 0, warmup_of="smoke-random-s0")
        configure_run(lake, "smoke", "dsir", 0, overrides={"proxy.warmup_steps": 9}, warmup_of="smoke-random-s0")

    def test_a_borrowed_warm_up_is_not_lent(self, lake: Lake) -> None:
        configure_run(lake, "smoke", "random", 0)
        configure_run(lake, "smoke", "dsir", 0, warmup_of="smoke-random-s0")
        with pytest.raises(ValueError, match="smoke-dsir-s0 starts from the warm-up of smoke-random-s0 itself: name that one"):
            configure_run(lake, "smoke", "classifier", 0, warmup_of="smoke-dsir-s0")

    def test_the_stage_checks_again(self, lake: Lake) -> None:
        configure_run(lake, "smoke", "random", 0)
        run = configure_run(lake, "smoke", "dsir", 0, warmup_of="smoke-random-s0")
        path = lake.run("smoke-random-s0").path / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": 5}))
        with pytest.raises(ValueError, match="seed: was 5, now 0"):
            sharing.owner(lake.run(run.name))

    def test_a_config_of_a_former_version_has_a_warm_up_of_its_own(self, lake: Lake) -> None:
        run = configure_run(lake, "smoke", "random", 0)
        path = run.path / "config.json"
        values = json.loads(path.read_text())
        del values["warmup_of"]
        path.write_text(json.dumps(values))
        assert lake.run(run.name).warmup == run.path / "warmup"
        assert sharing.owner(lake.run(run.name)).name == run.name


def test_more_rounds_extend_runs_whose_windows_stay(lake: Lake) -> None:
    configured(lake, "random,dsir", "0", overrides={"window_shards": 2, "num_rounds": 1})
    assert configured(lake, "random,dsir", "0", overrides={"window_shards": 2, "num_rounds": 3}).num_rounds == 3
    assert {lake.run(name).config.num_rounds for name in lake.run_names()} == {3}
    with pytest.raises(ValueError, match=r"pretraining\.num_steps"):
        configured(lake, "random,dsir", "0", overrides={"window_shards": 2, "num_rounds": 4, "pretraining.num_steps": 9})
    assert {lake.run(name).config.num_rounds for name in lake.run_names()} == {3}, "nothing is written where anything is wrong"
