"""The main path, in order. Read this page first.

    discover -> extract -> train_tokenizer -> pack -> prepare_validation -> check_corpus         (once per corpus)
    warm_up -> fit -> score -> fidelity -> load -> check_contamination -> check_round -> select -> materialize -> pretrain
        -> evaluate -> report -> check_target      (once per round)
    rescore -> load_scores      (any corpus by the score model of any finished round, whenever there is something new)

A stage is one plain function: it reads files, calls domain code with explicit paths, writes files. The same function runs from
Python, as one shell command (`bliss fit demo-bliss-s0 --round 1`), and as an Airflow task that submits exactly that command to
Ray. A finished stage is skipped, a killed one resumes, a changed setting on a finished one fails (see manifest.py).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from bliss_ops.config import EMBEDDED, identity
from bliss_ops.lake import Corpus, Lake, Run
from bliss_ops.launching import Launcher, launch_here
from bliss_ops.manifest import Artifact, Manifest, find_manifest, read_manifest
from bliss_ops.sharding import ShardMapper, group_shards, map_locally


@dataclass(frozen=True)
class Work:
    """How much of a stage to do here: one group of its shards (all when None), with which mapper; and who starts training workers."""

    group: tuple[int, int] | None = None  # (number from 0, number of groups)
    mapper: ShardMapper = map_locally
    launch: Launcher = launch_here

    def of(self, shards: list[int]) -> list[int]:
        return shards if self.group is None else group_shards(shards, *self.group)


EVERYTHING = Work()


# ---- once per corpus -------------------------------------------------------------------------------------------------


def discover(corpus: Corpus) -> Manifest:
    """Fix the list of source shards; the embedded source is harvested here."""
    from bliss_ops.corpus import source

    config = corpus.config
    settings = {"source": config.source, "embedded_megabytes": config.embedded_megabytes, "validation": config.validation.source}
    if EMBEDDED in (other.source for other in config.validation.others):
        settings["other_validation"] = EMBEDDED
    artifact = Artifact(corpus.lake, corpus.source, stage="discover", identity=settings)
    return artifact.produce(partial(source.discover, config))


def extract(corpus: Corpus, work: Work = EVERYTHING) -> Manifest | None:
    """Source shards to `documents/`, one to one; unusable lines go to `documents/rejects/` with their reason."""
    from bliss_ops.corpus import documents

    listing = read_manifest(corpus.source, made_by=f"bliss discover {corpus.name}")
    settings = {"max_document_megabytes": corpus.config.max_document_megabytes}
    artifact = Artifact(corpus.lake, corpus.documents, stage="extract", identity=settings, inputs=[listing])
    make_worker = partial(documents.make_worker, corpus.source, corpus.documents, corpus.config)
    return _shards(artifact, make_worker, list(range(listing.metrics["num_shards"])), work, check=documents.check)


def train_tokenizer(corpus: Corpus) -> Manifest:
    """The tokenizer the corpus is packed with: copied when one is given, else trained on the documents."""
    from bliss_ops.corpus import tokenizer

    config = corpus.config
    documents = read_manifest(corpus.documents, made_by=f"bliss extract {corpus.name}")
    settings = {"tokenizer": config.tokenizer} if config.tokenizer else {"vocab_size": config.vocab_size}
    artifact = Artifact(
        corpus.lake, corpus.tokenizer, stage="train_tokenizer", identity=settings, inputs=[] if config.tokenizer else [documents]
    )
    return artifact.produce(partial(tokenizer.train_or_copy, config, corpus.documents))


def pack(corpus: Corpus, work: Work = EVERYTHING) -> Manifest | None:
    """Documents to sequences of T tokens, end-of-text between documents, and the spans that tie the two together."""
    from bliss_ops.corpus import packing

    documents = read_manifest(corpus.documents, made_by=f"bliss extract {corpus.name}")
    tokenizer = read_manifest(corpus.tokenizer, made_by=f"bliss train-tokenizer {corpus.name}")
    settings = {"sequence_length": corpus.config.sequence_length}
    artifact = Artifact(corpus.lake, corpus.sequences, stage="pack", identity=settings, inputs=[documents, tokenizer])
    make_worker = partial(packing.make_worker, corpus.documents, corpus.tokenizer, corpus.sequences, corpus.config.sequence_length)
    return _shards(artifact, make_worker, documents.shards, work, check=packing.check)


def prepare_validation(corpus: Corpus) -> Manifest:
    """The validation set: a part that guides the score model and a held-out part that only measures."""
    from bliss_ops.corpus import validation

    tokenizer = read_manifest(corpus.tokenizer, made_by=f"bliss train-tokenizer {corpus.name}")
    listing = read_manifest(corpus.source, made_by=f"bliss discover {corpus.name}")
    settings = identity(corpus.config.validation) | {"sequence_length": corpus.config.sequence_length}
    if not settings["others"]:  # a set alone: neither is its weight of effect
        del settings["others"], settings["weight"]
    artifact = Artifact(corpus.lake, corpus.validation, stage="prepare_validation", identity=settings, inputs=[tokenizer, listing])
    return artifact.produce(partial(validation.prepare, corpus.config, corpus.source, corpus.tokenizer))


def check_corpus(corpus: Corpus) -> Manifest:
    """Hold the corpus's counts against its gates: one that fails is not announced."""
    from bliss_ops import gates

    inputs = [
        read_manifest(corpus.source, made_by=f"bliss discover {corpus.name}"),
        read_manifest(corpus.documents, made_by=f"bliss extract {corpus.name}"),
        read_manifest(corpus.sequences, made_by=f"bliss pack {corpus.name}"),
        read_manifest(corpus.validation, made_by=f"bliss prepare-validation {corpus.name}"),
    ]
    settings = identity(corpus.config.gates)
    artifact = Artifact(corpus.lake, corpus.gates, stage="check_corpus", identity=settings, inputs=inputs, replaceable=True)
    return artifact.produce(partial(gates.check_corpus, corpus))


# ---- once per round --------------------------------------------------------------------------------------------------


def warm_up(run: Run, work: Work = EVERYTHING) -> Manifest:
    """Train proxy and target on random data, once per run or for several runs; every round's proxy starts from here."""
    from bliss_ops import evaluation, rounds
    from bliss_ops.training import sharing, warmup

    rounds.check(run.config, run)
    if find_manifest(run.round(run.config.num_rounds) / "evaluation") is None:
        evaluation.check_data(run.config.evaluation)
    run = sharing.owner(run)
    settings = sharing.warmup_settings(run.config)
    artifact = Artifact(run.lake, run.warmup, stage="warm_up", identity=settings, inputs=_corpus_manifests(run))
    return artifact.produce(partial(warmup.warm_up, run, artifact.metered(work.launch)))


def fit(run: Run, round_number: int, work: Work = EVERYTHING) -> Manifest:
    """Fit the run's selector on the candidate window; for `bliss`, this is the bilevel training of the score model."""
    from bliss_ops import selectors

    config, before = run.config, run.round(round_number - 1)
    settings = {"method": config.method, "seed": config.seed, "window": selectors.window_identity(config, round_number)}
    settings |= {name: identity(getattr(config, name)) for name in selectors.load(config.method).SECTIONS}
    inputs = [*_corpus_manifests(run), read_manifest(run.warmup, made_by=f"bliss warm-up {run.name}")]
    if round_number > 1:
        inputs += [read_manifest(before / name, made_by=f"bliss run {run.config.recipe}") for name in ("selector", "pretrain")]
    artifact = Artifact(run.lake, run.round(round_number) / "selector", stage="fit", identity=settings, inputs=inputs)
    return artifact.produce(partial(selectors.fit, run, round_number, artifact.metered(work.launch)))


def score(run: Run, round_number: int, work: Work = EVERYTHING) -> Manifest | None:
    """One float32 score per candidate sequence, shard by shard."""
    from bliss_ops import scoring, selectors

    here = run.round(round_number)
    selector = read_manifest(here / "selector", made_by=f"bliss fit {run.name} --round {round_number}")
    settings = identity(run.config.scoring)
    artifact = Artifact(run.lake, here / "scores", stage="score", identity=settings, inputs=[selector])
    make_worker = partial(scoring.make_worker, run.config, run.corpus.sequences, here / "selector", here / "scores")
    shards = selectors.window(run, round_number)
    return _shards(artifact, make_worker, shards, work, check=scoring.check, in_flight=scoring.IN_FLIGHT, on_gpu=True)


def fidelity(run: Run, round_number: int) -> Manifest:
    """Hold the scores against the measured one-step influence of a few hundred held-out candidates."""
    from bliss_ops import fidelity

    config, here = run.config, run.round(round_number)
    settings = {name: identity(getattr(config, name)) for name in ("fidelity", "compute")} | {"seed": config.seed}
    inputs = [*_corpus_manifests(run), read_manifest(here / "scores", made_by=f"bliss score {run.name} --round {round_number}")]
    inputs += [find_manifest(run.round(round_number - 1) / "pretrain") or read_manifest(run.warmup, made_by=f"bliss warm-up {run.name}")]
    artifact = Artifact(run.lake, here / "fidelity", stage="fidelity", identity=settings, inputs=inputs)
    return artifact.produce(partial(fidelity.measure, run, round_number))


def load(run: Run, round_number: int) -> Manifest:
    """Load what is new into the score store and publish its snapshot (one loader at a time)."""
    from bliss_ops import store

    scores = read_manifest(run.round(round_number) / "scores", made_by=f"bliss score {run.name} --round {round_number}")
    store.sync(run)
    return scores


def check_contamination(run: Run, round_number: int, work: Work = EVERYTHING) -> Manifest | None:
    """The candidates, and rows of the validation set, that share n-grams with a task; with no tasks there is nothing to look for."""
    from bliss_ops import contamination, selectors

    config, here = run.config.evaluation, run.round(round_number)
    asked = identity(config)
    settings = {name: asked[name] for name in ("tasks", "data", "max_examples_per_task", "contamination_ngram")} if config.tasks else {}
    settings |= {"window": selectors.window_identity(run.config, round_number), "seed": run.config.seed} if config.tasks else {}
    inputs = _corpus_manifests(run) if config.tasks else []
    artifact = Artifact(run.lake, here / "contamination", stage="check_contamination", identity=settings, inputs=inputs)
    if not config.tasks:
        return artifact.produce(lambda _: ([], {}))
    make_worker = partial(contamination.make_worker, config, run.corpus.sequences, run.corpus.tokenizer, artifact.directory)
    return _shards(artifact, make_worker, selectors.window(run, round_number), work, check=contamination.make_check(run))


def check_round(run: Run, round_number: int) -> Manifest:
    """Hold the scores and what they are made from against the round's gates: nothing is selected from scores that fail."""
    from bliss_ops import gates

    here = run.round(round_number)
    inputs = [
        read_manifest(here / "scores", made_by=f"bliss score {run.name} --round {round_number}"),
        read_manifest(here / "contamination", made_by=f"bliss check-contamination {run.name} --round {round_number}"),
    ]
    if former := find_manifest(run.round(round_number - 1) / "scores"):
        inputs.append(former)
    settings: dict[str, Any] = {name: identity(getattr(run.config, name)) for name in ("gates", "selection")}
    settings |= {"batch_sequences": run.config.pretraining.batch_sequences, "exclude": run.config.evaluation.exclude_contaminated}
    artifact = Artifact(run.lake, here / "check_round", stage="check_round", identity=settings, inputs=inputs, replaceable=True)
    return artifact.produce(partial(gates.check_round, run, round_number))


def select(run: Run, round_number: int) -> Manifest:
    """The ids of the best sequences, by an exact threshold; ties go to the smaller id."""
    from bliss_ops import selection

    here = run.round(round_number)
    scores = read_manifest(here / "scores", made_by=f"bliss score {run.name} --round {round_number}")
    settings, inputs, contaminated = identity(run.config.selection), [scores], None
    if run.config.evaluation.exclude_contaminated:
        contaminated = here / "contamination"
        inputs.append(read_manifest(contaminated, made_by=f"bliss check-contamination {run.name} --round {round_number}"))
    artifact = Artifact(run.lake, here / "selection", stage="select", identity=settings, inputs=inputs)
    select_best = partial(selection.select, run.config, here / "scores", scores.shards, outputs=scores.outputs, contaminated=contaminated)
    return artifact.produce(select_best)


def materialize(run: Run, round_number: int, work: Work = EVERYTHING) -> Manifest | None:
    """The selected sequences' tokens, ready to train on."""
    from bliss_ops import selection

    here = run.round(round_number)
    selected = read_manifest(here / "selection", made_by=f"bliss select {run.name} --round {round_number}")
    sequences = read_manifest(run.corpus.sequences, made_by=f"bliss pack {run.corpus.name}")
    artifact = Artifact(run.lake, here / "subset", stage="materialize", identity={}, inputs=[selected, sequences])
    make_worker = partial(selection.make_worker, run.corpus.sequences, here / "selection", here / "subset")
    return _shards(artifact, make_worker, selected.metrics["shards"], work)


def pretrain(run: Run, round_number: int, work: Work = EVERYTHING) -> Manifest:
    """Train the target on the subset, from the previous round's checkpoint."""
    from bliss_ops.training import pretraining

    config, here = run.config, run.round(round_number)
    settings = {name: identity(getattr(config, name)) for name in ("target", "pretraining", "compute")} | {"seed": config.seed}
    inputs = [read_manifest(here / "subset", made_by=f"bliss materialize {run.name} --round {round_number}")]
    inputs += [find_manifest(run.round(round_number - 1) / "pretrain") or read_manifest(run.warmup, made_by=f"bliss warm-up {run.name}")]
    artifact = Artifact(run.lake, here / "pretrain", stage="pretrain", identity=settings, inputs=inputs)
    return artifact.produce(partial(pretraining.pretrain, run, round_number, artifact.metered(work.launch)))


def evaluate(run: Run, round_number: int) -> Manifest:
    """Held-out validation loss and perplexity of the target, and the zero-shot tasks that are set."""
    from bliss_ops import evaluation

    config, here = run.config, run.round(round_number)
    model = read_manifest(here / "pretrain", made_by=f"bliss pretrain {run.name} --round {round_number}")
    validation = read_manifest(run.corpus.validation, made_by=f"bliss prepare-validation {run.corpus.name}")
    settings = identity(config.compute)
    if config.evaluation.tasks:
        asked = identity(config.evaluation)
        settings |= {name: asked[name] for name in ("tasks", "data", "batch_sequences", "max_examples_per_task")}
    unread = ("state.safetensors",)  # weights with their optimizer, for the next round
    artifact = Artifact(run.lake, here / "evaluation", stage="evaluate", identity=settings, inputs=[model, validation], unread=unread)
    return artifact.produce(partial(evaluation.evaluate, run, round_number))


def report(run: Run, round_number: int) -> Manifest:
    """One self-contained HTML file about every round finished so far, beside the runs it is compared with."""
    from bliss_ops import report, store

    store.sync(run)
    read_manifest(run.round(round_number) / "evaluation", made_by=f"bliss evaluate {run.name} --round {round_number}")
    finished = [number for number in range(1, run.config.num_rounds + 1) if find_manifest(run.round(number) / "evaluation")]
    runs = [run, *(run.lake.run(name) for name in run.config.compare_with)]
    evaluations = [find_manifest(each.round(number) / "evaluation") for each in runs for number in finished]
    fidelities = [find_manifest(run.round(number) / "fidelity") for number in finished]
    inputs = [manifest for manifest in [*evaluations, *fidelities] if manifest]
    artifact = Artifact(run.lake, run.report, stage="report", identity={}, inputs=inputs, replaceable=True)
    return artifact.produce(partial(report.write, run, max(finished)))


def check_target(run: Run, round_number: int) -> Manifest:
    """Hold the target's validation loss against what it was before: the next round does not go on from one that got worse."""
    from bliss_ops import gates

    evaluations = [run.round(number) / "evaluation" for number in (round_number, round_number - 1)]
    inputs = [manifest for directory in evaluations if (manifest := find_manifest(directory))]
    settings, directory = identity(run.config.gates), run.round(round_number) / "check_target"
    artifact = Artifact(run.lake, directory, stage="check_target", identity=settings, inputs=inputs, replaceable=True)
    return artifact.produce(partial(gates.check_target, run, round_number))


# ---- any corpus by any round's score model ---------------------------------------------------------------------------


def rescore(run: Run, round_number: int, corpus: Corpus, work: Work = EVERYTHING) -> Manifest | None:
    """One float32 score per sequence of a corpus, by a finished round's score model: a complete set, beside all earlier ones."""
    from bliss_ops import rescoring, scoring

    model = rescoring.score_model(run, round_number)
    sequences = rescoring.check_fits(model, corpus)
    artifact = rescoring.artifact(model, corpus, sequences)
    make_worker = partial(rescoring.make_worker, run.config, corpus, run.round(round_number) / "selector", artifact.directory)
    return _shards(artifact, make_worker, sequences.shards, work, check=scoring.check, in_flight=scoring.IN_FLIGHT, on_gpu=True)


def load_scores(corpus: Corpus, name: str) -> Manifest:
    """Load scores that are no round's own into the score store and publish its snapshot (one loader at a time)."""
    from bliss_ops import store

    directory = corpus.lake.further_scores(corpus.name, name)
    scores = read_manifest(directory, made_by=f"bliss rescore RUN --round N --corpus {corpus.name}")
    store.load_further(corpus.lake, corpus.name, name)
    return scores


# ---- the list that the command line and the DAGs are made from -------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """A stage as runners see it: its function and what it needs."""

    function: Callable[..., Manifest | None]
    per_round: bool = True
    sharded: bool = False  # fans out over shards; a scheduler may map over groups of them
    trains: bool = False  # wants a GPU for itself where there is one
    launches: bool = False  # may start several training workers
    is_light: bool = False  # reads manifests alone: Airflow runs it itself, without a cluster

    @property
    def name(self) -> str:
        return self.function.__name__

    @property
    def command(self) -> str:
        """The sub-command of `bliss` that runs this stage."""
        return self.name.replace("_", "-")

    def do(self, target: Corpus | Run, round_number: int | None = None, work: Work = EVERYTHING) -> Manifest | None:
        """Run the stage on a corpus, or on one round of a run."""
        arguments = [round_number] if self.per_round else []
        return self.function(target, *arguments, *([work] if self.sharded or self.launches else []))


CORPUS_STAGES = (
    Stage(discover, per_round=False),
    Stage(extract, per_round=False, sharded=True),
    Stage(train_tokenizer, per_round=False),
    Stage(pack, per_round=False, sharded=True),
    Stage(prepare_validation, per_round=False),
    Stage(check_corpus, per_round=False, is_light=True),
)

ROUND_STAGES = (
    Stage(warm_up, per_round=False, trains=True, launches=True),
    Stage(fit, trains=True, launches=True),
    Stage(score, sharded=True),
    Stage(fidelity, trains=True),
    Stage(load),
    Stage(check_contamination, sharded=True),
    Stage(check_round, is_light=True),
    Stage(select),
    Stage(materialize, sharded=True),
    Stage(pretrain, trains=True, launches=True),
    Stage(evaluate, trains=True),
    Stage(report),
    Stage(check_target, is_light=True),
)


def ingest(lake: Lake, name: str, work: Work = EVERYTHING) -> None:
    """Every corpus stage, in this process."""
    for stage in CORPUS_STAGES:
        stage.do(lake.corpus(name), work=work)


def run_round(lake: Lake, name: str, round_number: int, work: Work = EVERYTHING) -> None:
    """Every stage of one round, in this process."""
    for stage in ROUND_STAGES:
        stage.do(lake.run(name), round_number, work)


def _shards(artifact: Artifact, make_worker: Callable[[], Any], shards: list[int], work: Work, **kwargs: Any) -> Manifest | None:
    return artifact.produce_shards(make_worker, shards, only=work.of(shards), mapper=work.mapper, **kwargs)


def _corpus_manifests(run: Run) -> list[Manifest]:
    corpus = run.corpus
    return [
        read_manifest(corpus.sequences, made_by=f"bliss pack {corpus.name}"),
        read_manifest(corpus.validation, made_by=f"bliss prepare-validation {corpus.name}"),
    ]
