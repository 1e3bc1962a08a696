"""`bliss plan`: what a run will take, before anything runs, and plan against actual afterwards.

Counts come from the settings and the sizes of every round's window (costs.py): exact where the corpus is ingested, else assumed from
what is known of the source, and every assumption is said. Time is work divided by a rate: one that is given (a device and its model
FLOPs utilisation, or FLOP/s), or those that finished stages of the lake were measured at, FLOP/s for stages that run a model and tokens/s
for the others. Device hours are hours of one GPU, or of one training process where there is none.
"""

import json
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache

from bliss_ops import costs, rounds, selectors
from bliss_ops.config import EMBEDDED, ModelConfig, RunConfig
from bliss_ops.costs import Sizes, StageWork
from bliss_ops.lake import Corpus, Lake, Run
from bliss_ops.manifest import Manifest, find_manifest, read_manifest
from bliss_ops.speeds import Speeds

C4 = "allenai/c4/en"
C4_SHARDS, C4_DOCUMENTS = 1024, 364_868_892  # of the published training split
C4_TOKENS_PER_DOCUMENT, C4_BYTES_PER_TOKEN = 491, 4.53  # measured on 2,299 of them with the tokenizer of Pythia
EMBEDDED_SHARDS = 10  # two of each kind
LAMBADA_ROWS, LAMBADA_TOKENS_PER_ROW = 5153, 90
OTHER_VALIDATION_TOKENS = 100_000  # of guide and holdout together
TEXT_SHARE = 0.42  # of a text's bytes that its Parquet file has (measured 0.42 to 0.43)
SCORE_BYTES = 8.2  # of a scored sequence: its id and its float32 score
STATE_BYTES, WEIGHT_BYTES = 12, 4  # per parameter: weights and both moments of AdamW, or weights alone


@dataclass(frozen=True)
class StagePlan:
    """One stage over all rounds: what goes through it, what it writes, its model FLOPs, and how long one device is at it."""

    stage: str
    num_sequences: int | None = None
    num_tokens: int | None = None
    num_bytes: int | None = None
    flops: float = 0.0
    device_seconds: float | None = None  # None: no rate is known


@dataclass(frozen=True)
class Plan:
    """What a run takes, or took."""

    run: str
    method: str
    rounds: list[int]
    stages: list[StagePlan]
    num_epochs: float | None = None  # of the subset, by the pretraining of a round
    assumptions: list[str] = field(default_factory=list)

    @property
    def selection(self) -> StagePlan:
        return _sum("selection", [stage for stage in self.stages if stage.stage in costs.SELECTION])

    @property
    def total(self) -> StagePlan:
        return _sum("total", self.stages)

    @property
    def selection_share(self) -> float:
        """Of the model FLOPs of the run, those that choose its data."""
        return self.selection.flops / self.total.flops if self.total.flops else 0.0


@dataclass(frozen=True)
class Basis:
    """What a plan is made from beside the settings."""

    sizes: list[Sizes]  # by round
    token_bytes: float  # a packed token on disk
    corpus_stages: list[StagePlan] = field(default_factory=list)  # still to do
    assumptions: list[str] = field(default_factory=list)


def plan(config: RunConfig, basis: Basis, speeds: Speeds, only_rounds: Sequence[int] | None = None) -> Plan:
    """What `config` will take.

    Args:
        config: of the run.
        basis: sizes of its rounds.
        speeds: how fast each stage is.
        only_rounds: some of the rounds; all when None.
    """
    numbers = list(range(1, config.num_rounds + 1)) if only_rounds is None else list(only_rounds)
    by_stage: dict[str, list[StagePlan]] = {}
    for number in numbers:
        for name, work in costs.round_work(config, basis.sizes[number - 1], number).items():
            num_bytes = _bytes(name, config, basis, basis.sizes[number - 1])
            seconds = speeds.device_seconds(name, config.method, work)
            stage = StagePlan(name, work.num_sequences, work.num_tokens, num_bytes, work.flops, seconds)
            by_stage.setdefault(name, []).append(stage)
    stages = [_sum(name, parts) for name, parts in by_stage.items()]
    corpus_stages = [
        replace(stage, device_seconds=speeds.device_seconds(stage.stage, "", StageWork(stage.num_sequences, stage.num_tokens)))
        for stage in basis.corpus_stages
    ]
    kept = basis.sizes[numbers[-1] - 1].num_selected if numbers else 0
    num_epochs = rounds.num_epochs(config, kept) if kept else None
    return Plan(config.name, config.method, numbers, corpus_stages + stages, num_epochs, basis.assumptions)


def actual(run: Run) -> Plan:
    """What the finished stages of a run took, in the same terms.

    Raises:
        ValueError: no round of it has scores yet.
    """
    numbers = [number for number in range(1, run.config.num_rounds + 1) if find_manifest(run.round(number) / "scores")]
    if not numbers:
        raise ValueError(f"run {run.name!r} has no round with scores yet, so there is nothing to hold a plan against")
    by_stage: dict[str, list[StagePlan]] = {}
    for number in numbers:
        done = costs.recorded_work(run, number)
        taken = costs.stage_costs(run, number, done)
        for name, work in done.items():
            manifest = costs.stage_manifest(run, number, name)
            if manifest is not None and name in taken:
                stage = StagePlan(
                    name, work.num_sequences, work.num_tokens, _written(name, manifest), work.flops, taken[name].device_seconds
                )
                by_stage.setdefault(name, []).append(stage)
    return Plan(run.name, run.config.method, numbers, [_sum(name, parts) for name, parts in by_stage.items()])


def basis_of_corpus(config: RunConfig, corpus: Corpus, *, finished: Collection[int] = ()) -> Basis:
    """Exact sizes of all rounds; those that are finished are not held to what is checked before work begins.

    Raises:
        ValueError: the corpus is not ingested, or has too little data for the run (rounds.py).
    """
    packed = read_manifest(corpus.sequences, made_by=f"bliss ingest {corpus.name}")
    validation = find_manifest(corpus.validation)
    known = validation.metrics if validation else {}
    tokenizer = read_manifest(corpus.tokenizer, made_by=f"bliss train-tokenizer {corpus.name}")
    num_bytes = sum(output.bytes for output in packed.outputs if not output.path.startswith("spans/"))
    sizes = [
        Sizes(
            vocab_size=int(tokenizer.metrics["vocab_size"]),
            num_candidates=window.num_sequences,
            num_selected=window.num_selected,
            num_guide_rows=int(known.get("num_guide_rows", 0)),
            num_guide_tokens=int(known.get("num_guide_tokens", 0)),
            num_holdout_tokens=int(known.get("num_holdout_tokens", 0)),
        )
        for window in rounds.windows(config, corpus, finished=finished)
    ]
    return Basis(sizes, num_bytes / max(1, packed.metrics["num_sequences"] * corpus.config.sequence_length))


def basis_of_recipe(config: RunConfig, num_sequences: int | None = None) -> Basis:
    """Assumed sizes, for a corpus that is not there.

    Args:
        config: of the run.
        num_sequences: candidate sequences of a round; None where they follow from the source.

    Raises:
        ValueError: nothing is known of the source; the message says what to give.
    """
    ingest, length = config.ingest, config.ingest.sequence_length
    assumptions, corpus_stages = [], []
    vocab_size = 50_277 if ingest.tokenizer else ingest.vocab_size
    token_bytes = 0.82 + 0.12 * (math.log2(vocab_size) - 9)  # measured: 0.82 with a vocabulary of 512, 1.60 with 50,277
    if num_sequences is None:
        per_shard, num_shards, bytes_per_token, said = _known_source(config)
        assumptions.append(said)
        num_sequences = per_shard * (config.window_shards or num_shards // config.num_rounds) // length
        wanted = (config.window_shards or 0) * config.num_rounds
        if wanted > num_shards:
            raise ValueError(f"{config.num_rounds} windows of {config.window_shards} shards are {wanted}; the source has {num_shards}")
        num_tokens = per_shard * num_shards
        text_bytes = round(num_tokens * bytes_per_token * TEXT_SHARE)
        corpus_stages = [
            StagePlan("extract", None, num_tokens, text_bytes),
            StagePlan("pack", num_tokens // length, num_tokens, round(num_tokens * token_bytes)),
        ]
        assumptions.append(f"on disk: {TEXT_SHARE:.0%} of the text's bytes, {token_bytes:.2g} bytes a packed token")
    keep = _num_selected(config, num_sequences)
    if "lambada" in (ingest.validation.source or "").lower():
        rows, tokens = LAMBADA_ROWS, LAMBADA_ROWS * LAMBADA_TOKENS_PER_ROW
        assumptions.append(f"validation: {rows:,} passages of {LAMBADA_TOKENS_PER_ROW} tokens")
    else:
        rows, tokens = max(2, OTHER_VALIDATION_TOKENS // length), OTHER_VALIDATION_TOKENS
        assumptions.append(f"validation: {tokens:,} tokens")
    held = ingest.validation.holdout_fraction
    size = Sizes(vocab_size, num_sequences, keep, round(rows * (1 - held)), round(tokens * (1 - held)), round(tokens * held))
    return Basis([size] * config.num_rounds, token_bytes, corpus_stages, assumptions)


def plan_of(lake: Lake, config: RunConfig, speeds: Speeds, num_sequences: int | None = None, *, is_named: bool = False) -> Plan:
    """The plan of a run that need not be configured.

    Args:
        lake: where its corpus may be: then the sizes are exact, unless `num_sequences` is given.
        config: of the run.
        speeds: how fast each stage is.
        num_sequences: candidate sequences of a round.
        is_named: the corpus was asked for by name, so it has to be there.
    """
    corpus = lake.corpus(config.ingest.corpus)
    if num_sequences is None and (is_named or ((corpus.path / "config.json").is_file() and find_manifest(corpus.sequences))):
        exact = config.model_copy(update={"ingest": corpus.config})
        return plan(exact, basis_of_corpus(exact, corpus), speeds)
    return plan(config, basis_of_recipe(config, num_sequences), speeds)


def against_actual(run: Run, speeds: Speeds) -> tuple[Plan, Plan]:
    """The plan of the run's rounds that have scores, from its corpus, and what they took. Stages that are not finished are in neither."""
    took = actual(run)
    planned = plan(run.config, basis_of_corpus(run.config, run.corpus, finished=took.rounds), speeds, took.rounds)
    finished = {stage.stage for stage in took.stages}
    return replace(planned, stages=[stage for stage in planned.stages if stage.stage in finished]), took


def _known_source(config: RunConfig) -> tuple[int, int, float, str]:
    """Tokens per shard, shards, bytes of text per token, and the sentence that says so."""
    ingest = config.ingest
    if C4 in ingest.source:
        documents = C4_DOCUMENTS / C4_SHARDS
        tokens = round(documents * C4_TOKENS_PER_DOCUMENT)
        said = (
            f"C4: {C4_SHARDS:,} shards of {documents:,.0f} documents; {C4_TOKENS_PER_DOCUMENT} tokens a document (measured on 2,299 of "
            f"them with the tokenizer of Pythia): {tokens / 1e9:.3f}B tokens a shard"
        )
        return tokens, C4_SHARDS, C4_BYTES_PER_TOKEN, said
    if ingest.source == EMBEDDED:
        bytes_per_token = C4_BYTES_PER_TOKEN if ingest.tokenizer else 1.8 + 0.5 * (math.log2(ingest.vocab_size) - 9)
        tokens = round(1e6 * ingest.embedded_megabytes / bytes_per_token / EMBEDDED_SHARDS)
        said = (
            f"embedded corpus: {ingest.embedded_megabytes:g} MB in {EMBEDDED_SHARDS} shards, {bytes_per_token:.2g} bytes a token "
            "(measured 1.8 with a vocabulary of 512, 2.8 with 2,048)"
        )
        return tokens, EMBEDDED_SHARDS, bytes_per_token, said
    raise ValueError(
        f"nothing is known of the size of {ingest.source!r}: ingest it first (`bliss ingest`) and plan exactly, or give --num-sequences, "
        "the candidate sequences of a round"
    )


def _num_selected(config: RunConfig, num_candidates: int) -> int:
    from bliss_ops import selection

    return selection.num_to_keep(config, num_candidates)


def _bytes(stage: str, config: RunConfig, basis: Basis, sizes: Sizes) -> int | None:
    """What a stage leaves on disk; None where it is next to nothing, or not told by the settings."""

    def parameters(model: ModelConfig) -> int:
        return _num_parameters(json.dumps(model.definition), sizes.vocab_size)

    length = config.ingest.sequence_length
    if stage in (costs.WARM_UP_PROXY, costs.WARM_UP_TARGET):
        model = config.proxy if stage == costs.WARM_UP_PROXY else config.target
        return parameters(model) * (STATE_BYTES if model.warmup_steps else WEIGHT_BYTES)
    if stage == "fit" and selectors.uses_proxy(config.method):
        return parameters(config.proxy) * WEIGHT_BYTES
    if stage in ("score", "select"):
        return round(SCORE_BYTES * (sizes.num_candidates if stage == "score" else sizes.num_selected))
    if stage == "materialize":
        return round(sizes.num_selected * length * basis.token_bytes)
    if stage == "pretrain":
        num_models = 1 + len(config.pretraining.decay_at_steps)
        return parameters(config.target) * (STATE_BYTES + num_models * WEIGHT_BYTES)
    return None


@cache
def _num_parameters(definition: str, vocab_size: int) -> int:
    """Of a model as JSON; counting them takes a second, and is done for every stage, round and method."""
    from bliss_ops.models.language import num_parameters

    return num_parameters(json.loads(definition), vocab_size=vocab_size)


def _written(stage: str, manifest: Manifest) -> int:
    """Bytes of an artifact; the warm-up's two models are two stages here."""
    is_proxy = {costs.WARM_UP_PROXY: True, costs.WARM_UP_TARGET: False}.get(stage)
    return sum(output.bytes for output in manifest.outputs if is_proxy is None or output.path.startswith("proxy") == is_proxy)


def _sum(name: str, stages: Sequence[StagePlan]) -> StagePlan:
    """Several together; seconds are those that are known, None when that is nothing."""

    def added(values: Iterator[int | None]) -> int | None:
        known = [value for value in values if value is not None]
        return sum(known) if known else None

    seconds = [stage.device_seconds for stage in stages if stage.device_seconds is not None]
    return StagePlan(
        name,
        added(stage.num_sequences for stage in stages),
        added(stage.num_tokens for stage in stages),
        added(stage.num_bytes for stage in stages),
        sum(stage.flops for stage in stages),
        sum(seconds) if any(seconds) or len(seconds) == len(stages) else None,
    )
