"""Hostile recipe files: each is refused with the file and the setting, and nothing is written."""
# ruff: noqa: E501 - tables

from pathlib import Path

import pytest

from tests.hostile.commands import Said, refused

RECIPES = {
    b"\xff\xfe": "is not valid TOML", b"\x00": "is not valid TOML", b"[": "is not valid TOML", b"a = ": "is not valid TOML",
    b"a = 1\na = 2": "is not valid TOML", b"[ingest]\n[ingest]": "is not valid TOML", b'a = "\\ud800"': "is not valid TOML",
    b"a = 1e999999999": "there is no such setting", b"a = " + b"9" * 5000: "TOML", b"a = " + b"[" * 50_000: "TOML",
    b"a = " + b"{b=" * 20_000: "TOML", b".".join([b"a"] * 1_000) + b" = 1": "recipe", b"[" + b".".join([b"a"] * 1_000) + b"]": "recipe",
    b"\x80\x04\x95cos\nsystem\n(S'id'\ntR.": "is not valid TOML", b"!!python/object/apply:os.system ['id']": "is not valid TOML",
    b"#!/bin/sh\nid": "is not valid TOML", b'{"ingest": {}}': "is not valid TOML", b"code = 'import os'": "code: there is no such setting",
    b"[ingest]\ncorpus = '../x'": "ingest.corpus", b"[ingest]\ncorpus = ''": "ingest.corpus", b"[ingest]\nsource = ''": "ingest.source",
    b"[ingest]\nsource = 'file:///etc/passwd'": "ingest.source", b"[ingest]\nsource = 1": "ingest.source",
    b"[ingest]\nsource = 'https://a:hunter2@h/x.jsonl'": "carries a credential", b"[ingest]\nsource = ['a']": "ingest.source",
    b"[ingest]\ntokenizer = 'zip://x::https://h/y'": "ingest.tokenizer", b"[ingest.validation]\nname = 'a/b'": "ingest.validation.name",
    b"[ingest.validation]\nsource = 'ftp://h/x'": "ingest.validation.source", b"[[ingest.validation.others]]\nsource = 's3://'": "others.0.source",
    b"ingest = 1": "ingest", b"ingest = []": "ingest", b"num_rounds = 101": "num_rounds", b"num_rounds = -1": "num_rounds",
    b"num_rounds = nan": "num_rounds", b"num_rounds = 2020-01-01": "num_rounds", b"[bilevel]\nnum_steps = inf": "bilevel.num_steps",
    b"[bilevel]\ntemperature = nan": "bilevel.temperature", b"[bilevel]\nweights = 'eval'": "bilevel.weights",
    b"[target]\nshape = '../../x.json'": "target.shape", b"[target]\nshape = 'https://h/config.json'": "target.shape",
    b"[target.architecture]\nmodel_type = 'x'\nauto_map = 1": "target", b"[evaluation]\ndata = 'ssh://h/x'": "evaluation.data",
    b"[evaluation]\ntasks = ['__import__']": "evaluation.tasks", b"[compute]\ndevice = 'cuda; id'": "compute.device",
    b"[selection]\nfraction = 0": "selection.fraction",
}  # fmt: skip


@pytest.mark.parametrize("content", RECIPES, ids=lambda content: repr(content[:40]))
def test_a_recipe(tmp_path: Path, capsys: Said, content: bytes) -> None:
    (tmp_path / "mine.toml").write_bytes(content)
    message = refused(capsys, tmp_path / "lake", "configure", str(tmp_path / "mine.toml"), names=RECIPES[content])
    assert "hunter2" not in message


@pytest.mark.parametrize("path", ["/etc/passwd.toml", "../../x.toml", "/dev/null.toml", ".toml", "x.toml\x00.toml", "https://h/x.toml"])
def test_a_recipe_that_is_no_file(tmp_path: Path, capsys: Said, path: str) -> None:
    refused(capsys, tmp_path / "lake", "configure", path, names="no recipe")


def test_a_recipe_that_is_a_directory_or_without_end(tmp_path: Path, capsys: Said) -> None:
    (tmp_path / "folder.toml").mkdir()
    refused(capsys, tmp_path / "lake", "configure", str(tmp_path / "folder.toml"), names="no recipe")
    with (tmp_path / "large.toml").open("wb") as file:
        file.truncate(64 << 20)
    refused(capsys, tmp_path / "lake", "configure", str(tmp_path / "large.toml"), names="far more than a recipe")
