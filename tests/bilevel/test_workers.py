"""Several processes on one training job: the results of one process, whatever their number, and no trace of a killed one."""

import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from upath import UPath

from bliss_ops.launching import launch_here
from bliss_ops.models import language
from tests.bilevel import drivers, jobs

CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "adam_diagonal": {"ihvp": "adam_diagonal"},
    "uneven": {"batch_sequences": 7, "validation_batch_sequences": 5},
    "more workers than rows": {"batch_sequences": 2, "validation_batch_sequences": 3},
    "double_backward, micro-batches of 1": {"alignment": "double_backward", "micro_batch_sequences": 1, "ihvp": "adam_diagonal"},
    "forward_mode, micro-batches of 3": {"alignment": "forward_mode", "micro_batch_sequences": 3, "batch_sequences": 7, "ihvp": "identity"},
    "warm_start, micro-batches of 2": {"ihvp": "warm_start", "micro_batch_sequences": 2},
    "conjugate_gradient": {"ihvp": "conjugate_gradient", "num_solver_steps": 2},
    "neumann": {"ihvp": "neumann", "num_solver_steps": 2},
    "released": {"ihvp": "released"},
    "KL term": {"kl_weight": 0.5, "l2_weight": 1e-3, "batch_sequences": 7},
    "KL term, double_backward": {"kl_weight": 0.5, "l2_weight": 1e-3, "alignment": "double_backward", "ihvp": "warm_start"},
    "inner steps": {"num_inner_steps": 2, "outer_batch": "trained", "stale_denominator": True},
}
WITH_FOUR = ("uneven", "more workers than rows", "warm_start, micro-batches of 2", "KL term")  # they take turns on two cores
ONE_STEP: dict[str, dict[str, Any]] = {  # in float32
    f"one step, {name}": {"num_steps": 1, **settings}
    for name, settings in {
        "exact": {"alignment": "double_backward", "ihvp": "conjugate_gradient", "num_solver_steps": 2},
        "exact, uneven": {"alignment": "forward_mode", "ihvp": "adam_diagonal", "batch_sequences": 7, "micro_batch_sequences": 3},
        "exact, KL term": {"alignment": "double_backward", "ihvp": "adam_diagonal", "kl_weight": 0.5, "l2_weight": 1e-3},
        "lookahead": {},
        "lookahead, uneven": {"batch_sequences": 7, "validation_batch_sequences": 5},
        "central_difference": {"alignment": "central_difference", "ihvp": "adam_diagonal"},
    }.items()
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Number of workers -> directories of the cases, made when first asked for."""

    @cache
    def directory(count: int) -> Path:
        root = tmp_path_factory.mktemp(f"workers-{count}")
        jobs.write_candidates(root)
        cases = CASES | ONE_STEP if count < 4 else {name: CASES[name] for name in WITH_FOUR}
        launch_here(partial(jobs.train_all, str(root), cases, double=tuple(CASES)), count)
        return root

    return directory


def difference(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], beginning: str) -> float:
    """|found - expected| / |expected| over all tensors of that kind together."""
    names = [name for name in expected if name.startswith(beginning)]
    assert names, beginning
    gap, size = (
        torch.stack([tensor.double().norm() for tensor in tensors]).norm()
        for tensors in ([found[name] - expected[name] for name in names], [expected[name] for name in names])
    )
    return float(gap / size)


def state(directory: Path) -> dict[str, torch.Tensor]:
    return language.read_tensors(UPath(directory) / "state.safetensors")


def metrics(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    ("case", "count"), [(name, 2) for name in CASES] + [pytest.param(name, 4, marks=pytest.mark.slow) for name in WITH_FOUR]
)
def test_results_do_not_depend_on_the_number_of_workers(trained: Callable[[int], Path], case: str, count: int) -> None:
    """In float64, after two steps, nothing but the order of sums is different."""
    alone, together = trained(1) / case, trained(count) / case
    for kind in ("score.model.", "proxy.model.", "score.exp_avg.", "proxy.exp_avg.", "z."):
        assert difference(state(together), state(alone), kind) < 1e-9, kind
    for one, other in zip(metrics(alone), metrics(together), strict=True):
        assert other == pytest.approx(one, rel=1e-4, abs=1e-9)  # of six digits; shift_error is a difference of rounding errors


@pytest.mark.parametrize("case", ONE_STEP)
def test_one_step_in_float32_agrees_to_rounding(trained: Callable[[int], Path], case: str) -> None:
    """The first moments after one step are the hypergradient and G.

    Exact routes agree to 1e-6. Lookahead divides the validation gradient by its usual size in every coordinate, the small ones with their
    rounding too. Central differences divide the rounding of two losses by their shift of 1e-2, which leaves 1e-4 of the hypergradient, less
    than the error of the difference itself; G is not divided.
    """
    alone, together = state(trained(1) / case), state(trained(2) / case)
    assert difference(together, alone, "proxy.exp_avg.") < 1e-6
    tolerance = {"exact": 1e-6, "lookahead": 3e-5, "central_difference": 1e-4}
    assert difference(together, alone, "score.exp_avg.") < next(value for name, value in tolerance.items() if name in case)


def test_a_workers_value_error_comes_out_as_it_is() -> None:
    message = "fit demo: at step 3 validation_loss not finite; lower bilevel.score_learning_rate"
    with pytest.raises(ValueError, match="not finite") as raised:
        launch_here(partial(jobs.refuse, 1, message), 2)
    assert str(raised.value) == message


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two workers make of it when nobody kills them; the window is beside it."""
    root = tmp_path_factory.mktemp("undisturbed")
    jobs.write_candidates(root)
    launch_here(partial(jobs.train, str(root / "job"), {"num_steps": 6}), 2)
    return root / "job"


@pytest.mark.slow
@pytest.mark.parametrize("dying_rank", [0, 1])
def test_a_killed_worker_ends_the_job_and_the_same_command_ends_it_like_an_undisturbed_one(
    tmp_path: Path, undisturbed: Path, dying_rank: int
) -> None:
    jobs.write_candidates(tmp_path)
    job = partial(jobs.train, str(tmp_path / "job"), {"num_steps": 6}, die_at=5, dying_rank=dying_rank, only_once=str(tmp_path / "killed"))
    with pytest.raises(RuntimeError, match="goes on from the last checkpoint"):
        launch_here(job, 2)
    assert int(state(tmp_path / "job")["score.num_steps"]) == 4
    launch_here(job, 2)
    drivers.assert_same_files(tmp_path / "job", undisturbed)


@pytest.mark.slow
def test_a_killed_driver_takes_its_workers_along_and_nothing_shows(tmp_path: Path, undisturbed: Path) -> None:
    jobs.write_candidates(tmp_path)
    drivers.kill_driver(tmp_path / "job", launch_here)
    assert int(state(tmp_path / "job")["score.num_steps"]) == 4
    launch_here(partial(jobs.train, str(tmp_path / "job"), drivers.SETTINGS), 2)
    drivers.assert_same_files(tmp_path / "job", undisturbed)
