"""`bliss compare`: losses over seeds, scores and selections held against each other, and what cannot be compared."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bliss_ops.lake import Lake
from bliss_ops.report.comparison import compare
from bliss_ops.report.comparison.losses import losses_by_method
from tests.lakes import make_corpus, make_run
from tests.report.test_report import Page


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return make_corpus(tmp_path / "lake")


def written(lake: Lake, *names: str, **options: Any) -> tuple[str, dict[str, Any], str]:
    """Visible text, summary and source of the page."""
    path = compare(lake, names, **options)
    html = path.read_text(encoding="utf-8")
    return Page(html).text, json.loads((path.parent / "summary.json").read_text()), html


def test_seeds_of_a_method_become_a_mean_with_a_standard_error(lake: Lake) -> None:
    """bliss 4.0, 4.2, 4.6 against random 4.5, 4.6, 4.7 with the same seeds: differences -0.5, -0.4, -0.1."""
    for seed, (ours, theirs) in enumerate(((4.0, 4.5), (4.2, 4.6), (4.6, 4.7))):
        make_run(lake, seed=seed, losses=(6.0, 4.8, ours))
        make_run(lake, "random", seed=seed, losses=(6.0, 4.9, theirs))
    names = [f"demo-{method}-s{seed}" for seed in range(3) for method in ("bliss", "random")]
    text, summary, html = written(lake, *names)
    best, baseline = summary["methods"]
    assert (best["method"], best["seeds"], best["num_pairs"]) == ("bliss", [0, 1, 2], 3)
    assert best["mean"] == pytest.approx(12.8 / 3)
    assert best["standard_error"] == pytest.approx(np.std([4.0, 4.2, 4.6], ddof=1) / 3**0.5)
    assert best["difference"] == pytest.approx(-1 / 3)
    assert best["difference_error"] == pytest.approx(np.std([-0.5, -0.4, -0.1], ddof=1) / 3**0.5)
    assert (baseline["method"], baseline["mean"], baseline["difference"]) == ("random", pytest.approx(4.6), None)
    assert summary["validation_losses"]["demo-bliss-s2"] == 4.6
    of_bliss = "bliss 0, 1, 2 4.2667 ± 0.1764 -0.3333 ± 0.1202 better than random -0.500 -0.400 -0.100"
    assert f"{of_bliss} random 0, 1, 2 4.6000 ± 0.0577 \N{EN DASH} the baseline" in text.replace("\N{MINUS SIGN}", "-")
    assert "bliss: 4.267 nats per token (± 0.176 over 3 seeds)" in text
    assert "0.333 below random" in text
    assert html.count('class="line first thin"') == html.count('class="line second thin"') == 3
    assert "bliss, 3 runs" in text


def test_a_single_run_has_no_error_and_unpaired_seeds_no_difference(lake: Lake) -> None:
    make_run(lake, seed=0)
    make_run(lake, "random", seed=1, losses=(6.0, 4.5, 4.2))
    text, summary, _ = written(lake, "demo-bliss-s0", "demo-random-s1")
    assert [(one["standard_error"], one["difference"], one["num_pairs"]) for one in summary["methods"]] == [(None, None, 0)] * 2
    assert "bliss 0 4.0000 \N{EN DASH} no run of random with the same seed random 1 4.2000 \N{EN DASH} the baseline" in text
    assert "One seed only: bliss, random." in text
    assert "There is no pair of a run and a run of random with the same seed" in text


def test_scores_selections_and_sources_are_held_against_each_other(lake: Lake) -> None:
    """The first keeps rows 18 to 29 of code, the second rows 24 to 29 of both, the third is the first upside down."""
    make_run(lake, score=lambda shard, rows: rows + 1000.0 * shard)
    make_run(lake, "random", score=lambda shard, rows: rows + 0.5 * shard)
    make_run(lake, "dsir", score=lambda shard, rows: -rows - 1000.0 * shard)
    _, _, html = written(lake, "demo-bliss-s0", "demo-random-s0", "demo-dsir-s0")
    kept, overlap, correlation = re.findall(r'<svg class="chart fixed".*?</svg>', html, re.DOTALL)
    assert re.findall(r"<title>(\w+, \d: [^<]+)<", kept) == [
        *("code, 1: 40%", "code, 2: 20%", "code, 3: 0%"),
        *("prose, 1: 0%", "prose, 2: 20%", "prose, 3: 40%"),
    ]
    shares = dict(re.findall(r"<title>(\d demo-\w+-s0, \d): ([^<]+)<", overlap))
    half, none = (
        ("1 demo-bliss-s0, 2", "2 demo-random-s0, 1"),
        ("1 demo-bliss-s0, 3", "2 demo-random-s0, 3", "3 demo-dsir-s0, 1", "3 demo-dsir-s0, 2"),
    )
    assert shares == dict.fromkeys(half, "33%") | dict.fromkeys(none, "0%"), "half of each: 6 of 18"
    found = dict(re.findall(r"<title>(\d demo-\w+-s0, \d): ([^<]+)<", correlation))
    assert found["1 demo-bliss-s0, 3"] == "\N{MINUS SIGN}1.00"
    ranks = [np.argsort(np.argsort([row + factor * shard for shard in (0, 1) for row in range(30)])) for factor in (1000.0, 0.5)]
    assert found["1 demo-bliss-s0, 2"] == found["2 demo-random-s0, 1"] == f"{np.corrcoef(*ranks)[0, 1]:+.2f}"


def test_settings_that_differ_are_listed_and_warned_of(lake: Lake) -> None:
    make_run(lake)
    other = make_run(lake, "random")
    text, *_ = written(lake, "demo-bliss-s0", "demo-random-s0")
    assert "Settings that differ None but method and seed." in text
    assert "More than the method differs" not in text
    config = json.loads((other.path / "config.json").read_text())
    config["pretraining"]["num_steps"] = 77
    config["bilevel"]["num_steps"] = 5
    (other.path / "config.json").write_text(json.dumps(config))
    text, *_ = written(lake, "demo-bliss-s0", "demo-random-s0")
    assert "bilevel.num_steps 3000 1 5 2 pretraining.num_steps 10000 1 77 2" in text
    assert "More than the method differs. pretraining.num_steps (10000 in run 1, 77 in run 2): see" in text


def test_an_unfinished_run_is_named_and_left_out(lake: Lake) -> None:
    make_run(lake)
    make_run(lake, "random", finished=False)
    text, summary, _ = written(lake, "demo-bliss-s0", "demo-random-s0")
    assert list(summary["validation_losses"]) == ["demo-bliss-s0"]
    assert "What each of them keeps" in text, "its scores and selection are there"
    (lake.run("demo-random-s0").round(1) / "selection" / "manifest.json").unlink()
    text, *_ = written(lake, "demo-bliss-s0", "demo-random-s0")
    assert "demo-random-s0 has no finished selection in round 1: it is left out below." in text
    assert "There are not two runs with scores of the same sequences" in text


def test_runs_of_other_sequences_are_not_held_against_each_other(lake: Lake, tmp_path: Path) -> None:
    make_run(lake)
    make_run(lake, "random")
    elsewhere = make_corpus(tmp_path / "elsewhere", num_sequences=33)
    run = make_run(elsewhere, "dsir")
    for before, after in ((elsewhere.corpus("tiny").path, lake.corpus("other").path), (run.path, lake.run(run.name).path)):
        shutil.copytree(str(before), str(after))
        config = json.loads((after / "config.json").read_text())
        config.get("ingest", config)["corpus"] = "other"
        (after / "config.json").write_text(json.dumps(config))
    text, _, html = written(lake, "demo-bliss-s0", "demo-random-s0", "demo-dsir-s0")
    assert "demo-dsir-s0 chose among other sequences than demo-bliss-s0, demo-random-s0: below" in text
    assert "3 demo-dsir-s0" in text, "its histogram is there"
    assert not re.search(r"<title>\d [\w-]+, 3:", html)
    assert "More than the method differs. ingest.corpus" in text


def test_what_cannot_be_compared_is_refused(lake: Lake) -> None:
    run = make_run(lake, finished=False)
    with pytest.raises(ValueError, match="name two runs or more"):
        compare(lake, ["demo-bliss-s0", "demo-bliss-s0"])
    with pytest.raises(ValueError, match="run 'demo-random-s0' is not in the lake"):
        compare(lake, ["demo-bliss-s0", "demo-random-s0"])
    make_run(lake, "random", finished=False)
    for name in (run.name, "demo-random-s0"):
        (lake.run(name).round(1) / "selection" / "manifest.json").unlink()
    with pytest.raises(ValueError, match="none of demo-bliss-s0, demo-random-s0 has finished scores or an evaluation in round 1"):
        compare(lake, ["demo-bliss-s0", "demo-random-s0"])


def test_the_round_is_the_last_that_all_have_evaluated(lake: Lake) -> None:
    make_run(lake, num_rounds=2)
    make_run(lake, "random", num_rounds=2)
    names = ("demo-bliss-s0", "demo-random-s0")
    assert written(lake, *names)[1]["round"] == 2
    (lake.run("demo-random-s0").round(2) / "evaluation" / "manifest.json").unlink()
    assert written(lake, *names)[1]["round"] == 1
    assert written(lake, *names, round_number=2)[1]["validation_losses"] == {"demo-bliss-s0": 4.0}


def test_the_page_is_whole_and_needs_nothing_else(lake: Lake) -> None:
    make_run(lake)
    make_run(lake, "random")
    page = Page(written(lake, "demo-bliss-s0", "demo-random-s0")[2])
    assert page.open == []
    assert page.counts["svg"] == 1 + 2 + 3, "curves, two histograms, three matrices"
    assert "script" not in page.counts
    assert {name for name, _ in page.attributes if name in ("src", "href", "srcset", "action", "onload")} == set()


def test_many_runs_get_a_short_directory(lake: Lake) -> None:
    names = [make_run(lake, seed=seed).name for seed in range(8)]
    path = compare(lake, names)
    assert re.fullmatch(r"demo-bliss-s0-and-7-others-[0-9a-f]{8}", path.parent.name)
    assert path.parent.parent == lake.root / "comparisons"
    assert losses_by_method({}, "random") == []


def test_the_command_writes_where_it_is_told(lake: Lake, tmp_path: Path) -> None:
    make_run(lake)
    make_run(lake, "random")
    arguments = ["compare", "demo-bliss-s0", "demo-random-s0", "--lake", str(lake.root)]
    command = [sys.executable, "-m", "bliss_ops.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{lake.root}/comparisons/demo-bliss-s0-vs-demo-random-s0/index.html\n"
    subprocess.run([*command, "--output", "here", "--round", "1"], cwd=tmp_path, check=True)
    assert (tmp_path / "here" / "index.html").exists()


def test_a_lake_on_an_object_store_can_be_compared(tmp_path: Path) -> None:
    lake = make_corpus(f"memory://{tmp_path.name}")
    make_run(lake)
    make_run(lake, "random")
    assert "demo-bliss-s0" in written(lake, "demo-bliss-s0", "demo-random-s0")[0]


def test_many_runs_are_drawn_method_by_method(lake: Lake) -> None:
    """Three methods with three seeds: matrices of three rows, one histogram each; seeds of a method on the diagonal."""
    methods = {"bliss": 1000.0, "random": 0.5, "dsir": -1000.0}
    names = [
        make_run(lake, method, seed=seed, score=lambda shard, rows, factor=factor: rows + factor * shard).name
        for method, factor in methods.items()
        for seed in range(3)
    ]
    text, summary, html = written(lake, *names)
    *_, kept, overlap, correlation = re.findall(r'<svg class="chart.*?</svg>', html, re.DOTALL)
    assert "the first run of each method; 6 more are not drawn" in text
    assert dict(re.findall(r"<title>(\w+, \w+): ([^<]+)<", overlap)) == {
        "bliss, bliss": "100%", "bliss, random": "33%", "bliss, dsir": "0%", "random, bliss": "33%", "random, random": "100%",
        "random, dsir": "33%", "dsir, bliss": "0%", "dsir, random": "33%", "dsir, dsir": "100%",
    }  # fmt: skip
    assert "code, random: 20%" in kept
    assert "bliss, bliss: +1.00" in correlation
    assert summary["overlap"]["methods"] == list(methods)
    assert summary["overlap"]["jaccard"][0] == [1.0, pytest.approx(1 / 3), 0.0]


def test_missing_runs_are_named_on_the_page_and_in_the_table(lake: Lake) -> None:
    make_run(lake)
    make_run(lake, "random")
    text, summary, _ = written(lake, "demo-bliss-s0", "demo-random-s0", missing={"demo-dsir-s0": "nothing is done"}, title="small")
    assert "small, round 1" in text
    assert "1 run is missing. demo-dsir-s0: nothing is done. The same command goes on" in text
    assert summary["missing"] == {"demo-dsir-s0": "nothing is done"}
    table = (lake.root / "comparisons" / "demo-bliss-s0-vs-demo-random-s0" / "table.md").read_text()
    rows = [line.split(" | ") for line in table.splitlines() if line.startswith("| ")]
    assert {len(row) for row in rows} == {10}
    assert rows[2][:5] == ["| bliss", "1", "4.0000", "+0.0000", "one seed: cannot be told from chance"]
    assert "Missing: demo-dsir-s0 (nothing is done)." in table


def test_runs_of_other_recipes_and_another_budget_are_warned_of(lake: Lake) -> None:
    make_run(lake)
    other = make_run(lake, "random")
    config = json.loads((other.path / "config.json").read_text())
    config |= {"recipe": "small", "num_rounds": 2, "selection": config["selection"] | {"token_budget": 640, "fraction": None}}
    (other.path / "config.json").write_text(json.dumps(config))
    text, *_ = written(lake, "demo-bliss-s0", "demo-random-s0")
    assert "The runs are of different recipes: demo, small." in text
    assert "num_rounds (1 in run 1, 2 in run 2); selection.fraction (0.2 in run 1, \N{EN DASH} in run 2); selection.token_budget" in text


def test_the_curve_is_by_tokens_and_the_speed_up_is_read_off_it(lake: Lake) -> None:
    """Points after 0, 10 and 20 steps of 512 x 16 tokens. Random ends at 4.2; bliss is there 0.6 of the way from 4.5 to 4.0."""
    make_run(lake, losses=(6.0, 4.5, 4.0))
    make_run(lake, "random", losses=(6.0, 4.9, 4.2))
    text, summary, html = written(lake, "demo-bliss-s0", "demo-random-s0")
    (one,) = summary["speed_up"]["runs"]
    assert (summary["speed_up"]["points"], one["target"], one["baseline_tokens"]) == ("stable", 4.2, 20 * 512 * 16)
    assert one["crossing"]["num_tokens"] == pytest.approx(16 * 512 * 16)
    assert one["by_tokens"] == pytest.approx(1.25)
    assert one["by_flops"] is None, "there is no tokenizer to count from"
    assert "1.25\N{MULTIPLICATION SIGN}" in text
    assert "training tokens, thousands" in html
    assert "No run has finished a selection and its pretraining with recorded costs" in text
    make_run(lake, seed=1, losses=(6.0, 4.9, 4.6))
    make_run(lake, "random", seed=1, losses=(6.0, 4.9, 4.2))
    text, *_ = written(lake, *(f"demo-{method}-s{seed}" for method in ("bliss", "random") for seed in (0, 1)))
    assert "not reached: 4.6000 is its lowest, 163,840 tokens its last point" in text
    assert "reached by 1 of 2 seeds" in text
