"""Score fidelity: on a few hundred held-out candidates, is a higher score really a larger influence on the validation loss?

Influence is measured, not estimated: one AdamW step on one sequence, validation loss before minus after (training/influence.py). The
model that is probed is the state the round starts from, so the question is the one the score was asked: what helps *now*? Probes come
from beyond what the method itself has learned from. 256 probes tell a Spearman of 0.15 from none.
"""

import logging
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from bliss_ops import rank_correlation, schemas, selectors
from bliss_ops.config import RunConfig
from bliss_ops.lake import Run, remove, shard_file, write_parquet
from bliss_ops.sharding import ROWS_PER_SHARD, Metrics

if TYPE_CHECKING:
    from bliss_ops.training.starting import StartingModel

log = logging.getLogger(__name__)

INFLUENCES = "influences.parquet"
MOST_POSITIONS = 1 << 16  # of the stream that probes are drawn from: at most five blocks have to be read for them


def probe_model(run: Run, round_number: int) -> "StartingModel":
    """The state the round starts from; a proxy in the warm-up serves methods that need none themselves, where runs share one."""
    from bliss_ops.training import sharing
    from bliss_ops.training.starting import starting_model

    before = run.round(round_number - 1) / "pretrain" if round_number > 1 else run.warmup
    warmed = sharing.owner(run).config
    config = run.config.model_copy(update={"proxy": warmed.proxy})
    return starting_model(config, round_number, warmup=run.warmup, reference=before, has_proxy=selectors.uses_proxy(warmed.method))


def measure(run: Run, round_number: int, directory: UPath) -> tuple[list[str], Metrics]:
    """Write `influences.parquet` (sequence_id, influence, score) of the round's probes; their Spearman goes to the metrics.

    Raises:
        ValueError: a loss is not finite.
    """
    from bliss_ops.corpus import tokenizer, validation
    from bliss_ops.corpus.reading import SequenceReader
    from bliss_ops.training.probing import MEASURED, measured_influences
    from bliss_ops.training.starting import restored

    config, settings = run.config, run.config.fidelity
    model = probe_model(run, round_number)
    if model.path is None:
        log.info("fidelity %s round %d: not measured, %s", run.name, round_number, model.reason)
        return [], {"measured": False, "reason": model.reason}
    window = selectors.window(run, round_number)
    candidates = SequenceReader([shard_file(run.corpus.sequences, shard) for shard in window])
    num_read = num_positions_read(config, candidates.num_sequences)
    positions = probe_positions(candidates.num_sequences, settings.num_probes, num_read or 0, config.seed)
    probes = [candidates.batch(int(position), 1, config.seed) for position in positions]
    sequence_ids_M, probes_MT = (np.concatenate(column) for column in zip(*probes, strict=True))
    guide = validation.read(run.corpus.validation, "guide")
    rows = np.sort(np.random.default_rng([config.seed, 0x66]).permutation(len(guide))[: settings.validation_rows])

    state = restored(model, config, tokenizer.vocab_size(run.corpus), learning_rate=settings.learning_rate)
    title = f"fidelity {run.name} round {round_number}"
    found = measured_influences(state, probes_MT, guide.take(rows), directory=directory, title=title, section="fidelity")
    influence_M = found.influence_M
    score_M = scores_of(run.round(round_number) / "scores", sequence_ids_M)
    columns = {"sequence_id": sequence_ids_M, "influence": influence_M, "score": score_M}
    write_parquet(directory / INFLUENCES, pa.table(columns, schema=schemas.INFLUENCES).sort_by("sequence_id"))
    remove(directory / MEASURED)  # the table has them
    spearman = rank_correlation.spearman(score_M, influence_M)
    error = rank_correlation.spearman_standard_error(score_M, influence_M, seed=config.seed)
    log.info(
        "fidelity %s round %d: Spearman of score and influence %+.3f +- %.3f on %d probes of the %s (%s)",
        run.name,
        round_number,
        spearman,
        error,
        len(influence_M),
        model.name,
        model.config.shape,
    )
    return [INFLUENCES], {
        "measured": True,
        "spearman": spearman,
        "spearman_standard_error": error,
        "num_probes": len(influence_M),
        "num_seen": None if num_read is None else int((positions < num_read).sum()),
        "model": model.name,
        "shape": model.config.shape,
        "validation_loss": found.loss,
        "mean_influence": float(influence_M.mean()),
        "momentum_influence": found.momentum,
    }


def num_positions_read(config: RunConfig, num_candidates: int) -> int | None:
    """Positions of the candidate stream, from its beginning, whose influences the method learns from; None where it learns from none."""
    sections = selectors.load(config.method).SECTIONS
    if "mates" in sections:
        return min(config.mates.num_probes, num_candidates)
    if "bilevel" not in sections:
        return None
    return config.bilevel.num_steps * config.bilevel.num_inner_steps * config.bilevel.batch_sequences


def probe_positions(num_sequences: int, num_probes: int, num_read: int, seed: int) -> np.ndarray:
    """Positions of the first epoch to probe, ascending: a seeded draw from those past `num_read`, as far as there are enough.

    Not simply the last ones: the end of an epoch holds the few row groups that were left over, that is one or two sources.
    """
    begin = max(0, min(num_read, num_sequences - num_probes), num_sequences - MOST_POSITIONS)
    generator = np.random.default_rng([seed, 0x70])
    return np.sort(begin + generator.permutation(num_sequences - begin)[:num_probes])


def scores_of(scores: UPath, sequence_ids_M: np.ndarray) -> np.ndarray:
    """The scores of these sequences, in this order, from the round's score shards."""
    score_M = np.empty(len(sequence_ids_M), np.float32)
    shard_M = sequence_ids_M // ROWS_PER_SHARD
    for shard in np.unique(shard_M):
        with shard_file(scores, int(shard)).open("rb") as file:
            table = pq.read_table(file, schema=schemas.SCORES).sort_by("sequence_id")
        wanted = shard_M == shard
        at = np.searchsorted(table["sequence_id"].to_numpy(), sequence_ids_M[wanted])
        score_M[wanted] = table["score"].to_numpy()[at]
    return score_M
