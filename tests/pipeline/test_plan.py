"""Plan against actual: on a finished run, what was planned from settings and corpus is what the stages wrote down."""

import json
from pathlib import Path

import pytest

from bliss_ops import costs, planning
from bliss_ops.cli import main
from bliss_ops.lake import Lake
from bliss_ops.manifest import find_manifest
from bliss_ops.speeds import Speeds, measured_speeds

FILES = 10 * 3000  # bytes: what Parquet files of a few kilobytes have besides their rows, ten of them in a round


@pytest.mark.parametrize("method", ["random", "bliss"])
def test_tokens_sequences_and_flops_are_those_recorded(finished: Lake, method: str) -> None:
    run = finished.run(f"smoke-{method}-s0")
    plan, took = planning.against_actual(run, Speeds())
    names = ["warm_up target", "fit", "score", "fidelity", "select", "materialize", "pretrain", "evaluate"]
    assert {stage.stage for stage in plan.stages} == {*names, *(["warm_up proxy"] if method == "bliss" else [])}
    for planned, done in zip(
        plan.stages, sorted(took.stages, key=lambda stage: [one.stage for one in plan.stages].index(stage.stage)), strict=True
    ):
        assert planned.num_tokens == done.num_tokens, planned.stage
        assert planned.num_sequences == done.num_sequences, planned.stage
        assert planned.flops == pytest.approx(done.flops, rel=1e-9), planned.stage
        assert done.device_seconds is not None
        if planned.num_bytes is not None:
            assert done.num_bytes is not None
            assert abs(done.num_bytes - planned.num_bytes) < 0.02 * planned.num_bytes + 2 * FILES, planned.stage
    assert plan.total.flops == pytest.approx(took.total.flops, rel=1e-9)
    assert (plan.selection_share == 0) == (method == "random")


def test_fidelity_is_planned_where_a_shared_warm_up_has_a_proxy_to_probe(finished: Lake) -> None:
    run = finished.run("smoke-random-s0")
    sizes, untrained = costs.sizes_of(run, 1), run.config.target.model_copy(update={"warmup_steps": 0})
    alone = run.config.model_copy(update={"target": untrained})
    shared = alone.model_copy(update={"warmup_of": "smoke-bliss-s0"})
    with_proxy = alone.model_copy(update={"method": "bliss"})
    assert costs.round_work(alone, sizes, 1)["fidelity"].flops == 0
    assert costs.round_work(shared, sizes, 1)["fidelity"] == costs.round_work(with_proxy, sizes, 1)["fidelity"]
    assert costs.round_work(shared, sizes, 1)["fidelity"].flops > 0


def test_what_is_recorded_is_what_the_files_hold(finished: Lake) -> None:
    """Not the plan again: the rows of the loop's own file, and of the scores."""
    run = finished.run("smoke-bliss-s0")
    recorded, config = costs.recorded_work(run, 1), run.config
    per_step = config.pretraining.batch_sequences * config.ingest.sequence_length
    rows = [json.loads(line) for line in (run.round(1) / "pretrain" / "metrics.jsonl").read_text().splitlines()]
    assert recorded["pretrain"].num_tokens == per_step * sum("loss" in row for row in rows) == per_step * 8  # 6 steps and 2 of the branch
    assert [row["step"] for row in rows if "validation_loss" in row] == [2, 4, 6, 8]
    assert costs.num_validation_points(config) == 4
    model = 165_632 - 512 * 64  # parameters without the embedding, 512 x 64, that is looked up and not multiplied
    per_token = recorded["pretrain"].flops / recorded["pretrain"].num_tokens
    held_out = 4 * costs.sizes_of(run, 1).num_holdout_tokens / recorded["pretrain"].num_tokens
    assert per_token / (3 + held_out) == pytest.approx(2 * model, rel=0.15)  # the usual 6N: attention is not in it, biases and norms are


@pytest.mark.parametrize(
    ("every", "branches", "expected"),
    [(2, (), [2, 4, 6, 8]), (4, (), [4, 6, 8]), (5, (3,), [5, 6, 5, 8]), (100, (1, 4), [6, 3, 6, 8])],
)
def test_validation_points_are_those_of_the_loop(finished: Lake, every: int, branches: tuple[int, ...], expected: list[int]) -> None:
    """`expected` by the steps: the main branch of 6 steps, every decay branch of 2, the last one."""
    config = finished.run("smoke-bliss-s0").config
    settings = config.pretraining.model_copy(update={"evaluate_every_steps": every, "decay_at_steps": branches})
    assert costs.num_validation_points(config.model_copy(update={"pretraining": settings})) == len(expected)


def test_selection_and_training_are_added_up_from_the_manifests(finished: Lake) -> None:
    run = finished.run("smoke-bliss-s0")
    stages = {name: costs.stage_manifest(run, 1, name) for name in ("fit", "score", "select", "pretrain")}
    taken = {name: manifest.cost for name, manifest in stages.items() if manifest and manifest.cost}
    selection, training = costs.selection_cost(run, 1), costs.training_cost(run, 1)
    warmup = find_manifest(run.warmup)
    assert warmup is not None
    assert warmup.cost is not None
    assert list(selection.by_stage) == ["fit", "score", "warm_up proxy", "select"]
    assert selection.by_stage["warm_up proxy"].seconds == pytest.approx(warmup.cost.seconds)  # the target's has no steps
    assert selection.seconds == pytest.approx(warmup.cost.seconds + sum(taken[name].seconds for name in ("fit", "score", "select")))
    assert selection.peak_memory_bytes == max(
        warmup.cost.peak_memory_bytes, *(taken[name].peak_memory_bytes for name in ("fit", "score", "select"))
    )
    assert training.seconds == taken["pretrain"].seconds
    assert "warm_up proxy" not in costs.selection_cost(run, 2).by_stage  # once per run
    assert costs.selection_cost(finished.run("smoke-random-s0"), 1).flops == 0


def test_a_manifest_without_a_cost_makes_the_sum_unknown_and_no_error(copied: Lake) -> None:
    run = copied.run("smoke-bliss-s0")
    path = Path(str(run.round(1) / "selector" / "manifest.json"))
    values = json.loads(path.read_text())
    del values["cost"]
    path.write_text(json.dumps(values))
    cost = costs.selection_cost(run, 1)
    assert cost.seconds is None
    assert cost.flops > 0
    assert planning.actual(run).total.device_seconds is not None


def test_the_report_shows_what_the_round_cost(finished: Lake) -> None:
    html = (finished.run("smoke-bliss-s0").report / "round-01.html").read_text()
    section = html[html.index("What it cost") : html.index("How to make it again")]
    assert "warm up proxy" in section
    assert "Choosing the data took" in section
    assert "Not counted" not in section


def test_bliss_plan_of_a_run_prints_both(finished: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--run", "smoke-bliss-s0", "--lake", str(finished.root)]) == 0
    assert "plan against actual" in capsys.readouterr().out
    assert main(["plan", "--run", "smoke-bliss-s0", "--format", "json", "--lake", str(finished.root)]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["plan"]["total"]["flops"] == pytest.approx(values["actual"]["total"]["flops"])
    assert "measured on" in values["rate"]


def test_a_recipe_is_planned_exactly_from_its_corpus(finished: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "smoke", "--format", "json", "--lake", str(finished.root)]) == 0
    values = json.loads(capsys.readouterr().out)
    took = planning.actual(finished.run("smoke-bliss-s0"))
    assert values["assumptions"] == []
    assert values["total"]["flops"] == pytest.approx(took.total.flops)
    # rates measured on this very run give its own time back
    seconds = {stage["stage"]: stage["device_seconds"] for stage in values["stages"]}
    for name in ("fit", "score"):
        assert seconds[name] == pytest.approx(next(stage.device_seconds for stage in took.stages if stage.stage == name), rel=1e-6)


def test_rates_of_another_device_are_not_taken(finished: Lake) -> None:
    assert measured_speeds(finished, "H200").measured == []
    assert "on H200" in measured_speeds(finished, "H200").described
    assert {one.device for one in measured_speeds(finished, "cpu").measured} == {one.device for one in measured_speeds(finished).measured}
    without = {one.method for one in measured_speeds(finished, without="smoke-bliss-s0").measured}
    assert "bliss" not in without
    assert "random" in without
