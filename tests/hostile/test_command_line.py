"""Hostile values on the command line: names, addresses, settings, numbers. Each is refused by name, and nothing is written."""
# ruff: noqa: E501 - tables

from pathlib import Path

import pytest

from bliss_ops.cli import main
from tests.hostile.commands import Said, refused

LONG = "a" * 81
NAMES = [
    "../x", "..", ".", "a/b", "/etc/passwd", "a..b", "-x", "_x", ".hidden", "a b", "a\nb", "a\tb", "a\x00b", "A", "ä", "a;id", "a$(id)", "`id`",
    "a|b", "a&b", "a>b", "a'b", 'a"b', "a\\b", "a%2e%2e", "a*", "a?", "{a}", "~", "s3://x", LONG, "\u202ea", "a\ud800", "${HOME}", "{{ 7*7 }}",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_run_name(tmp_path: Path, capsys: Said, name: str) -> None:
    refused(capsys, tmp_path / "lake", "configure", "smoke", f"--name={name}", names="is not a valid name: use 1-80 of a-z 0-9")


@pytest.mark.parametrize("name", ["../x", "a/b", "a\nb", "a;id", "A", "a..b", LONG])
def test_a_corpus_name(tmp_path: Path, capsys: Said, name: str) -> None:
    refused(capsys, tmp_path / "lake", "ingest", "x.jsonl", "--corpus", name, names="ingest.corpus: ")


@pytest.mark.parametrize(
    ("command", "name"),
    [
        ("extract {}", "../../etc"), ("discover {}", "a b"), ("pack {}", "/etc"), ("warm-up {}", "../x"), ("score {}", "a;id"), ("select {}", "x/../../y"),
        ("export {} --output out", "../x"), ("import-scores x.parquet --corpus {} --name y", "../x"), ("import-scores x.parquet --corpus y --name {}", "../x"),
        ("extend {} --rounds 2", "../x"), ("configure smoke --compare-with {}", "../x"), ("configure {}", "../../etc/passwd"), ("configure {}", "a;id"),
        ("configure smoke --method {}", "../x"), ("rescore --corpus {} y --round 1", "../x"), ("rescore {} --corpus y", "../x"), ("load-scores {} y", "../x"),
        ("gates {}", "../x"), ("report {}", "../x"),
    ],
)  # fmt: skip
def test_names_of_other_commands(tmp_path: Path, capsys: Said, command: str, name: str) -> None:
    typed = [name if word == "{}" else word for word in command.split()]
    message = refused(capsys, tmp_path / "lake", *typed, names=f"{name!r} is not a valid name: use 1-80 of a-z 0-9")
    assert message.startswith(f"bliss {typed[0]}: ")


ADDRESSES = {
    "file:///etc/passwd": "give a local file by its plain path",
    "FILE:///etc/passwd": "give a local file by its plain path",
    "ftp://host/a.jsonl": "not an address that can be read",
    "gopher://host/a.jsonl": "not an address that can be read",
    "ssh://host/a.jsonl": "not an address that can be read",
    "memory://a.jsonl": "not an address that can be read",
    "reference://a.jsonl": "not an address that can be read",
    "github://a:b@main/a.jsonl": "not an address that can be read",
    "simplecache::https://h/a.jsonl": "not an address that can be read",
    "filecache::file:///etc/passwd": "not an address that can be read",
    "zip://a.jsonl::https://h/a.zip": "not an address that can be read",
    "tar://a.jsonl::/x.tar": "not an address that can be read",
    "HTTPS://h/a.jsonl": "not an address that can be read",
    "https://": "not an address that can be read",
    "https:///a.jsonl": "not an address that can be read",
    "https://[::1/a.jsonl": "Invalid IPv6 URL",
    "https://h:port/a.jsonl": "could not be cast",
    "https://h:99999/a.jsonl": "out of range",
    "https://h h/a.jsonl": "its host is 'h h'",
    "https://h\\@evil/a.jsonl": "carries a credential",
    "https://user:hunter2@h/a.jsonl": "carries a credential",
    "https://hunter2@h/a.jsonl": "carries a credential",
    "s3://AKIA:hunter2@bucket/a.jsonl": "carries a credential",
    "https://h/a.jsonl?X-Amz-Signature=hunter2": "carries a credential",
    "https://h/a.jsonl?x-goog-signature=hunter2": "carries a credential",
    "https://h/a.jsonl?sig=hunter2&x=1": "carries a credential",
    "https://h/a.jsonl?access_token=hunter2": "carries a credential",
    "https://h/a.jsonl?%61ccess_token=hunter2": "carries a credential",
    "https://h/../a.jsonl": "has a '..' in its path",
    "https://h/%2e%2e/a.jsonl": "has a '..' in its path",
    "s3://bucket/../other/a.jsonl": "has a '..' in its path",
    "hf://datasets/o/n/../../../api/whoami": "has a '..' in its path",
    "hf://gpt2": "not an address that can be read",
    "https://h/a\nb.jsonl": "contains the character",
    "https://h/a\r\nHost: evil": "contains the character",
    "a\x00.jsonl": "contains the character",
    "a\x7f.jsonl": "contains the character",
    "a\ud800.jsonl": "ingest.source: ",
    "x" * 5000: "1 to 4096 characters",
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_a_source(tmp_path: Path, capsys: Said, address: str) -> None:
    message = refused(capsys, tmp_path / "lake", "ingest", f"--set=ingest.source={address}", names=ADDRESSES[address])
    assert "hunter2" not in message


NOT_THERE = {
    "/etc/passwd": "files must end in", "/dev/zero": "files must end in", "/proc/self/environ": "files must end in",
    "/nowhere/*.jsonl": "matches no file", "data:text/plain,a.jsonl": "does not exist", "$(touch pwned).jsonl": "does not exist",
    "`touch pwned`.jsonl": "does not exist", "|touch pwned.jsonl": "does not exist", "; touch pwned;.jsonl": "does not exist",
    "../../../../etc/passwd": "files must end in", "~root/x.jsonl": "does not exist", "%s%n.jsonl": "does not exist", "{0}.jsonl": "does not exist",
}  # fmt: skip


@pytest.mark.parametrize("address", NOT_THERE)
def test_a_source_that_is_well_formed_and_not_there(tmp_path: Path, capsys: Said, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ["--set=ingest.validation.source=none", "--set=ingest.validation.name=none"]
    assert main(["ingest", address, "--corpus=x", *settings, "--lake", "lake"]) == 1
    message = capsys.readouterr().err
    assert NOT_THERE[address] in message
    assert "Traceback" not in message
    assert not {"manifest.json", "shards.json", "pwned"} & {path.name for path in tmp_path.rglob("*")}


@pytest.mark.parametrize("setting", ["ingest.tokenizer", "ingest.validation.source", "evaluation.data", "target.shape"])
@pytest.mark.parametrize(
    "address", ["file:///etc/passwd", "ftp://h/config.json", "https://u:hunter2@h/config.json", "http://h/../config.json"]
)
def test_other_settings_that_are_addresses(tmp_path: Path, capsys: Said, setting: str, address: str) -> None:
    message = refused(capsys, tmp_path / "lake", "configure", "smoke", f"--set={setting}={address}", names=setting)
    assert "hunter2" not in message


SETTINGS = {
    "": "write SECTION.FIELD=VALUE", "x": "write SECTION.FIELD=VALUE", "=1": "there is no such setting", "x=1": "there is no such setting",
    "bilevel=1": "bilevel", "bilevel.num_steps.x=1": "bilevel.num_steps", "__class__=1": "there is no such setting",
    "bilevel.__init__=1": "there is no such setting", "bilevel.num_steps=-1": "bilevel.num_steps", "bilevel.num_steps=1e999": "bilevel.num_steps",
    "bilevel.num_steps=NaN": "bilevel.num_steps", "pretraining.learning_rate=NaN": "pretraining.learning_rate",
    "pretraining.learning_rate=Infinity": "pretraining.learning_rate", "bilevel.num_steps=[1]": "bilevel.num_steps",
    "bilevel.num_steps={}": "bilevel.num_steps", "bilevel.num_steps=$(id)": "bilevel.num_steps", "bilevel.ihvp=__import__('os')": "bilevel.ihvp",
    "compute.num_workers=1000000000": "compute.num_workers", "ingest.sequence_length=1000000000000": "ingest.sequence_length",
    "ingest.vocab_size=null": "ingest.vocab_size", "compute.device=cuda:0;id": "compute.device",
    "bilevel.num_steps=" + "9" * 5000: "bilevel.num_steps", "ingest.validation.others=" + "[" * 5000: "ingest.validation.others",
    "ingest.validation.others=[[]]": "ingest.validation.others", 'ingest.validation.others=[{"source": "file:///x"}]': "others.0.source",
    'ingest.validation.others=[{"source": "a", "code": "id"}]': "there is no such setting", "target.shape=../../etc/passwd": "target",
    "target.shape=/etc/passwd.json": "there is no file", 'target.architecture={"model_type": "gpt2", "auto_map": {"A": "b.C"}}': "never run",
    'target.architecture={"model_type": "no-such"}': "target", "target.architecture={}": "target", "a.b.c.d.e.f=1": "there is no such setting",
    "ingest..source=x": "there is no such setting", "name=x": "there is no such setting", "ingest.corpus=../x": "ingest.corpus",
    "ingest.validation.name=../x": "ingest.validation.name", "ingest.max_expansion=0": "max_expansion",
}  # fmt: skip


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_setting(tmp_path: Path, capsys: Said, setting: str) -> None:
    refused(capsys, tmp_path / "lake", "configure", "smoke", f"--set={setting}", names=SETTINGS[setting])


@pytest.mark.parametrize(
    ("command", "names"),
    [
        (["warm-up", "x", "--round", "0"], "rounds count from 1"),
        (["warm-up", "x", "--round", "-1"], "--round"),
        (["warm-up", "x", "--round", "1;id"], "is not a round"),
        (["warm-up", "x", "--round", "\u0661\u0661"], "is not a round"),
        (["warm-up", "x", "--round", "9" * 5000], "is not a round"),
        (["score", "x", "--group", "1/0"], "is not a group"),
        (["score", "x", "--group", "../1"], "is not a group"),
        (["score", "x", "--group", "0/" + "9" * 5000], "is not a group"),
        (["configure", "smoke", "--seed", "-1"], "seed"),
        (["configure", "smoke", "--seed", "9" * 30], "seed"),
        (["run", "smoke", "--methods", "random,os.system"], "os.system"),
        (["sql", "--query", "../../etc/passwd"], "there is no query"),
        (["sql", "--query", "domains", "--param", "limit"], "write NAME=VALUE"),
        (["sql", "select 1", "--param", "x=1"], "--param belongs to"),
        (["nothing"], "invalid choice"),
    ],
)
def test_numbers_and_choices(tmp_path: Path, capsys: Said, command: list[str], names: str) -> None:
    refused(capsys, tmp_path / "lake", *command, names=names)
