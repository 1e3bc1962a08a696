"""Models by a config.json of the transformers library: what is kept of the file, what is refused and how, and that they work everywhere."""

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from upath import UPath

from bliss_ops.cli import main
from bliss_ops.config import Recipe, RunConfig, identity
from bliss_ops.lake import Lake
from bliss_ops.models import architecture, language, saved_score
from bliss_ops.models.score import ScoreModel
from bliss_ops.models.token_loss import loss_sums
from bliss_ops.training.state import TrainState, adamw, new_model

GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_head": 2, "n_layer": 2, "n_positions": 64, "vocab_size": 512}
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 512}
LLAMA = SIZES | {"model_type": "llama", "num_key_value_heads": 1, "tie_word_embeddings": True}
WORKING: list[dict[str, Any]] = [
    GPT2,
    LLAMA,
    SIZES | {"model_type": "gpt_neox"},
    SIZES | {"model_type": "mixtral", "num_key_value_heads": 1, "num_local_experts": 4},
    SIZES | {"model_type": "qwen2", "num_key_value_heads": 2, "layer_types": ["full_attention"] * 3},
]


def write(path: Path, values: Any) -> str:
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return str(path)


def batch() -> torch.Tensor:
    return torch.randint(512, (3, 16), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("values", WORKING, ids=lambda values: values["model_type"])
def test_a_model_by_file_is_built_trained_and_kept_like_any_other(tmp_path: Path, values: dict[str, Any]) -> None:
    kept = architecture.read(write(tmp_path / "config.json", values))
    architecture.check_behaviour(kept)
    model = language.build(kept, vocab_size=500, sequence_length=16, seed=1)
    again = language.build(kept, vocab_size=500, sequence_length=16, seed=1)
    assert all(torch.equal(x, y) for x, y in zip(model.parameters(), again.parameters(), strict=True))
    assert sum(parameter.numel() for parameter in model.parameters()) == language.num_parameters(kept)

    tokens = batch()
    sums_B, counts_B = loss_sums(model, tokens, tokens)
    expected = model(input_ids=tokens, labels=tokens).loss
    assert float(sums_B.sum() / counts_B.sum()) == pytest.approx(float(expected.detach()), rel=1e-5)  # the library's own loss

    state = TrainState(model, adamw(model, 1e-2, 0.1))
    expected.backward()
    state.optimizer.step()
    language.write_tensors(UPath(tmp_path / "state.safetensors"), state.tensors())
    restored = TrainState(again, adamw(again, 1e-2, 0.1))
    restored.restore(language.read_tensors(UPath(tmp_path / "state.safetensors")))
    assert all(torch.equal(x, y) for x, y in zip(model.parameters(), again.parameters(), strict=True))

    language.save(model, UPath(tmp_path), "model")
    with torch.no_grad():
        for loaded in (language.load(UPath(tmp_path), "model"), _from_pretrained(tmp_path / "model")):
            torch.testing.assert_close(loaded(input_ids=tokens).logits, model(input_ids=tokens).logits)


def _from_pretrained(directory: Path) -> torch.nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(directory)


def test_a_score_model_on_an_architecture_is_built_again_from_its_settings(tmp_path: Path) -> None:
    kept = architecture.read(write(tmp_path / "config.json", GPT2))
    values = {"name": "r", "recipe": "r", "method": "bliss", "proxy": {"shape": "x", "architecture": kept}, "compute": {"device": "cpu"}}
    config = RunConfig.model_validate(values | {"ingest": {"sequence_length": 16}})
    model = ScoreModel(new_model(config, config.proxy, 512), pooling="next_token")
    torch.nn.init.normal_(model.head.weight)
    saved_score.write_settings(UPath(tmp_path), config, 512, pooling="next_token")
    saved_score.write_weights(UPath(tmp_path), model)
    scores = saved_score.load_scorer(UPath(tmp_path))(np.arange(3), batch().numpy())
    with torch.no_grad():
        assert np.allclose(scores, model(batch()).numpy(), atol=1e-6)


def test_only_what_bears_on_the_mathematics_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noise = {
        "_name_or_path": "/somewhere", "architectures": ["GPT2LMHeadModel"],
        "torch_dtype": "float16", "dtype": "float16", "transformers_version": "4.0", "use_cache": True,
    }  # fmt: skip
    with caplog.at_level(logging.WARNING):
        kept = architecture.read(write(tmp_path / "config.json", GPT2 | noise))
    dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}  # the library's default, though the file does not name it, is 0.1
    assert kept == GPT2 | dropout
    assert "attn_pdrop" in caplog.text
    assert "from 0.1 to 0" in caplog.text
    model = language.build(kept, vocab_size=512, sequence_length=16, seed=0).train()
    assert torch.equal(model(input_ids=batch()).logits, model(input_ids=batch()).logits)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_identity_is_the_content_and_not_the_path(tmp_path: Path) -> None:
    paths = [
        write(tmp_path / "a.json", GPT2),
        write(tmp_path / "b.json", json.dumps(dict(reversed(GPT2.items())), indent=3)),
        write(tmp_path / "c.json", GPT2 | {"n_layer": 1}),
    ]
    recipes = [Recipe.model_validate({"target": {"shape": path}}) for path in paths]
    one, same, other = (identity(architecture.with_architectures(recipe).target) for recipe in recipes)
    assert one == same != other
    assert str(tmp_path) not in json.dumps(one)
    assert one["shape"].startswith("gpt2-")
    assert "architecture" not in identity(Recipe().target)  # and what was finished without one stays valid


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (None, "there is no file"),
        (GPT2 | {"auto_map": {"AutoModelForCausalLM": "theirs.Model"}}, "code that comes with the model"),
        (GPT2 | {"vocab_size": 10**12}, "vocab_size is 1,000,000,000,000"),
        (GPT2 | {"n_embd": 10**9}, "hidden_size is 1,000,000,000"),
        ("[" * 100_000, "is not JSON"),
        ("{", "is not JSON"),
        ([1], 'has no "model_type"'),
        ({"n_embd": 4}, 'has no "model_type"'),
        ({"model_type": "their_own"}, "type 'their_own', which is not a causal language model of the installed"),
        ({"model_type": "t5"}, "type 't5', which is not a causal language model"),
        (GPT2 | {"n_embd": "wide"}, "refuses it: .*n_embd"),
        ({"model_type": "gemma3", "text_config": {}}, "made of several"),
        ({"model_type": "bart"}, "an encoder with a decoder"),
    ],
    ids=str,
)
def test_files_that_describe_no_causal_model(tmp_path: Path, values: Any, message: str) -> None:
    path = str(tmp_path / "config.json")
    if values is not None:
        write(Path(path), values)
    with pytest.raises(ValueError, match=rf"^target.shape: .*{message}") as raised:
        architecture.with_architectures(Recipe.model_validate({"target": {"shape": path}}))
    assert path in str(raised.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (GPT2 | {"n_positions": 32}, r"has 32 positions \(max_position_embeddings\) and sequences have 64 tokens"),
        (GPT2 | {"vocab_size": 300}, "the tokenizer has 512 tokens but the gpt2 architecture has a vocabulary of 300"),
        (SIZES | {"model_type": "bert"}, "looks ahead"),
        (SIZES | {"model_type": "phi"}, "not its hidden states times its output matrix"),  # a bias, zero at first
        (SIZES | {"model_type": "gemma2", "head_dim": 16, "num_key_value_heads": 1}, "not its hidden states"),  # capped logits
        (SIZES | {"model_type": "llama", "num_attention_heads": 3}, "cannot be built|refuses it"),
        (SIZES | {"model_type": "stablelm"}, "cannot be built"),  # the library's 32 key-value heads for 2 heads
    ],
    ids=str,
)
def test_models_that_cannot_be_trained_here(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    sections = {"proxy": {"shape": write(tmp_path / "config.json", values)}, "ingest": {"sequence_length": 64, "vocab_size": 512}}
    with pytest.raises(ValueError, match=rf"^proxy.shape: .*({message})"):
        architecture.check_models(architecture.with_architectures(Recipe.model_validate(sections)))


def test_a_shape_that_does_not_exist_is_told_before_anything_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configure", "smoke", "--set", "target.shape=pythia-7b", "--lake", str(tmp_path)]) != 0
    message = capsys.readouterr().err
    assert "target.shape: there is no model shape 'pythia-7b'" in message
    assert "ending in .json" in message
    assert not (tmp_path / "runs").exists()
    too_large = ["--set", "ingest.vocab_size=60000", "--set", "proxy.shape=pythia-31m"]
    assert main(["configure", "smoke", "--method", "bliss", *too_large, "--lake", str(tmp_path)]) != 0
    assert "proxy.shape: the tokenizer has 60,000 tokens but pythia-31m" in capsys.readouterr().err
    assert main(["configure", "smoke", "--method", "random", *too_large, "--lake", str(tmp_path)]) == 0  # which has no proxy


def test_configure_keeps_the_content_and_takes_the_same_from_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "config.json", GPT2)
    command = ["configure", "smoke", "--method", "random", "--lake", str(tmp_path / "lake"), "--set"]
    assert main([*command, "target.shape=config.json"]) == 0  # a relative path
    run = Lake.open(str(tmp_path / "lake")).run("smoke-random-s0")
    assert run.config.target.definition["model_type"] == "gpt2"
    Path(path).rename(tmp_path / "moved.json")
    assert main([*command, "target.shape=moved.json"]) == 0
    write(tmp_path / "moved.json", GPT2 | {"n_layer": 4})
    assert main([*command, "target.shape=moved.json"]) != 0  # another model is another run
