"""What a user can get wrong on the command line and in recipes: one clear paragraph, exit code 1 or 2, nothing written."""

import json
from pathlib import Path

import pytest

from bliss_ops.cli import main
from bliss_ops.lake import Lake


def fails(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """Run a command that must fail; returns what it said."""
    code: object
    try:
        code = main(argv)
    except SystemExit as stopped:  # argparse refuses arguments with 2
        code = stopped.code
    assert code in (1, 2)
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return message


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("bilevel.num_stepz=3", "bilevel.num_stepz: there is no such setting"),
        ("bilevel.num_steps=0", "greater than or equal to 1, got 0"),
        ("bilevel.num_steps=many", "valid integer"),
        ("selection.fraction=1.5", "less than or equal to 1, got 1.5"),
        ("selection.token_budget=5", "exactly one of selection.fraction and selection.token_budget"),
        ("bilevel.ihvp=magic", "Input should be 'lookahead', 'adam_diagonal', 'identity'"),
        ("ingest.corpus=../../etc", "is not a valid name"),
        ("ingest=5", "ingest"),
        ("bilevel.num_steps", "write SECTION.FIELD=VALUE"),
    ],
)
def test_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, expected: str) -> None:
    assert expected in fails(capsys, "configure", "smoke", "--lake", str(tmp_path / "lake"), "--set", override)
    assert not (tmp_path / "lake").exists()


@pytest.mark.parametrize("name", ["../evil", "a/b", "", ".hidden", "x" * 81, "a..b", "run name", "run;rm"])
def test_run_names(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    lake = str(tmp_path / "lake")
    assert "is not a valid name" in fails(capsys, "fit", name, "--lake", lake)
    if name:
        assert "is not a valid name" in fails(capsys, "configure", "smoke", "--run-name", name, "--lake", lake)
    assert not (tmp_path / "lake").exists()


def test_unknown_things_are_named_with_the_known_ones(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lake = str(tmp_path / "lake")
    assert "known recipes are demo" in fails(capsys, "configure", "nonsense", "--lake", lake)
    assert "known methods are bliss, bliss-paper" in fails(capsys, "configure", "smoke", "--method", "oracle", "--lake", lake)
    assert "run `bliss configure` first" in fails(capsys, "fit", "nobody", "--lake", lake)
    assert "run `bliss ingest` first" in fails(capsys, "discover", "nothing", "--lake", lake)
    assert "0 to N-1" in fails(capsys, "score", "r", "--group", "3/3", "--lake", lake)
    assert "rounds count from 1" in fails(capsys, "fit", "r", "--round", "0", "--lake", lake)


def test_a_recipe_that_is_not_toml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[bilevel\nnum_steps = ")
    assert "is not valid TOML" in fails(capsys, "configure", str(path), "--lake", str(tmp_path / "lake"))


def test_a_source_that_matches_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nothing-*.json.gz" in fails(
        capsys, "ingest", str(tmp_path / "nothing-*.json.gz"), "--recipe", "smoke", "--lake", str(tmp_path / "lake")
    )


def test_local_paths_are_stored_so_that_other_processes_find_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ["--set", "ingest.source=data/*.json.gz", "--set", "ingest.validation.source=s3://bucket/v.jsonl"]
    settings += ["--set", 'ingest.validation.others=[{"source": "more.jsonl", "weight": 0.5}, {"source": "hf://datasets/x/y/z.jsonl"}]']
    assert main(["configure-corpus", "smoke", *settings, "--lake", "lake"]) == 0
    config = Lake.open(tmp_path / "lake").corpus("smoke").config
    assert config.source == str(tmp_path / "data" / "*.json.gz")
    assert config.validation.source == "s3://bucket/v.jsonl"
    assert [(other.source, other.weight) for other in config.validation.others] == [
        (str(tmp_path / "more.jsonl"), 0.5),
        ("hf://datasets/x/y/z.jsonl", 1.0),
    ]


def test_no_validation_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = tmp_path / "text.jsonl"
    shard.write_text("".join(json.dumps({"text": "some ordinary words of prose " * 20}) + "\n" for _ in range(50)))
    message = fails(
        capsys, "run", "smoke", "--source", str(shard), "--set", "ingest.validation.source=null", "--lake", str(tmp_path / "lake")
    )
    assert "validation" in message


def test_a_tokenizer_with_more_tokens_than_the_model(copied: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = copied.run("smoke-bliss-s0").corpus.tokenizer / "manifest.json"
    values = json.loads(manifest.read_text())
    values["metrics"]["vocab_size"] = 60_000
    manifest.write_text(json.dumps(values))
    settings = ["--set", "target.shape=pythia-14m", "--run-name", "big"]
    assert main(["configure", "smoke", "--method", "random", *settings, "--lake", str(copied.root)]) == 0
    assert "60,000 tokens but pythia-14m has a vocabulary of 50,304" in fails(capsys, "warm-up", "big", "--lake", str(copied.root))


def test_stages_out_of_order_name_the_command_that_is_missing(copied: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configure", "smoke", "--run-name", "fresh", "--lake", str(copied.root)]) == 0
    for command, needed in (
        ("fit", "bliss warm-up fresh"),
        ("score", "bliss fit fresh"),
        ("select", "bliss score fresh"),
        ("evaluate", "bliss pretrain fresh"),
    ):
        assert f"run `{needed}" in fails(capsys, command, "fresh", "--lake", str(copied.root))


def test_cut_weights_are_named_not_loaded(copied: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    run = copied.run("smoke-bliss-s0")
    weights = run.round(1) / "pretrain" / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    (run.round(1) / "evaluation" / "manifest.json").unlink()
    assert "is not a whole safetensors file" in fails(capsys, "evaluate", run.name, "--lake", str(copied.root))
