"""`bliss gc`: what goes, what stays, and that everything afterwards works or says what to run."""

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from bliss_ops.cli import main
from bliss_ops.collected import find_collected, write_collected
from bliss_ops.lake import Lake
from bliss_ops.manifest import find_manifest
from bliss_ops.operations import collecting, retention
from bliss_ops.operations.retention import Policy, plan
from bliss_ops.training.state import PROXY, TARGET
from tests.operations.lakes import RUN, contents, digests

NOW = Policy(older_than_seconds=0)
BLISS = "smoke-bliss-s0"


def gc(lake: Lake, *arguments: str) -> int:
    return main(
        ["gc", "--lake", str(lake.root), "--older-than", "0s", "--state", str(Path(lake.root.path).parent / "no-stack"), *arguments]
    )


def test_names_of_files_are_those_of_training() -> None:
    assert (retention.STATE, retention.PROXY) == (TARGET, PROXY)


def test_a_dry_run_lists_what_goes_and_touches_nothing(lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(lake)
    assert gc(lake, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert contents(lake) == before
    assert not answer["deleted"]
    found = {(item["kind"], item["address"]) for item in answer["items"]}
    assert found == {
        *(("subsets", f"runs/{run}/round-01/subset") for run in (RUN, BLISS)),
        *(("states", f"runs/{run}/round-01/pretrain") for run in (RUN, BLISS)),
        *(("checkpoints", f"runs/{BLISS}/round-0{number}/selector") for number in (1, 2)),
    }
    sizes = {address: (lake.root / address).stat().st_size for item in answer["items"] for address in item["files"]}
    assert answer["num_bytes"] == sum(sizes.values()) > 0
    assert all(item["reason"] for item in answer["items"])
    assert (
        "round 2 is one of the newest 1 of 2" in {kept["address"]: kept["reason"] for kept in answer["kept"]}[f"runs/{RUN}/round-02/subset"]
    )


def test_what_is_listed_goes_and_everything_else_stays(lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    before, found = contents(lake), plan(lake, NOW)
    assert gc(lake, "--delete") == 0
    after = contents(lake)
    listed = {address for item in found.items for address in item.files}
    assert set(before) - set(after) == listed
    assert all(after[address] == before[address] for address in after.keys() & before.keys())
    journals = [address for address in after if address.startswith("maintenance/")]
    journal = json.loads((Path(lake.root.path) / journals[0]).read_text())
    assert (len(journals), journal["state"], journal["num_files"], journal["problems"]) == (1, "finished", len(listed), [])
    record = find_collected(lake.run(RUN).round(1) / "pretrain")
    assert record is not None
    assert [output.path for output in record.files] == [TARGET]
    capsys.readouterr()
    assert gc(lake, "--delete", "--json") == 0
    assert json.loads(capsys.readouterr().out)["items"] == []


def test_every_later_command_works_on_what_is_left(lake: Lake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gc(lake, "--delete") == 0
    before = {run: digests(lake, run) for run in (RUN, BLISS)}
    times = [path.stat().st_mtime_ns for path in sorted((tmp_path / "lake/runs").rglob("round-*/*/manifest.json"))]
    root = ["--lake", str(lake.root)]
    assert main(["run", "smoke", *root]) == 0  # nothing is made again
    assert [path.stat().st_mtime_ns for path in sorted((tmp_path / "lake/runs").rglob("round-*/*/manifest.json"))] == times
    evaluation = lake.run(RUN).round(1) / "evaluation"
    evaluation.fs.rm(evaluation.path, recursive=True)
    assert main(["evaluate", RUN, "--round", "1", *root]) == 0  # needs the model and not the state
    (tmp_path / "lake/runs" / BLISS / "report/index.html").unlink()
    assert main(["report", BLISS, "--round", "2", *root]) == 0
    assert main(["export", RUN, "--format", "nanogpt", "--output", str(tmp_path / "tokens"), *root]) == 0
    assert main(["plan", "--run", RUN, *root]) == 0
    assert main(["store", "rebuild", *root]) == 0
    assert main(["store", "check", *root]) == 0
    capsys.readouterr()
    now = {run: digests(lake, run) for run in (RUN, BLISS)}
    assert all(now[run][name] == value for run in before for name, value in before[run].items() if name != "report")  # it tells the time


def test_what_comes_back_with_other_bytes_is_refused_and_leaves_the_artifact_as_it_was(lake: Lake) -> None:
    directory = lake.run(RUN).round(1) / "pretrain"
    path = Path(directory.path) / "manifest.json"
    path.write_text(path.read_text().replace(find_manifest(directory).outputs[-1].sha256, "0" * 64))  # type: ignore[union-attr]
    assert gc(lake, "--delete") == 0
    before = {address: sha256 for address, sha256 in contents(lake, lake.relative(directory)).items() if "tensorboard" not in address}
    with pytest.raises(ValueError, match="safetensors came out with other bytes than before"):
        main(["remake", lake.relative(directory), "--lake", str(lake.root), "--traceback"])
    assert {
        address: sha256 for address, sha256 in contents(lake, lake.relative(directory)).items() if "tensorboard" not in address
    } == before


def test_a_round_that_is_not_finished_keeps_what_it_goes_on_from(lake: Lake) -> None:
    directory = lake.run(RUN).round(2) / "pretrain"
    (directory / "manifest.json").unlink()
    found = plan(lake, Policy(runs=(RUN,), keep_rounds=0, older_than_seconds=0))
    assert [item.address for item in found.items] == [f"runs/{RUN}/round-01/subset"]
    assert dict(found.kept) == {
        f"runs/{RUN}/round-01/pretrain": "round 2 goes on from it",
        f"runs/{RUN}/warmup": "rounds to come start from it",
    }


def test_a_finished_run_by_name_gives_up_and_gets_back_all_that_can_be_made_again(lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="name the finished runs, with --run"):
        main(["gc", "--keep-rounds", "0", "--traceback", "--lake", str(lake.root)])
    before, files, others = digests(lake), contents(lake, f"runs/{RUN}"), contents(lake, f"runs/{BLISS}")
    assert gc(lake, "--delete", "--run", RUN, "--keep-rounds", "0") == 0
    assert contents(lake, f"runs/{BLISS}") == others
    gone = {address for address in files if address not in contents(lake, f"runs/{RUN}")}
    assert {address.split("/", 2)[2] for address in gone if not address.endswith(".parquet")} == {
        "warmup/state.safetensors", "round-01/pretrain/state.safetensors", "round-02/pretrain/state.safetensors",
    }  # fmt: skip
    later = lake.run(RUN).round(2) / "pretrain"  # somebody deletes it: the stage needs what is gone
    later.fs.rm(later.path, recursive=True)
    capsys.readouterr()
    assert main(["pretrain", RUN, "--round", "2", "--lake", str(lake.root)]) == 1
    assert f"run `bliss remake runs/{RUN}/round-01/pretrain`" in capsys.readouterr().err
    assert not (later / "begun.json").exists()
    for address in ("round-01/pretrain", "round-02/subset"):
        assert main(["remake", f"runs/{RUN}/{address}", "--lake", str(lake.root)]) == 0
    made = [line.split()[0].split("/", 2)[2] for line in capsys.readouterr().out.splitlines()]
    assert made == ["round-01/subset", "warmup", "round-01/pretrain", "round-02/subset"]
    assert main(["pretrain", RUN, "--round", "2", "--lake", str(lake.root)]) == 0
    assert digests(lake) == before
    binary = {address: sha256 for address, sha256 in files.items() if address.endswith((".parquet", ".safetensors"))}
    assert {address: sha256 for address, sha256 in contents(lake, f"runs/{RUN}").items() if address in binary} == binary
    assert find_collected(lake.run(RUN).round(1) / "pretrain") is None


def test_a_warm_up_stays_while_an_unfinished_run_starts_from_it(lake: Lake) -> None:
    config = Path(lake.run(BLISS).path.path) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"warmup_of": RUN}))
    directory = lake.run(BLISS).round(2) / "evaluation"
    directory.fs.rm(directory.path, recursive=True)
    found = plan(lake, Policy(runs=(RUN,), keep_rounds=0, older_than_seconds=0))
    assert dict(found.kept)[f"runs/{RUN}/warmup"] == f"{BLISS} starts from it and is not finished"


def test_what_is_young_stays(lake: Lake) -> None:
    found = plan(lake, Policy(older_than_seconds=3600))
    assert not found.items
    assert dict(found.kept)[f"runs/{RUN}/round-01/subset"] == "it is younger than 1 hours"
    later = plan(lake, Policy(older_than_seconds=3600), now=time.time() + 7200)
    assert len(later.items) == len(plan(lake, NOW).items)


def test_what_is_being_made_again_stays(lake: Lake) -> None:
    assert gc(lake, "--delete") == 0
    directory = lake.run(RUN).round(1) / "subset"
    record = find_collected(directory)
    assert record is not None
    write_collected(directory, record.model_copy(update={"wanted_since": "2026-01-02T03:04:05+00:00"}))
    assert main(["materialize", RUN, "--lake", str(lake.root)]) == 0  # makes it, because it is wanted
    assert find_collected(directory) is None
    write_collected(directory, record.model_copy(update={"wanted_since": "2026-01-02T03:04:05+00:00"}))
    found = plan(lake, NOW)
    assert "being made again" in dict(found.kept)[f"runs/{RUN}/round-01/subset"]


def test_what_could_not_be_made_again_stays(lake: Lake) -> None:
    path = Path((lake.run(RUN).round(1) / "selection" / "manifest.json").path)
    manifest = json.loads(path.read_text())
    manifest["outputs"][0]["sha256"] = "0" * 64
    path.write_text(json.dumps(manifest))
    assert "other content now" in dict(plan(lake, NOW).kept)[f"runs/{RUN}/round-01/subset"]


def test_a_clean_up_that_was_killed_goes_on(lake: Lake) -> None:
    found = plan(lake, NOW)
    process = multiprocessing.get_context("fork").Process(target=_die_after, args=(lake, found.items, 4))
    process.start()
    process.join()
    assert process.exitcode == 9
    listed = [address for item in found.items for address in item.files]
    left = [address for address in listed if (lake.root / address).exists()]
    assert len(listed) - len(left) == 4
    assert main(["run", "smoke", "--lake", str(lake.root)]) == 0  # what is half gone counts as gone
    assert gc(lake, "--delete") == 0
    assert not any((lake.root / address).exists() for address in listed)
    assert main(["remake", f"runs/{RUN}/round-01/subset", "--lake", str(lake.root)]) == 0


def _die_after(lake: Lake, items: list[retention.Item], num_files: int) -> None:
    deleted = []

    def remove(root: object, address: str) -> int:
        if len(deleted) == num_files:
            os._exit(9)
        deleted.append(address)
        (lake.root / address).unlink()
        return 0

    collecting.remove = remove  # type: ignore[assignment]
    collecting.collect(lake, items)


def test_an_artifact_begun_anew_since_it_was_planned_is_left_alone(lake: Lake) -> None:
    items = [item for item in plan(lake, NOW).items if item.address == f"runs/{RUN}/round-01/subset"]
    (lake.run(RUN).round(1) / "subset" / "manifest.json").unlink()
    outcome = collecting.collect(lake, items)
    assert (outcome.num_files, len(outcome.problems)) == (0, 1)
    assert all((lake.root / address).exists() for item in items for address in item.files)


def test_nothing_outside_the_lake_is_touched(lake: Lake, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    subset = Path((lake.run(RUN).round(1) / "subset").path)
    for file in subset.glob("*.parquet"):
        file.rename(outside / file.name)
        file.symlink_to(outside / file.name)
    state = Path((lake.run(RUN).round(1) / "pretrain").path)
    state.rename(outside / "pretrain")
    state.symlink_to(outside / "pretrain")
    manifest = json.loads((lake.run(BLISS).round(1) / "subset" / "manifest.json").read_text())
    (outside / "precious").write_bytes(b"12")
    manifest["outputs"].append({"path": "../../../../../outside/precious", "bytes": 2, "sha256": "0"})
    Path((lake.run(BLISS).round(1) / "subset" / "manifest.json").path).write_text(json.dumps(manifest))
    before = sorted(path.name for path in outside.rglob("*"))
    assert gc(lake, "--delete") == 0
    assert sorted(path.name for path in outside.rglob("*")) == before


@pytest.mark.parametrize("address", ["../x", "/etc/passwd", "a/../../x", "", "a//b", "a/\x00"])
def test_an_address_that_leads_out_is_refused(lake: Lake, address: str) -> None:
    from bliss_ops.operations.files import remove

    with pytest.raises(ValueError, match="is not an address below a directory"):
        remove(lake.root, address)


def test_a_directory_that_became_a_link_meanwhile_is_not_followed(lake: Lake, tmp_path: Path) -> None:
    items = [item for item in plan(lake, NOW).items if item.address == f"runs/{RUN}/round-01/pretrain"]
    pretrain = Path((lake.run(RUN).round(1) / "pretrain").path)
    pretrain.rename(tmp_path / "elsewhere")
    pretrain.symlink_to(tmp_path / "elsewhere")
    outcome = collecting.collect(lake, items)
    assert "symbolic link" in outcome.problems[0]
    assert (tmp_path / "elsewhere" / TARGET).exists()


def test_files_of_killed_writes_go_when_they_are_old(lake: Lake) -> None:
    old, young = (Path(lake.root.path) / "runs" / name for name in (".state.x1.tmp", ".state.x2.tmp"))
    for file in (old, young):
        file.write_bytes(b"half")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    assert gc(lake, "--delete", "--only", "temporary") == 0
    assert (old.exists(), young.exists()) == (False, True)


def test_logs_go_by_age(lake: Lake, tmp_path: Path) -> None:
    state = tmp_path / "stack"
    old, young = (state / "airflow/logs" / f"dag_id=d/run_id={name}/task_id=t/attempt=1.log" for name in ("old", "young"))
    for file in (old, young):
        file.parent.mkdir(parents=True)
        file.write_text("line\n")
    os.utime(old, (time.time() - 40 * 86400, time.time() - 40 * 86400))
    policy = Policy(kinds=("logs",), state_dir=state)
    found = plan(lake, policy)
    assert [(item.address, item.files) for item in found.items] == [("airflow/logs/dag_id=d", (str(old.relative_to(state)),))]
    collecting.collect(lake, found.items)
    assert (old.parent.exists(), young.exists(), young.parents[2].exists()) == (False, True, True)


def test_an_unknown_kind_is_refused(lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    assert gc(lake, "--only", "models") == 1
    assert "no such kind; there are checkpoints, subsets" in capsys.readouterr().err
