"""What else the score could be: document length, the source, a handful of values. Said in numbers, and in plain words when it matters.

A score that sorts by length or by source can look excellent and select no better text; a share of ties leaves the choice to ids.
"""

import math
from dataclasses import dataclass
from typing import Any

from bliss_ops.rank_correlation import spearman
from bliss_ops.report.facts import Distribution, Facts

MOST_SEQUENCES = 200_000  # of which length is correlated: a standard error of 0.002
LENGTH_LIMIT = 0.5
SOURCE_LIMIT = 0.9
TIES_LIMIT = 0.2

# A bound number is a bigint: without the cast the remainder is one of 128 bits, 50 times slower.
# The length of a document is its tokens in all sequences; a sequence has the mean length of its tokens' documents.
LENGTHS = """
with chosen as (select sequence_id, score from candidates where hash(sequence_id) % $one_of::ubigint = 0),
     lengths as (select document_id, sum(num_tokens)::double as length from read_parquet($spans) group by document_id)
select any_value(c.score) as score, sum(p.num_tokens * l.length) / sum(p.num_tokens) as length
from chosen c join read_parquet($spans) p using (sequence_id) join lengths l using (document_id)
group by c.sequence_id order by c.sequence_id
"""
SPREAD = """
with pools as (select source, count(*) as n, avg(score::double) as mean, var_pop(score::double) as variance from candidates group by source)
select sum(n * variance) / sum(n) as within, (select var_pop(score::double) from candidates) as overall, count(*) from pools
"""


@dataclass(frozen=True)
class Biases:
    """How much of the score is explained by what it should not measure."""

    length_correlation: float  # Spearman of score and document length
    within_source_spread: float  # standard deviation inside sources over that of all scores
    variance_by_source: float  # share of the scores' variance explained by the source (eta squared)
    num_sources: int
    share_tied: float

    @property
    def summary(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in ("length_correlation", "within_source_spread", "variance_by_source")}

    def warnings(self, method: str, fidelity: dict[str, Any]) -> list[tuple[str, str]]:
        """(what is wrong, what it means and what to change) of everything that is."""
        found = []
        if fidelity["measured"] and fidelity["spearman"] < 0 and method != "random":
            value, error = fidelity["spearman"], fidelity["spearman_standard_error"]
            within = ", though within two standard errors of zero, where scores say nothing" if value > -2 * error else ""
            advice = (
                f"Sequences with a high score help less than those with a low one (fidelity {value:.2f} ± {error:.2f}{within}). Do not "
                "train on this selection: give the proxy a longer warm-up (proxy.warmup_steps), lower bilevel.score_learning_rate or "
                "take more bilevel.num_steps, and fit again."
            )
            found.append(("The scores are inverted.", advice))
        if abs(self.length_correlation) > LENGTH_LIMIT:
            kind = "long" if self.length_correlation > 0 else "short"
            advice = (
                f"Its rank correlation with document length is {self.length_correlation:+.2f}: mostly {kind} documents are kept. See "
                f"that the validation set (ingest.validation.source) does not hold {kind} documents only, and warm the proxy up for "
                "longer (proxy.warmup_steps), so that what they say counts for more."
            )
            found.append(("The score follows length.", advice))
        if self.variance_by_source > SOURCE_LIMIT:
            advice = (
                f"The source explains {self.variance_by_source:.0%} of its variance. Within a source the order means little: train the "
                "score model for longer (bilevel.num_steps) or on a larger proxy (proxy.shape), or offer one source at a time."
            )
            found.append(("The score tells sources apart, and little else.", advice))
        if self.share_tied > TIES_LIMIT:
            advice = (
                f"{self.share_tied:.0%} of the sequences share their score with another, and among those the id decides. Use the "
                "linear head (bilevel.score_head), train for longer, and look for duplicated text in the corpus."
            )
            found.append(("Ties decide.", advice))
        return found


def measure(facts: Facts, distribution: Distribution) -> Biases:
    """Length, source and ties of one round's scores."""
    one_of = math.ceil(distribution.num_sequences / MOST_SEQUENCES)
    columns = facts.con.execute(LENGTHS, {"one_of": one_of, "spans": facts.spans}).fetchnumpy()
    within, overall, num_sources = facts.con.execute(SPREAD).fetchone() or (0.0, 0.0, 0)
    share_within = within / overall if overall > 0 else 1.0  # equal scores tell no sources apart
    return Biases(
        length_correlation=spearman(columns["score"], columns["length"]),
        within_source_spread=min(1.0, share_within) ** 0.5,
        variance_by_source=max(0.0, 1 - share_within),
        num_sources=num_sources,
        share_tied=distribution.num_tied / distribution.num_sequences,
    )
