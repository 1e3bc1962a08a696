"""Rounds of a run: has the corpus data for all of them, which is asked before any work begins; and more rounds for a run that is there.

A round's candidate window is a part of a seeded permutation of the corpus's shards (selectors.window). With `window_shards` set the
part is the same however many rounds there are, so a run can be extended: nothing that is finished changes. With `window_shards` empty
every window is cut by the number of rounds, and another number would move them all.
"""

import logging
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from bliss_ops import selectors
from bliss_ops.config import RunConfig, identity, parse
from bliss_ops.lake import Corpus, Lake, Run, names_in, shard_file, write_json
from bliss_ops.manifest import Manifest, find_manifest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Window:
    """What one round has to choose from and what it keeps."""

    round_number: int
    shards: list[int]
    num_sequences: int
    num_selected: int
    num_epochs: float  # how often the pretraining goes over what is kept


def windows(config: RunConfig, corpus: Corpus, *, finished: Collection[int] = ()) -> list[Window]:
    """The windows of all rounds; those of rounds that are not `finished` are checked, for everything a user can be told before work begins.

    Raises:
        ValueError: the corpus has too few shards for that many rounds; a window has fewer sequences than the token budget, or than one
            batch of bilevel training; or its subset would be read more often than `pretraining.max_epochs`. The message says how many
            there are, how many are wanted, and what to change.
    """
    from bliss_ops import selection

    packed = find_manifest(corpus.sequences)
    if packed is None:
        raise ValueError(f"corpus {corpus.name!r} has no packed sequences yet: run `bliss ingest` first")
    cut = [selectors.window_of(config, packed.shards, number) for number in range(1, config.num_rounds + 1)]
    counts = _num_sequences_of(corpus, packed, {shard for shards in cut for shard in shards})
    found = []
    for number, shards in enumerate(cut, start=1):
        count = sum(counts[shard] for shard in shards)
        if number not in finished:
            _check(config, number, len(shards), count)
        keep = selection.num_to_keep(config, count)
        found.append(Window(number, shards, count, keep, num_epochs(config, keep)))
    return found


def num_epochs(config: RunConfig, num_selected: int) -> float:
    """How often the pretraining of a round goes over a subset of that size, its last decay branch included."""
    settings = config.pretraining
    return (settings.num_steps + settings.decay_steps) * settings.batch_sequences / num_selected


def check(config: RunConfig, run: Run) -> None:
    """Return when there is data for every round that is still to do; nothing can be said before the corpus is packed.

    Raises:
        ValueError: there is not; see `windows`.
    """
    corpus = run.lake.corpus(config.ingest.corpus)
    if not (corpus.path / "config.json").is_file() or find_manifest(corpus.sequences) is None:
        return
    numbers = range(1, config.num_rounds + 1)
    finished = {number for number in numbers if find_manifest(run.round(number) / "selection")}
    to_do = [number for number in numbers if number not in finished]
    if not to_do:
        return
    all_windows = [window for window in windows(config, corpus, finished=finished) if window.round_number in to_do]
    log.info(
        "%s: rounds %s: candidate windows of %s sequences, %s kept; the pretraining goes over them %s times",
        run.name,
        _range([float(number) for number in to_do]),
        _range([float(window.num_sequences) for window in all_windows]),
        _range([float(window.num_selected) for window in all_windows]),
        _range([window.num_epochs for window in all_windows]),
    )


def num_rounds_begun(run: Run) -> int:
    """The last round of which anything is there, 0 when there is none."""
    return max((int(name.removeprefix("round-")) for name in names_in(run.path) if re.fullmatch(r"round-\d+", name)), default=0)


def extended(lake: Lake, config: RunConfig, num_rounds: int) -> RunConfig:
    """`config` with another number of rounds.

    Args:
        lake: where the run is.
        config: of the run as it is.
        num_rounds: how many it is to have.

    Raises:
        ValueError: the windows of its rounds would move, fewer rounds than are begun, or too little data; the message says what to do.
    """
    run = lake.run(config.name)
    if num_rounds != config.num_rounds and config.window_shards is None:
        raise ValueError(
            f"run {config.name!r} cannot have {num_rounds} rounds instead of {config.num_rounds}: window_shards is empty, so all shards "
            "are divided over the rounds and another number of them would move the window of every round. Make a run of another name "
            "with window_shards set"
        )
    if num_rounds < (begun := num_rounds_begun(run)):
        raise ValueError(f"run {config.name!r} cannot have {num_rounds} rounds: round {begun} is begun already")
    changed = parse(RunConfig, config.model_dump() | {"num_rounds": num_rounds}, where=f"run {config.name}")
    check(changed, run)
    return changed


def extend(run: Run, num_rounds: int) -> RunConfig:
    """Write the run's config with another number of rounds, which must not touch what is there; returns it. See `extended`."""
    config = extended(run.lake, run.config, num_rounds)
    write_json(run.path / "config.json", config.model_dump(mode="json"))
    return config


def reconciled(run: Run, config: RunConfig) -> RunConfig:
    """`config`, for a run that may be there already with another number of rounds and the same settings otherwise.

    More rounds extend it; fewer leave it as it is, for it was extended before. Where the windows would move, or anything else differs,
    `config` is returned as it came, and is refused by whoever compares the two.
    """
    if not (run.path / "config.json").is_file():
        return config
    there = run.lake.run(run.name).config  # read anew: a `Run` keeps what it has read
    if config.window_shards is None or identity(there) | {"num_rounds": config.num_rounds} != identity(config):
        return config
    if config.num_rounds > there.num_rounds:
        extend(run, config.num_rounds)
        log.info("%s: extended from %d to %d rounds", run.name, there.num_rounds, config.num_rounds)
    elif config.num_rounds < there.num_rounds:
        log.info("%s: has %d rounds already, asked for %d: left as it is", run.name, there.num_rounds, config.num_rounds)
    return config.model_copy(update={"num_rounds": max(config.num_rounds, there.num_rounds)})


def _check(config: RunConfig, number: int, num_shards: int, count: int) -> None:
    from bliss_ops import selection

    length, settings = config.ingest.sequence_length, config.pretraining
    here = f"run {config.name!r}: the candidate window of round {number} ({num_shards} shards)"
    advice = "set a larger window_shards, or ingest more text" if config.window_shards else "lower num_rounds, or ingest more text"
    budget = config.selection.token_budget
    if budget is not None and budget > count * length:
        raise ValueError(
            f"{here} has {count:,} sequences of {length} tokens ({count * length:,} tokens), but selection.token_budget wants "
            f"{budget:,} tokens ({-(-budget // length):,} sequences): lower it, {advice}"
        )
    if count == 0:
        raise ValueError(f"{here} holds no sequence: {advice}")
    batch = config.bilevel.batch_sequences
    if "bilevel" in selectors.load(config.method).SECTIONS and count < batch:
        raise ValueError(f"{here} has {count:,} sequences, fewer than one batch of {batch:,}: lower bilevel.batch_sequences, {advice}")
    keep = selection.num_to_keep(config, count)
    epochs = num_epochs(config, keep)
    if settings.max_epochs is not None and epochs > settings.max_epochs:
        raise ValueError(
            f"{here} keeps {keep:,} of {count:,} sequences, which pretraining would go over {epochs:.2f} times; pretraining.max_epochs "
            f"is {settings.max_epochs:g}: lower pretraining.num_steps, keep more (selection), {advice}"
        )


def _num_sequences_of(corpus: Corpus, packed: Manifest, shards: set[int]) -> Mapping[int, int]:
    """Sequences of each shard: from the manifest where it says so, else from the files."""
    from bliss_ops.corpus.reading import num_sequences

    rows = {output.path: output.rows for output in packed.outputs}
    known = {shard: rows.get(shard_file(corpus.sequences, shard).name) for shard in shards}
    return {shard: num_sequences(shard_file(corpus.sequences, shard)) if count is None else count for shard, count in known.items()}


def _range(values: list[float]) -> str:
    low, high = (f"{value:,.0f}" if value == int(value) or value >= 100 else f"{value:.2f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"
