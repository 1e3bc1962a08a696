"""Selection on real mixed text, three seeds paired by initial weights: minutes long, and only where the test data is at hand."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
NEAR = "books,speeches,movie-reviews,openwebtext"
FAR = "pile-dm-mathematics,pile-ubuntu-irc,github,pile-uspto-backgrounds"


@pytest.mark.slow
@pytest.mark.timeout(5400)
@pytest.mark.skipif(not DATA.is_dir(), reason="the mixed corpora and LAMBADA are test data kept beside the repository, not in it")
def test_the_selected_subset_beats_a_random_one_on_every_seed(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "selection_quality.py"), "--recipe", "small", "--seeds", "0", "1", "2"]
    command += [
        "--source",
        str(DATA / "corpora" / "*.json.gz"),
        "--validation",
        str(DATA / "bench" / "lambada" / "lambada_test.part1.jsonl"),
    ]
    command += ["--corpus", "corpora", "--near", NEAR, "--far", FAR, "--lake", str(tmp_path / "lake")]
    output = subprocess.run(command, capture_output=True, text=True, check=False)
    assert output.returncode == 0, output.stderr[-3000:]
    result = json.loads(output.stdout.splitlines()[-1])
    print(json.dumps(result))  # noqa: T201 - shown by -rP
    difference = result["differences"]["bliss - random"]
    assert all(value < 0 for value in difference["values"])
    assert difference["mean"] <= -0.15
    assert all(row["auc"] > 0.7 for row in result["rows"] if row["method"] == "bliss")
