"""Re-scoring: scores of any ingested corpus by the score model of any finished round.

A *score model* is a round's selector that reads the text. It can score a corpus whose sequences it can read: tokens of the same
tokenizer (the same tokenizer.json, byte for byte), sequences of the same length. Such scores are a complete set over all shards of
the corpus, in `scores/<corpus>/<name>`; the name ends with a fingerprint of model and sequences, so re-scoring adds and never
overwrites. A corpus whose every shard was scored in the model's own round already has that set and is not scored twice.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from upath import UPath

from bliss_ops.config import RunConfig, identity
from bliss_ops.lake import Corpus, Lake, Run, names_in, shard_file
from bliss_ops.manifest import Artifact, Manifest, find_manifest, read_manifest
from bliss_ops.selectors import selector_of
from bliss_ops.sharding import ShardRecord, Worker

log = logging.getLogger(__name__)

RUN_CHARACTERS = 55  # of the run's name in the name of the scores, which has 80
FINGERPRINT_CHARACTERS = 8
TOKENIZER_FILE = "tokenizer.json"


@dataclass(frozen=True)
class ScoreModel:
    """The selector of one finished fit, of a method that reads the text."""

    run: Run
    round_number: int
    selector: Manifest


@dataclass(frozen=True)
class Pair:
    """A corpus and a score model: how much of the one the other has yet to score, or why it cannot."""

    corpus: str
    run: str
    round: int
    name: str  # of the scores; empty where the two do not fit
    num_shards: int
    num_missing: int
    num_groups: int  # groups of shards that the run's recipe asks the scheduler to map over
    reason: str = ""  # why the model cannot score the corpus


def reads_text(method: str) -> bool:
    """Whether scores of the method say something about a text it has not seen."""
    return selector_of(method) != "random"


def artifact(model: ScoreModel, corpus: Corpus, sequences: Manifest) -> Artifact:
    """`scores/<corpus>/<run>-round-NN-<fingerprint>`: these scores of the corpus by this model, and of no other content."""
    config = model.run.config
    settings = identity(config.scoring) | {
        "run": config.name,
        "round": model.round_number,
        "recipe": config.recipe,
        "method": config.method,
        "seed": config.seed,
    }

    def at(name: str) -> Artifact:
        directory = corpus.lake.further_scores(corpus.name, name)
        return Artifact(corpus.lake, directory, stage="rescore", identity=settings, inputs=[model.selector, sequences])

    prefix = f"{config.name[:RUN_CHARACTERS]}-round-{model.round_number:02d}"
    return at(f"{prefix}-{at(prefix).fingerprint[:FINGERPRINT_CHARACTERS]}")  # the fingerprint does not depend on the directory


def make_worker(config: RunConfig, corpus: Corpus, selector: UPath, directory: UPath) -> Worker:
    """The scoring worker of `scoring.make_worker` for any corpus, whose files may be older than anyone remembers.

    Raises (the worker):
        ValueError: a shard is not as long as it was when it was packed; the message says how to make it again.
    """
    from bliss_ops.scoring import make_worker

    manifest = read_manifest(corpus.sequences, made_by=f"bliss pack {corpus.name}")
    num_bytes = {output.path: output.bytes for output in manifest.outputs}
    score = make_worker(config, corpus.sequences, selector, directory)

    def score_shard(shard: int) -> ShardRecord:
        file = shard_file(corpus.sequences, shard)
        found = file.stat().st_size if file.is_file() else 0
        if found != num_bytes[file.name]:
            raise ValueError(
                f"{file} is cut off or missing ({found} of {num_bytes[file.name]} bytes): `bliss pack {corpus.name}` makes it again"
            )
        return score(shard)

    return score_shard


def check_fits(model: ScoreModel, corpus: Corpus) -> Manifest:
    """The manifest of the corpus's sequences, which the model can read.

    Raises:
        ValueError: the corpus is not ingested, or has another tokenizer or sequence length than the model; the message names what
            differs and how to ingest the corpus so that it fits.
    """
    sequences = read_manifest(corpus.sequences, made_by=f"bliss pack {corpus.name}")
    run, own = model.run, model.run.corpus
    if corpus.name == own.name:
        theirs, what = sequences, f"{corpus.name!r} was ingested again since the model was fitted"
    else:
        theirs = read_manifest(own.sequences, made_by=f"bliss pack {own.name}")
        what = f"{own.name!r}, the model's own corpus, was ingested again since: which tokenizer the model reads is not known any more"
    if model.selector.inputs.get(theirs.artifact) != theirs.digest:
        raise ValueError(f"{_title(model)} cannot score {corpus.name!r}: {what}. Fit a new run on the corpus as it is now")
    differences = []
    if (length := own.config.sequence_length) != corpus.config.sequence_length:
        differences.append(f"its sequences have {corpus.config.sequence_length} tokens, the model reads {length}")
    if _tokenizer_sha256(own) != _tokenizer_sha256(corpus):
        differences.append(f"its tokenizer ({corpus.tokenizer_name}) is another one than the model's ({own.tokenizer_name} of {own.name})")
    if differences:
        raise ValueError(
            f"{_title(model)} cannot score {corpus.name!r}: {'; '.join(differences)}. Ingest the text once more, under another name, with\n"
            f"  bliss ingest {corpus.config.source} --corpus {corpus.name}-for-{run.config.recipe} "
            f"--tokenizer {own.tokenizer / TOKENIZER_FILE} --set ingest.sequence_length={length}"
        )
    return sequences


def score_model(run: Run, round_number: int | None = None) -> ScoreModel:
    """The score model of a round, of the last one that has finished its fit when no round is named.

    Raises:
        ValueError: the round has no finished fit, or the method reads no text.
    """
    if not reads_text(run.config.method):
        raise ValueError(f"run {run.name!r} is of the method {run.config.method!r}, which reads no text: there is nothing to score with")
    if round_number is not None:
        made_by = f"bliss fit {run.name} --round {round_number}"
        return ScoreModel(run, round_number, read_manifest(run.round(round_number) / "selector", made_by=made_by))
    models = list(_finished_fits(run))
    if not models:
        raise ValueError(f"run {run.name!r} has no finished fit yet: run `bliss fit {run.name} --round 1` first")
    return models[-1]


def score_models(lake: Lake, round_number: int | None = None) -> list[ScoreModel]:
    """Every score model of the lake (of one round of each run when that is named), the newest first."""
    models = []
    for name in lake.run_names():
        run = lake.run(name)
        try:
            if reads_text(run.config.method):
                models += [model for model in _finished_fits(run) if round_number in (None, model.round_number)]
        except ValueError as error:
            log.warning("run %s is left out: %s", name, error)
    return sorted(models, key=lambda model: (model.selector.finished_at, model.run.name, model.round_number), reverse=True)


def pending(
    lake: Lake, *, corpora: Sequence[str] | None = None, runs: Sequence[str] | None = None, round_number: int | None = None
) -> list[Pair]:
    """The pairs of corpus and score model that are not yet scored, or in part, and those that cannot be.

    Args:
        lake: where to look.
        corpora: the corpora; every ingested one of the lake when None.
        runs: their score models, the latest of each; None takes for each corpus the newest score model that fits it.
        round_number: an older round's score model instead of the latest.

    Raises:
        ValueError: a named run has no such score model, or a named corpus is not in the lake.
    """
    named = None if runs is None else [score_model(lake.run(name), round_number) for name in dict.fromkeys(runs)]
    models = score_models(lake, round_number) if named is None else named
    for name in corpora or ():
        _ = lake.corpus(name).config
    found = []
    for name in lake.corpus_names() if corpora is None else dict.fromkeys(corpora):
        pairs = [_pair(model, lake.corpus(name)) for model in models] if named is not None else _first_fitting(models, lake.corpus(name))
        found += [pair for pair in pairs if pair.reason or pair.num_missing]
    return found


def _first_fitting(models: Sequence[ScoreModel], corpus: Corpus) -> list[Pair]:
    """The newest model that fits; where none does, the newest one and why it does not."""
    misfits = []
    for model in models:
        pair = _pair(model, corpus)
        if not pair.reason:
            return [pair]
        misfits.append(pair)
    return misfits[:1]


def _pair(model: ScoreModel, corpus: Corpus) -> Pair:
    config = model.run.config
    try:
        sequences = check_fits(model, corpus)
    except ValueError as error:
        return Pair(corpus.name, model.run.name, model.round_number, "", 0, 0, config.scoring.num_groups, str(error))
    scores = artifact(model, corpus, sequences)
    return Pair(
        corpus=corpus.name,
        run=model.run.name,
        round=model.round_number,
        name=scores.directory.name,
        num_shards=len(sequences.shards),
        num_missing=0 if _is_scored_by_its_round(model, corpus, sequences) else _num_missing(scores, sequences),
        num_groups=config.scoring.num_groups,
    )


def _num_missing(scores: Artifact, sequences: Manifest) -> int:
    """Shards without a record: one listing, whatever their number."""
    if find_manifest(scores.directory) is not None:
        return 0
    done = set(names_in(scores.directory / "_shards"))
    return sum(f"shard-{shard:05d}.json" not in done for shard in sequences.shards)


def _is_scored_by_its_round(model: ScoreModel, corpus: Corpus, sequences: Manifest) -> bool:
    """Whether the model's own round has scored every shard of the corpus."""
    if corpus.name != model.run.corpus.name:
        return False
    scores = find_manifest(model.run.round(model.round_number) / "scores")
    return scores is not None and scores.shards == sequences.shards and model.selector.digest in scores.inputs.values()


def _finished_fits(run: Run) -> Iterator[ScoreModel]:
    for round_number in range(1, run.config.num_rounds + 1):
        if selector := find_manifest(run.round(round_number) / "selector"):
            yield ScoreModel(run, round_number, selector)


def _tokenizer_sha256(corpus: Corpus) -> str:
    manifest = read_manifest(corpus.tokenizer, made_by=f"bliss train-tokenizer {corpus.name}")
    return next(output.sha256 for output in manifest.outputs if output.path == TOKENIZER_FILE)


def _title(model: ScoreModel) -> str:
    return f"the score model of {model.run.name} round {model.round_number}"
