"""A tiny comparison in this process: one warm-up per seed, nothing done twice, one failing run, runs that are added later."""

import json
from pathlib import Path

import pytest

from bliss_ops import comparisons, pipeline
from bliss_ops.cli import main
from bliss_ops.configure import configure_run
from bliss_ops.lake import Lake, Run
from bliss_ops.manifest import read_manifest

SETTINGS = {
    "num_rounds": 1,
    "pretraining.num_steps": 4,
    "target.warmup_steps": 3,
    "proxy.warmup_steps": 3,
    "fidelity.num_probes": 16,
}
FLAGS = [argument for key, value in SETTINGS.items() for argument in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return Lake.open(tmp_path_factory.mktemp("lake"))


def compare(lake: Lake, methods: str, seeds: str) -> int:
    return main(["compare", "--recipe", "smoke", "--methods", methods, "--seeds", seeds, "--lake", str(lake.root), *FLAGS])


def finished_at(lake: Lake) -> dict[str, str]:
    """When every artifact of every run was finished, by its address."""
    paths = Path(lake.root.path).glob("runs/**/manifest.json")
    return {str(path.parent.relative_to(lake.root.path)): json.loads(path.read_text())["finished_at"] for path in paths}


def weights(run: Run, name: str) -> bytes:
    return (run.warmup / name).read_bytes()


def test_a_failing_run_stops_no_other_and_the_same_command_goes_on(lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    """The scores of one run were begun with other settings."""
    obstacle = lake.run("smoke-random-s0").round(1) / "scores" / "begun.json"
    obstacle.parent.mkdir(parents=True)
    obstacle.write_text('{"fingerprint": "another", "identity": {"batch": 1}, "inputs": {}}')
    assert compare(lake, "random,perplexity,dsir", "0") == 1
    said = capsys.readouterr()
    assert "missing: smoke-random-s0 (selector of round 1 is done, scores of round 1 is not there)" in said.err
    page = (lake.root / "comparisons" / "smoke" / "index.html").read_text()
    assert "1 run is missing" in page
    assert "There is no run of the baseline random" in page
    before = finished_at(lake)

    obstacle.unlink()
    assert compare(lake, "random,perplexity,dsir", "0") == 0
    after = finished_at(lake)
    assert {name for name in after if after[name] != before.get(name)} == {
        f"runs/smoke-random-s0/{name}" for name in ("report", *(f"round-01/{part}" for part in _after_the_selector(lake)))
    }
    summary = json.loads((lake.root / "comparisons" / "smoke" / "summary.json").read_bytes())
    assert [method["method"] for method in summary["methods"]] != []
    assert summary["missing"] == {}
    assert {one["verdict"] for one in summary["methods"]} == {"", "one seed: cannot be told from chance"}


def test_target_and_proxy_are_warmed_up_once_and_bit_for_bit_as_each_run_would(lake: Lake) -> None:
    """Needs the runs of the test before."""
    warmups = sorted(path.parent.name for path in (Path(lake.root.path) / "runs").glob("*/warmup"))
    assert warmups == ["smoke-perplexity-s0"]
    alone = configure_run(lake, "smoke", "random", 0, overrides=SETTINGS, name="alone")
    pipeline.warm_up(alone)
    shared = lake.run("smoke-random-s0")
    assert (alone.warmup, shared.warmup) == (alone.path / "warmup", lake.run("smoke-perplexity-s0").path / "warmup")
    assert weights(alone, "state.safetensors") == weights(shared, "state.safetensors")


def test_the_same_command_again_does_nothing_and_a_seed_later_only_its_runs(lake: Lake) -> None:
    """Needs the runs of the first test."""
    before = finished_at(lake)
    assert compare(lake, "random,perplexity,dsir", "0") == 0
    assert finished_at(lake) == before
    assert compare(lake, "random,perplexity", "0,1") == 0
    after = finished_at(lake)
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[1] for name in after.keys() - before.keys()} == {"smoke-random-s1", "smoke-perplexity-s1"}
    table = (lake.root / "comparisons" / "smoke" / "table.md").read_text()
    assert "| perplexity | 2 |" in table
    assert "with 2 pairs in 70 % of cases" in table
    assert comparisons.unfinished(lake, comparisons.read(lake, "smoke")) == []


def test_costs_and_speed_ups_are_there_for_finished_runs(lake: Lake) -> None:
    """Needs the runs of the test before."""
    summary = json.loads((lake.root / "comparisons" / "smoke" / "summary.json").read_bytes())
    costs = {cost["method"]: cost for cost in summary["costs"]}
    assert costs["random"]["selection_flops"] == 0 < costs["perplexity"]["selection_flops"]
    assert costs["random"]["training_flops"] == costs["perplexity"]["training_flops"] > 0
    assert costs["perplexity"]["peak_memory_bytes"] > 2**20
    assert [(one["method"], one["seed"]) for one in summary["speed_up"]["runs"]] == [("perplexity", 0), ("perplexity", 1)]
    manifest = read_manifest(lake.run("smoke-random-s0").round(1) / "pretrain", made_by="")
    tokens = (SETTINGS["target.warmup_steps"] + SETTINGS["pretraining.num_steps"]) * 8 * 64
    assert {one["baseline_tokens"] for one in summary["speed_up"]["runs"]} == {tokens}
    assert manifest.metrics["num_steps"] == SETTINGS["pretraining.num_steps"]
    for one in summary["speed_up"]["runs"]:
        if one["by_tokens"] is not None:
            assert one["by_flops"] < one["by_tokens"], "choosing is not free"


def _after_the_selector(lake: Lake) -> list[str]:
    run = lake.run("smoke-random-s0").round(1)
    return sorted(path.parent.name for path in Path(run.path).glob("*/manifest.json") if path.parent.name != "selector")
