"""Re-scoring: complete sets of scores under names of their own, what fits and what does not, what is still to be done."""

import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from bliss_ops import pipeline, rescoring
from bliss_ops.cli import main
from bliss_ops.lake import Lake, shard_file
from bliss_ops.manifest import find_manifest
from tests.corpus.corpora import rows, write_gz
from tests.rescoring.lakes import RUN, fit, forget, ingest, tokenizer_of, write_shards


def bliss(lake: Lake, *arguments: str) -> int:
    return main([*arguments, "--lake", str(lake.root)])


def pending(lake: Lake, capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict]:
    capsys.readouterr()
    assert bliss(lake, "pending", "--format", "json", *arguments) == 0
    return json.loads(capsys.readouterr().out)


def scores(lake: Lake, corpus: str, name: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in lake.further_scores(corpus, name).glob("*.parquet")}


def only_name(lake: Lake) -> str:
    ((_, name),) = lake.further_score_names()
    return name


def test_every_sequence_of_the_corpus_gets_a_score_by_the_rounds_model(lake: Lake) -> None:
    assert bliss(lake, "rescore", RUN, "--round", "1", "--corpus", "new") == 0
    name = only_name(lake)
    manifest = find_manifest(lake.further_scores("new", name))
    assert manifest is not None
    corpus, run = lake.corpus("new"), lake.run(RUN)
    sequences = find_manifest(corpus.sequences)
    assert manifest.shards == sequences.shards == [0, 1, 2]
    assert manifest.metrics["num_sequences"] == sequences.metrics["num_sequences"] > 10
    assert {"mean", "standard_deviation"} <= manifest.metrics.keys()
    assert manifest.stage == "rescore"
    assert {"run": RUN, "round": 1, "recipe": "smoke", "method": "dsir", "seed": 0}.items() <= manifest.identity.items()
    assert manifest.inputs == {
        f"runs/{RUN}/round-01/selector": find_manifest(run.round(1) / "selector").digest,
        lake.relative(corpus.sequences): sequences.digest,
    }
    assert name == f"{RUN}-round-01-{manifest.fingerprint[:8]}"
    from bliss_ops.selectors import dsir

    table = pq.read_table(str(shard_file(corpus.sequences, 1)))
    ids, tokens = table["sequence_id"].to_numpy(), table["input_ids"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    expected = dsir.load_scorer(run.round(1) / "selector")(ids, tokens)
    scored = pq.read_table(str(shard_file(lake.further_scores("new", name), 1)))
    assert scored["sequence_id"].to_pylist() == ids.tolist()
    assert scored["score"].to_pylist() == pytest.approx(expected.tolist(), rel=1e-6)


def test_the_latest_round_is_the_default_and_groups_make_the_same_files(lake: Lake, tmp_path: Path) -> None:
    shutil.copytree(lake.root.path, tmp_path / "other")
    other = Lake.open(tmp_path / "other")
    assert bliss(lake, "rescore", RUN, "--corpus", "new") == 0
    for group in ("2/3", "0/3", "1/3"):
        assert other.further_score_names() == []
        assert bliss(other, "rescore", RUN, "--round", "2", "--corpus", "new", "--group", group) == 0
    name = only_name(lake)
    assert "-round-02-" in name
    assert other.further_score_names() == [("new", name)]  # wherever the lake is
    assert scores(lake, "new", name) == scores(other, "new", name)


def test_what_changes_the_scores_changes_their_name(lake: Lake, tmp_path: Path) -> None:
    assert bliss(lake, "rescore", RUN, "--round", "1", "--corpus", "new") == 0
    before = scores(lake, "new", first := only_name(lake))
    forget(lake, "new")
    ingest(lake, "new", write_shards(tmp_path / "new", start=700), *tokenizer_of(lake))
    assert bliss(lake, "rescore", RUN, "--round", "1", "--corpus", "new") == 0
    names = [name for _, name in lake.further_score_names()]
    assert len(names) == 2
    assert scores(lake, "new", first) == before
    assert bliss(lake, "rescore", RUN, "--round", "1", "--corpus", "new") == 0  # no third one
    assert [name for _, name in lake.further_score_names()] == names


def test_a_corpus_of_another_tokenizer_or_length_is_refused_with_the_way_out(
    lake: Lake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_shards(tmp_path / "misfit", start=300)
    ingest(lake, "misfit", source, "--set", "ingest.vocab_size=600", "--set", "ingest.sequence_length=16")
    capsys.readouterr()
    assert bliss(lake, "rescore", RUN, "--corpus", "misfit") == 1
    message = capsys.readouterr().err
    assert "its sequences have 16 tokens, the model reads 32" in message
    assert "its tokenizer (bpe600) is another one than the model's (bpe512 of own)" in message
    command = next(line.strip() for line in message.splitlines() if line.strip().startswith("bliss ingest")).split()
    assert bliss(lake, *command[1:], "--set", "ingest.validation.source=none") == 0  # what the message says to do does it
    assert bliss(lake, "rescore", RUN, "--corpus", "misfit-for-smoke") == 0


def test_a_trained_tokenizer_of_the_same_name_is_not_the_same(lake: Lake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other_text = write_gz(
        tmp_path / "other" / "x-00000.json.gz", [{"text": f"{n} zwölf Boxkämpfer jagen Viktor {n * n}"} for n in range(60)]
    )
    ingest(lake, "twin", other_text, "--set", "ingest.vocab_size=512", "--set", "ingest.sequence_length=32")
    assert lake.corpus("twin").tokenizer_name == lake.corpus("own").tokenizer_name
    assert bliss(lake, "rescore", RUN, "--corpus", "twin") == 1
    assert "tokenizer" in capsys.readouterr().err


def test_a_model_whose_own_corpus_was_ingested_again_is_not_trusted(lake: Lake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forget(lake, "own")
    small = ["--set", "ingest.vocab_size=512", "--set", "ingest.sequence_length=32"]
    ingest(lake, "own", write_shards(tmp_path / "again", start=60), *small, validation=write_gz(tmp_path / "v.json.gz", rows(6)))
    for corpus in ("own", "new"):
        capsys.readouterr()
        assert bliss(lake, "rescore", RUN, "--corpus", corpus) == 1
        assert "was ingested again since" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-run", "--corpus", "new"], "no-such-run"),
        ([RUN, "--corpus", "no-such-corpus"], "no-such-corpus"),
        ([RUN, "--corpus", "new", "--round", "7"], "bliss fit smoke-dsir-s0 --round 7"),
        ([RUN, "--corpus", "../outside"], "not a valid name"),
    ],
)
def test_what_is_not_there_is_named(lake: Lake, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert bliss(lake, "rescore", *arguments) == 1
    assert message in capsys.readouterr().err


def test_random_scores_are_nobodys_to_repeat(lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    fit(lake, "random")
    assert bliss(lake, "rescore", "smoke-random-s0", "--corpus", "new") == 1
    assert "reads no text" in capsys.readouterr().err
    assert {pair["run"] for pair in pending(lake, capsys)} == {RUN}


def test_pending_counts_missing_shards_and_forgets_what_is_done(lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    def missing(*arguments: str) -> dict[tuple[str, int], int]:
        return {(pair["corpus"], pair["round"]): pair["num_missing"] for pair in pending(lake, capsys, *arguments)}

    assert missing() == {("new", 2): 3, ("own", 2): 3}  # the newest model, the latest round; own: a round scores its window only
    assert bliss(lake, "rescore", RUN, "--corpus", "new", "--group", "1/2") == 0
    assert missing("--corpus", "new") == {("new", 2): 2}
    assert bliss(lake, "rescore", RUN, "--corpus", "new") == 0
    assert missing() == {("own", 2): 3}
    assert missing("--round", "1") == {("new", 1): 3, ("own", 1): 3}
    assert missing("--run", RUN, "--corpus", "own", "--round", "1") == {("own", 1): 3}
    assert bliss(lake, "pending", "--corpus", "new") == 0
    assert capsys.readouterr().out == "nothing to score\n"


def test_a_round_that_has_scored_every_shard_need_not_be_repeated(lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    run = fit(lake, seed=5, window_shards=3)
    assert ("own", run.name) in {(pair["corpus"], pair["run"]) for pair in pending(lake, capsys)}
    pipeline.score(run, 1)
    assert ("own", run.name) not in {(pair["corpus"], pair["run"]) for pair in pending(lake, capsys)}
    assert ("new", run.name) in {(pair["corpus"], pair["run"]) for pair in pending(lake, capsys)}


def test_each_corpus_takes_the_newest_model_that_fits_it(lake: Lake, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, validation = write_shards(tmp_path / "second", start=300), write_gz(tmp_path / "v.json.gz", rows(6))
    ingest(lake, "second", source, "--set", "ingest.vocab_size=512", "--set", "ingest.sequence_length=16", validation=validation)
    second = fit(lake, "classifier", corpus="second", **{"ingest.sequence_length": 16})
    ingest(lake, "neither", source, "--set", "ingest.vocab_size=512", "--set", "ingest.sequence_length=64")
    found = {pair["corpus"]: pair for pair in pending(lake, capsys)}
    assert {corpus: pair["run"] for corpus, pair in found.items() if not pair["reason"]} == {"own": RUN, "new": RUN, "second": second.name}
    assert "its sequences have 64 tokens" in found["neither"]["reason"]
    named = pending(lake, capsys, "--run", RUN, "--corpus", "second")
    assert "its sequences have 16 tokens, the model reads 32" in named[0]["reason"]


def test_a_damaged_or_unfinished_neighbour_is_left_out_and_named(lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    (lake.root / "runs" / "damaged").mkdir()
    (lake.root / "runs" / "damaged" / "config.json").write_text("{}")
    for name in ("half", "torn"):
        shutil.copytree(lake.corpus("new").path.path, lake.corpus(name).path.path)
        config = json.loads((lake.corpus(name).path / "config.json").read_text()) | {"corpus": name}
        (lake.corpus(name).path / "config.json").write_text(json.dumps(config))
    (lake.corpus("half").sequences / "manifest.json").unlink()
    (lake.corpus("torn").path / "config.json").write_text("{")
    found = {pair["corpus"]: pair["reason"] for pair in pending(lake, capsys)}
    assert "bliss pack half" in found["half"]
    assert "config.json" in found["torn"]
    assert found["new"] == found["own"] == ""
    assert rescoring.score_models(lake)[0].run.name == RUN
    capsys.readouterr()
    assert bliss(lake, "pending") == 0
    said = capsys.readouterr()
    assert "run damaged is left out" in said.err
    assert "half  smoke-dsir-s0 round 2: does not fit: " in said.out


def test_a_shard_cut_on_disk_is_named_and_the_others_are_kept(lake: Lake, capsys: pytest.CaptureFixture[str]) -> None:
    cut = Path(shard_file(lake.corpus("new").sequences, 1).path)
    whole = cut.read_bytes()
    cut.write_bytes(whole[:-9])
    assert bliss(lake, "rescore", RUN, "--corpus", "new") == 1
    assert (
        f"{cut} is cut off or missing ({len(whole) - 9} of {len(whole)} bytes): `bliss pack new` makes it again" in capsys.readouterr().err
    )
    assert lake.further_score_names() == []
    assert bliss(lake, "pack", "new") == 0
    assert cut.read_bytes() == whole
    assert bliss(lake, "rescore", RUN, "--corpus", "new") == 0
    assert only_name(lake)
