"""Several workers resume together: the first one looks what there is, whatever a store shows the others."""

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from upath import UPath

from bliss_ops import pipeline
from bliss_ops.launching import launch_here
from bliss_ops.models import language
from tests.training import jobs, late_listing


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two workers have made of checkpoints, measured blocks and a finished branch that only the first one sees."""
    root = tmp_path_factory.mktemp("late")
    late_listing.write_checkpoints(root / late_listing.OLDER)
    shutil.copytree(root / late_listing.OLDER, root / late_listing.NOTHING)
    late_listing.checkpoint(str(root), 4).save()
    alone = late_listing.probe(str(root / "alone"))
    UPath(root / "probed").mkdir()
    for block, rows in ((2, slice(64, 96)), (3, slice(96, 100))):
        (root / "probed" / f"probed-{block:05d}.f64").write_bytes(alone.influence_M[rows].tobytes())
    run = jobs.make_run(root / "lake", decay_at_steps=[2])
    pipeline.pretrain(run, 1)
    launch_here(partial(late_listing.resume_all, str(root)), 2)
    return root


@pytest.mark.parametrize("case", [late_listing.OLDER, late_listing.NOTHING])
def test_all_workers_go_on_from_the_first_ones_checkpoint(resumed: Path, tmp_path: Path, case: str) -> None:
    jobs.train(str(tmp_path), late_listing.LAST_STEP)
    expected, found = (language.read_tensors(UPath(at / "state.safetensors")) for at in (tmp_path, resumed / case))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-6, atol=1e-9)


def test_a_checkpoint_of_one_file_is_everybodys_too(resumed: Path) -> None:
    assert [(resumed / f"resumed-{rank}").read_text() for rank in (0, 1)] == ["True 4", "True 4"]


def test_every_missing_block_of_probes_is_measured_by_somebody(resumed: Path) -> None:
    alone, together = ((resumed / name / "influences.f64").read_bytes() for name in ("alone", "probed"))
    assert together == alone


def test_a_finished_branch_is_left_as_it_is_by_all(resumed: Path) -> None:
    assert not list((resumed / "lake").rglob("checkpoints/*.safetensors"))


def test_a_worker_that_read_another_step_ends_the_job(tmp_path: Path) -> None:
    late_listing.checkpoint(str(tmp_path), 4).save()
    with pytest.raises(ValueError, match=r"was of step 4 when the first worker read it and of step 2 for worker 1.*Stop one of the two"):
        launch_here(partial(late_listing.resume_overwritten, str(tmp_path)), 2)
