"""The baselines against figures worked out by hand, and that each prefers the text it should."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from upath import UPath

from bliss_ops import schemas, selectors
from bliss_ops.corpus import ngrams, tokenizer, validation
from bliss_ops.lake import write_parquet
from bliss_ops.models import language
from bliss_ops.rank_correlation import area_under_curve
from bliss_ops.selectors import SelectorInputs, classifier, dsir, random
from bliss_ops.sharding import ROWS_PER_SHARD
from bliss_ops.training.state import PROXY
from tests.selectors.windows import LENGTH, ROWS, VOCABULARY, both_shards, counting, write_tokenizer


def with_settings(inputs: SelectorInputs, section: str, **changes: Any) -> SelectorInputs:
    settings = getattr(inputs.config, section).model_copy(update=changes)
    return replace(inputs, config=inputs.config.model_copy(update={section: settings}))


def fitted(inputs: SelectorInputs, method: str, directory: Path) -> tuple[selectors.Selector, dict[str, Any]]:
    selector = selectors.load(method)
    return selector, selector.fit(inputs, UPath(directory))[1]


# ---- n-grams ---------------------------------------------------------------------------------------------------------


def test_ngrams_land_in_the_published_buckets() -> None:
    assert ngrams.bucket("alice", 10_000) == 6720
    assert ngrams.bucket("alice went", 10_000) == 114


def test_words_are_lower_cased_runs_of_letters_or_of_punctuation() -> None:
    assert ngrams.ngrams("Alice's cat, ÉTÉ!?") == [
        *["alice", "'", "s", "cat", ",", "été", "!?"],
        *["alice '", "' s", "s cat", "cat ,", ", été", "été !?"],
    ]


def test_bigrams_do_not_reach_across_the_end_of_a_document(tmp_path: Path) -> None:
    write_tokenizer(UPath(tmp_path))
    hash_rows = ngrams.make_hasher(tokenizer.load(UPath(tmp_path)), 10_000)
    row_G, bucket_G = hash_rows(np.array([[0, 1, 2, 0], [3, 0, 0, 1], [0, 0, 0, 0], [1, 2, 3, 1]]))
    found = {row: sorted(bucket_G[row_G == row].tolist()) for row in range(4)}
    texts = {0: ["word1", "word2", "word1 word2"], 1: ["word3", "word1"], 2: []}
    texts[3] = ["word1", "word2", "word3", "word1", "word1 word2", "word2 word3", "word3 word1"]
    assert found == {row: sorted(ngrams.bucket(ngram, 10_000) for ngram in expected) for row, expected in texts.items()}


# ---- classifier ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["classifier", "dsir"])
def test_ngram_baselines_find_the_half_that_looks_like_the_validation_set(inputs: SelectorInputs, tmp_path: Path, method: str) -> None:
    selector, _ = fitted(inputs, method, tmp_path)
    ids, tokens = both_shards(inputs)
    scores = selector.load_scorer(UPath(tmp_path))(ids, tokens)
    assert scores[ids < ROWS_PER_SHARD].min() > scores[ids >= ROWS_PER_SHARD].max()


def test_the_classifier_reports_what_it_reaches_on_rows_it_has_not_seen(inputs: SelectorInputs, tmp_path: Path) -> None:
    """Half of the negatives cannot be told from the positives, so the AUC cannot be far from 3/4."""
    _, metrics = fitted(inputs, "classifier", tmp_path)
    assert 0.6 < metrics["heldout_auc"] < 0.9
    assert metrics["num_candidate_sequences"] == 2 * ROWS


def test_the_classifier_minimises_its_objective(inputs: SelectorInputs, tmp_path: Path) -> None:
    """At the minimum the L2 term's gradient balances the data's, and the bias's gradient is zero: both classes keep their weight."""
    rows = [np.array([1, 2]), np.array([1, 3]), np.array([2, 3]), np.array([3, 4]), np.array([4, 5])]
    hash_rows = ngrams.make_hasher(tokenizer.load(inputs.tokenizer), 256)
    settings = inputs.config.classifier.model_copy(update={"num_buckets": 256, "l2_weight": 0.01})
    found = classifier.features(hash_rows, rows, 256)
    np.testing.assert_allclose(np.bincount(found[0], weights=found[2] ** 2), 1)
    coefficient_K, bias, _ = classifier.train(found, np.arange(5) < 2, np.array([1.0, 3.0, 1.0, 1.0, 1.0]), settings)
    residual_N = 1 / (1 + np.exp(-classifier.logits(coefficient_K, bias, found, 5))) - np.array([1, 1, 0, 0, 0])
    residual_N *= np.array([1 / 8, 3 / 8, 1 / 6, 1 / 6, 1 / 6])
    assert abs(residual_N.sum()) < 1e-5
    gradient_K = np.bincount(found[1], weights=found[2] * residual_N[found[0]], minlength=256) + 0.01 * coefficient_K
    assert np.abs(gradient_K).max() < 1e-5


def test_the_classifier_reads_no_more_candidates_than_allowed(inputs: SelectorInputs, tmp_path: Path) -> None:
    _, metrics = fitted(with_settings(inputs, "classifier", num_candidate_sequences=100), "classifier", tmp_path)
    assert metrics["num_candidate_sequences"] == 100


def test_rows_held_out_are_the_last_of_every_set_and_sets_keep_their_weights() -> None:
    set_N = np.array([0] * 4 + [1] * 2)
    assert classifier._heldout(set_N, 0.5).tolist() == [False, False, True, True, False, True]
    assert classifier._heldout(set_N, 0.1).tolist() == [False] * 5 + [True]
    weights = classifier._row_weights(np.array([1.0, 1, 1, 1, 5, 3]), set_N)
    assert weights.tolist() == [1, 1, 1, 1, 4, 4]


# ---- dsir ------------------------------------------------------------------------------------------------------------


def test_an_importance_weight_worked_out_by_hand(inputs: SelectorInputs, tmp_path: Path) -> None:
    """p of the target and of the raw text from counts of words and pairs; two rows are scored with them."""
    _, metrics = fitted(with_settings(inputs, "dsir", sampling="top_k"), "dsir", tmp_path)
    tokens = np.concatenate([tokens for _, tokens in inputs.candidates.sample(2 * ROWS, seed=5)])
    guide = validation.read(inputs.validation, "guide").input_ids_NT

    def distribution(rows: np.ndarray) -> np.ndarray:
        counts = np.zeros(10_000)
        for row in rows:
            text = " ".join("|" if token == 0 else f"word{token}" for token in row)  # no word of the corpus holds a bar
            for part in text.split("|"):
                for ngram in ngrams.ngrams(part):
                    counts[ngrams.bucket(ngram, 10_000)] += 1
        return counts / counts.sum()

    log_ratio = np.log(distribution(guide) + 1e-8) - np.log(distribution(tokens) + 1e-8)
    rows = np.array([[1, 2, 3], [40, 41, 40]])
    texts = [["word1", "word2", "word3", "word1 word2", "word2 word3"], ["word40", "word41", "word40", "word40 word41", "word41 word40"]]
    expected = [sum(log_ratio[ngrams.bucket(ngram, 10_000)] for ngram in text) for text in texts]
    assert expected[0] > 0 > expected[1]
    np.testing.assert_allclose(dsir.load_scorer(UPath(tmp_path))(np.array([0, 1]), rows), expected, rtol=1e-6)
    assert metrics["num_candidate_sequences"] == 2 * ROWS
    assert metrics["kl_target_raw"] > 0


def test_gumbel_draws_do_not_know_shards_and_change_with_seed_and_round(inputs: SelectorInputs, tmp_path: Path) -> None:
    ids = np.arange(200_000)
    draws = random.gumbel(ids, seed=0, round_number=1, stream=1)
    np.testing.assert_array_equal(random.gumbel(ids[777:780], 0, 1, stream=1), draws[777:780])
    assert draws.mean() == pytest.approx(0.5772, abs=0.01)
    assert draws.std() == pytest.approx(np.pi / np.sqrt(6), abs=0.01)
    for other in (random.gumbel(ids, 1, 1, stream=1), random.gumbel(ids, 0, 2, stream=1), random.gumbel(ids, 0, 1, stream=2)):
        assert abs(np.corrcoef(draws, other)[0, 1]) < 0.01
    random.fit(inputs, UPath(tmp_path))
    uniform = random.load_scorer(UPath(tmp_path))(ids, np.zeros((len(ids), 1), np.int64))
    assert abs(np.corrcoef(draws, uniform)[0, 1]) < 0.01


def test_gumbel_sampling_adds_the_draw_of_each_id(inputs: SelectorInputs, tmp_path: Path) -> None:
    ids, tokens = both_shards(inputs)
    scores = {}
    for sampling in ("gumbel", "top_k"):
        fitted(with_settings(inputs, "dsir", sampling=sampling), "dsir", tmp_path / sampling)
        scores[sampling] = dsir.load_scorer(UPath(tmp_path / sampling))(ids, tokens)
    np.testing.assert_allclose(
        scores["gumbel"] - scores["top_k"], random.gumbel(ids, inputs.config.seed, 1, stream=0x64736972), rtol=0, atol=1e-4
    )


def test_a_validation_set_without_words_is_an_error_that_says_so(inputs: SelectorInputs, tmp_path: Path) -> None:
    """A tokenizer that turns every token into blanks stands for one that does not belong to the corpus."""
    write_tokenizer(UPath(tmp_path))
    text = json.loads((tmp_path / "tokenizer.json").read_text())
    vocabulary = text["model"]["vocab"]
    text["model"]["vocab"] = {name if token == 0 else " " * token: token for name, token in vocabulary.items()}
    (tmp_path / "tokenizer.json").write_text(json.dumps(text))
    with pytest.raises(ValueError, match="guide part of the validation set decoded to no word"):
        dsir.fit(replace(inputs, tokenizer=UPath(tmp_path)), UPath(tmp_path / "selector"))


def test_a_set_of_more_weight_pulls_the_ngram_baselines_to_its_side(inputs: SelectorInputs, tmp_path: Path) -> None:
    """Two validation sets that want opposite halves of the corpus: the heavier one decides."""
    rows = counting(64, 0, np.random.default_rng(0)), counting(64, 1, np.random.default_rng(1))
    tokens = pa.FixedSizeListArray.from_arrays(pa.array(np.concatenate(rows).astype(np.int32).ravel()), LENGTH)
    ids, input_ids = both_shards(inputs)
    for heavy in (0, 1):
        weight_N = np.repeat([1.9, 0.1] if heavy == 0 else [0.1, 1.9], 64)
        table = pa.table([tokens, tokens, weight_N, np.repeat([0, 1], 64)], schema=schemas.validation(LENGTH, several_sets=True))
        write_parquet(UPath(tmp_path) / f"{heavy}" / "guide.parquet", table)
        for method in ("classifier", "dsir"):
            directory = tmp_path / f"{method}-{heavy}"
            selector, _ = fitted(replace(inputs, validation=UPath(tmp_path) / f"{heavy}"), method, directory)
            scores = selector.load_scorer(UPath(directory))(ids, input_ids)
            wanted = ids // ROWS_PER_SHARD == heavy
            assert area_under_curve(scores[wanted], scores[~wanted]) > 0.95, (method, heavy)


# ---- perplexity ------------------------------------------------------------------------------------------------------


def test_perplexity_is_minus_the_mean_loss_of_the_warmed_up_proxy(inputs: SelectorInputs, tmp_path: Path) -> None:
    selector, metrics = fitted(inputs, "perplexity", tmp_path)
    assert metrics == {"num_warmup_steps": 10}
    ids, tokens = both_shards(inputs)
    scores = selector.load_scorer(UPath(tmp_path))(ids, tokens)
    warmed = language.read_tensors(inputs.warmup / PROXY)
    model = language.build("tiny-neox-64", vocab_size=VOCABULARY, sequence_length=tokens.shape[1], seed=1)
    model.load_state_dict({name.removeprefix("model."): value for name, value in warmed.items() if name.startswith("model.")})
    model.eval()
    with torch.inference_mode():
        logits = model(torch.from_numpy(tokens)).logits.double()
        losses = F.cross_entropy(logits[:, :-1].transpose(1, 2), torch.from_numpy(tokens[:, 1:]), reduction="none").mean(1)
    np.testing.assert_allclose(scores, -losses.numpy(), rtol=1e-5)
    assert scores.std() > 1e-4


def test_a_proxy_of_another_shape_is_an_error(inputs: SelectorInputs, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="another shape"):
        fitted(with_settings(inputs, "proxy", shape="tiny-neox-96"), "perplexity", tmp_path)
