"""kill -9 in the middle of a stage's writing, then the same command again: the files of an undisturbed run, bit for bit.

The killed process dies inside its n-th fsync, so the moment is the same on every machine: after `begun.json` (the first), between a
checkpoint and its metrics, in the middle of the shards.
"""

import os
import shutil
import signal
import subprocess
import sys

import pytest

from bliss_ops.cli import main
from bliss_ops.lake import Lake
from bliss_ops.manifest import find_manifest
from bliss_ops.pipeline import CORPUS_STAGES

RUN = "smoke-bliss-s0"

DIE_IN_FSYNC = """
import os, signal, sys
left = int(sys.argv.pop(1))
fsync = os.fsync
def dying(descriptor):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    fsync(descriptor)
os.fsync = dying
from bliss_ops.cli import main
sys.exit(main(sys.argv[1:]))
"""


CORPUS = "corpora/smoke"
ROUND = f"runs/{RUN}/round-01"


@pytest.mark.parametrize(
    ("command", "artifact", "nth_fsync"),
    [
        ("discover", f"{CORPUS}/source", 6),
        ("extract", f"{CORPUS}/documents", 9),
        ("train-tokenizer", f"{CORPUS}/tokenizer-bpe512", 2),
        ("pack", f"{CORPUS}/sequences-bpe512-64", 8),
        ("prepare-validation", "validation/embedded-smoke-bpe512-64", 3),
        ("warm-up", f"runs/{RUN}/warmup", 4),
        ("fit", f"{ROUND}/selector", 5),
        ("score", f"{ROUND}/scores", 6),
        ("fidelity", f"{ROUND}/fidelity", 2),
        ("check-contamination", f"{ROUND}/contamination", 2),
        ("select", f"{ROUND}/selection", 3),
        ("materialize", f"{ROUND}/subset", 4),
        ("pretrain", f"{ROUND}/pretrain", 5),
        ("evaluate", f"{ROUND}/evaluation", 2),
    ],
)
def test_a_killed_stage_ends_like_an_undisturbed_one(copied: Lake, command: str, artifact: str, nth_fsync: int) -> None:
    directory = copied.root / artifact
    undisturbed = find_manifest(directory)
    assert undisturbed is not None
    shutil.rmtree(directory)
    subject = ["smoke"] if command in {stage.command for stage in CORPUS_STAGES} else [RUN, "--round", "1"]
    arguments = [command, *subject, "--lake", str(copied.root)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    killed = subprocess.run(
        [sys.executable, "-c", DIE_IN_FSYNC, str(nth_fsync), *arguments], env=environment, capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert find_manifest(directory) is None

    assert main(arguments) == 0
    resumed = find_manifest(directory)
    assert resumed is not None
    assert resumed.outputs == undisturbed.outputs
    assert resumed.fingerprint == undisturbed.fingerprint
