"""Hostile values in the trigger forms: refused by the form, or text in one argument of a command that a shell runs as it is meant."""
# ruff: noqa: E501 - tables

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("airflow")

from bliss_ops.airflow import forms
from bliss_ops.airflow.operator import BlissStageOperator, StageFailed, run_here
from bliss_ops.cli.arguments import settings
from bliss_ops.config import RunConfig
from bliss_ops.names import check_name

MARKER = "pwned"
INJECTIONS = [
    "; touch pwned", "&& touch pwned", "|| touch pwned", "| touch pwned", "& touch pwned &", "$(touch pwned)", "`touch pwned`", "\ntouch pwned\n",
    "\r\ntouch pwned", "' ; touch pwned ; '", '" ; touch pwned ; "', "'\"; touch pwned; #", "\\'; touch pwned; \\'", "> pwned", ">> pwned", "2> pwned",
    "<(touch pwned)", ">(touch pwned)", "${IFS}touch${IFS}pwned", "$'\\n'touch pwned", "{touch,pwned}", "a\ttouch\tpwned", "--set=a=b; touch pwned",
    "--lake=/tmp; touch pwned", "-x; touch pwned", "--", "--help", "!touch pwned", "~", "*", "?", "[a-z]*", "#", "\\", "\\\n touch pwned", "%0atouch pwned",
    "{{ macros.os.system('touch pwned') }}", "{% for x in ().__class__.__base__.__subclasses__() %}{% endfor %}", "{{ params }}", "${{ x }}",
    "\u2028touch pwned", "\u0085touch pwned", "\x1b[2Jtouch pwned", "\u202etouch pwned", "'", '"', "''", "$", "$$", "$0", "$PATH", "=", "a=b", "\U0001f4a9", "",
]  # fmt: skip
TEXT_FIELDS = ["ingest.source", "ingest.tokenizer", "ingest.validation.source", "evaluation.data", "target.shape", "ingest.corpus"]
FILLED = {"recipe": "smoke", "method": "bliss", "seed": 3, "round": 1, "name": None, "compare_with": []}


def through_a_shell(command: list[str], folder: Path) -> list[str]:
    """What a program gets as its arguments when Ray runs an entrypoint: `/bin/sh -c` of the joined command."""
    (folder / "bin").mkdir(exist_ok=True)
    program = folder / "bin" / "bliss"
    program.write_text('#!/bin/sh\nfor each in "$@"; do printf \'%s\\0\' "$each"; done\n')
    program.chmod(0o755)
    environment = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(["/bin/sh", "-c", shlex.join(command)], cwd=folder, env=environment, capture_output=True, check=True)
    return done.stdout.decode().split("\0")[:-1]


@pytest.mark.parametrize("value", INJECTIONS, ids=repr)
def test_no_value_of_a_form_leaves_its_argument(tmp_path: Path, value: str) -> None:
    params = FILLED | dict.fromkeys(TEXT_FIELDS, value) | {"name": value, "compare_with": [value]}
    arguments = forms.configure_arguments("configure", params)
    stage = BlissStageOperator(task_id="x", subcommand="score", subject=value, arguments=(value,), round_number=value, group=value)
    for command in (["bliss", *arguments], stage.command):
        assert shlex.split(shlex.join(command)) == command
        assert through_a_shell(command, tmp_path) == command[1:]
        assert [path.name for path in tmp_path.iterdir()] == ["bin"]
    given = settings(argument.removeprefix("--set=") for argument in arguments if argument.startswith("--set="))
    assert {key: text for key, text in given.items() if key in TEXT_FIELDS} == (dict.fromkeys(TEXT_FIELDS, value) if value else {})


def bad(key: str, value: Any) -> Any:
    return pytest.param(key, value, id=f"{key}={value!r:.40}")


REFUSED_BY_THE_FORM = [
    bad("recipe", "../x"), bad("recipe", "/etc/passwd"), bad("recipe", "smoke; id"), bad("recipe", None), bad("recipe", ["smoke"]), bad("recipe", "x.toml"),
    bad("method", "os.system"), bad("method", "../bliss"), bad("method", ""), bad("seed", -1), bad("seed", 2**31), bad("seed", "0; id"), bad("seed", 1.5),
    bad("seed", "$(id)"), bad("seed", None), bad("round", 0), bad("round", "1"), bad("round", -1), bad("round", [1]), bad("name", 1), bad("name", ["x"]), bad("name", {"a": 1}),
    bad("compare_with", "x"), bad("compare_with", [1]), bad("compare_with", [["x"]]), bad("compare_with", {"a": 1}), bad("num_rounds", 0), bad("num_rounds", 10**9),
    bad("num_rounds", "1 --lake=/tmp"), bad("bilevel.num_steps", "1; id"), bad("bilevel.num_steps", 0), bad("bilevel.weights", "eval"), bad("bilevel.ihvp", "x"),
    bad("compute.device", "cuda; id"), bad("compute.num_workers", 10**6), bad("compute.num_threads", "2"), bad("ingest.sequence_length", 10**9),
    bad("ingest.vocab_size", -1), bad("ingest.source", ""), bad("ingest.source", 1), bad("ingest.source", ["a"]), bad("ingest.num_groups", 65),
    bad("ingest.validation.others", ["a"]), bad("ingest.validation.others", "a"), bad("evaluation.tasks", ["x"]), bad("evaluation.tasks", "sciq"), bad("selection.fraction", 2),
    bad("selection.fraction", "all"), bad("pretraining.decay_at_steps", ["x"]), bad("pretraining.sharding", "none; id"), bad("ingest.max_expansion", 1),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), REFUSED_BY_THE_FORM)
def test_the_form_refuses(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match="Failed validating"):
        forms.round_params()[key].resolve(value)


REFUSED_BY_THE_SETTINGS: list[tuple[str, Any, str]] = [
    ("ingest.source", "file:///etc/passwd", "ingest.source"), ("ingest.source", "https://u:hunter2@h/x.jsonl", "carries a credential"),
    ("ingest.source", "a\nb", "contains the character"), ("ingest.source", "zip://x::https://h/y", "ingest.source"), ("ingest.corpus", "../x", "ingest.corpus"),
    ("ingest.corpus", "a;id", "ingest.corpus"), ("ingest.validation.name", "a/b", "ingest.validation.name"), ("ingest.tokenizer", "ftp://h/x", "ingest.tokenizer"),
    ("ingest.validation.others", [{"source": "file:///x"}], "others.0.source"), ("ingest.validation.others", [{"code": "x"}], "others.0"),
    ("evaluation.data", "ssh://h/x", "evaluation.data"), ("__class__", 1, "there is no such setting"), ("os.system", "id", "there is no such setting"),
    ("bilevel.__init__", 1, "there is no such setting"), ("description.x", 1, "there is no such setting"), ("", 1, "there is no such setting"),
    ("target.architecture", {"auto_map": {}}, ""), ("ingest.source; id", "x", "there is no such setting"), ("--lake", "x", "there is no such setting"),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value", "names"), REFUSED_BY_THE_SETTINGS, ids=repr)
def test_what_the_form_lets_pass_the_settings_refuse(key: str, value: Any, names: str) -> None:
    """Through the API a run may also carry keys that the form does not have."""
    if key == "target.architecture":
        from bliss_ops.models.architecture import with_architectures

        with pytest.raises(ValueError, match="model_type"):
            with_architectures(forms.recipe(FILLED | {key: value}))
        return
    with pytest.raises(ValueError, match=names) as caught:
        forms.recipe(FILLED | {key: value})
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("address", ["https://u:hunter2@h/x.jsonl", "https://h/x.jsonl?a=b&sig=hunter2", "s3://AKIA:hunter2@bucket/x"])
def test_a_credential_in_a_form_is_not_shown(address: str, caplog: pytest.LogCaptureFixture) -> None:
    """Neither in the log of `configure` nor in its error."""
    caplog.set_level("INFO")
    command = [sys.executable, "-c", "raise SystemExit('no')", *forms.configure_arguments("configure", FILLED | {"ingest.source": address})]
    with pytest.raises(StageFailed) as caught:
        run_here(command)
    for text in (str(caught.value), caplog.text):
        assert "ingest.source" in text
        assert "***" in text
        assert "hunter2" not in text


@pytest.mark.parametrize("name", [value for value in INJECTIONS if value], ids=repr)
def test_no_injection_is_a_name(name: str) -> None:
    with pytest.raises(ValueError, match="is not a valid name"):
        check_name(name)
    with pytest.raises(ValueError, match="name"):
        RunConfig.model_validate({"name": name, "recipe": "smoke", "method": "bliss"})
