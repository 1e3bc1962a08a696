"""The scores of a round by document: the best and worst of them, by domain, by length, and the texts of chosen sequences.

A document's score is the mean over its tokens. Only what is shown becomes Python objects, and only those texts are read.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from bliss_ops.corpus.texts import read_documents
from bliss_ops.lake import shard_file
from bliss_ops.report.charts import Band
from bliss_ops.report.facts import Facts
from bliss_ops.sharding import ROWS_PER_SHARD

NUM_DOCUMENTS = 10
NUM_DOMAINS = 12
EXAMPLES_PER_DECILE = 3
EXAMPLES_PER_SIDE = 5
EXCERPT_CHARACTERS = 600
_EMPTY_LINES = re.compile(r"\n\s*\n\s*\n")

DOCUMENTS = """
create table document_facts as
select p.document_id, sum(c.score * p.num_tokens) / sum(p.num_tokens) as score, sum(p.num_tokens)::bigint as num_tokens,
       coalesce(sum(p.num_tokens) filter (where c.selected), 0)::bigint as num_selected_tokens
from read_parquet($spans) p join candidates c using (sequence_id) group by p.document_id
"""
# Documents packed into one sequence share its score: the longest of them stands for all.
DISTINCT_DOCUMENTS = """
create table distinct_documents as
select document_id, score, num_tokens from document_facts
qualify row_number() over (partition by score order by num_tokens desc, document_id) = 1
"""
BEST = "select * from distinct_documents order by num_tokens >= $enough desc, score desc, document_id limit $limit"
WORST = "select * from distinct_documents order by num_tokens >= $enough desc, score, document_id limit $limit"
DOMAINS = """
create table domain_facts as
select coalesce(d.domain, 'unknown') as name, sum(f.score * f.num_tokens) / sum(f.num_tokens) as score, count(*) as num_documents,
       sum(f.num_tokens)::bigint as num_tokens, sum(f.num_selected_tokens) / sum(f.num_tokens) as share_selected
from document_facts f join read_parquet($documents) d using (document_id) group by name
"""
COUNT_DOMAINS = "select count(*), count(*) filter (where num_tokens >= $enough) from domain_facts"
BEST_DOMAINS = "select * from domain_facts where num_tokens >= $enough order by score desc, name limit $limit"
WORST_DOMAINS = "select * from domain_facts where num_tokens >= $enough order by score, name limit $limit"
LENGTHS = """
select floor(log2(num_tokens))::integer as power, count(*), quantile_cont(score, [0.1, 0.5, 0.9]), avg(score)
from document_facts group by power order by power
"""
# Examples are chosen by a hash of the id: a sample that nobody picked, and the same one every time.
BOUNDARIES = "select quantile_disc(score, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]) from candidates"
DECILES = """
select 10 - len(list_filter($boundaries, lambda boundary: score > boundary)) as decile, min(score), max(score), avg(score::double),
       count(*), count(*) filter (where selected), arg_min({'id': sequence_id, 'score': score}, hash(sequence_id), $limit)
from candidates group by decile order by decile
"""
SIDES = """
select selected, arg_min({'id': sequence_id, 'score': score}, hash(sequence_id), $limit) from candidates group by selected order by selected
"""
LONGEST_PIECES = """
select sequence_id, arg_max(document_id, num_tokens) from read_parquet($spans)
where sequence_id in (select unnest($ids)) group by sequence_id order by sequence_id
"""


@dataclass(frozen=True)
class Document:
    """One document as it is shown."""

    document_id: int
    score: float
    num_tokens: int | None  # None: shown for one of its sequences
    source: str
    url: str
    excerpt: str


@dataclass(frozen=True)
class Domain:
    name: str
    score: float
    num_documents: int
    num_tokens: int
    share_selected: float


@dataclass(frozen=True)
class Leaderboard:
    """Domains by score, of those with enough tokens for their mean to say something."""

    best: list[Domain]
    worst: list[Domain]
    num_domains: int
    num_ranked: int
    enough_tokens: int


@dataclass(frozen=True)
class Decile:
    """A tenth of the sequences; 1 is the best. `examples` are the documents that fill most of a few of its sequences."""

    number: int
    lowest: float
    highest: float
    mean: float
    num_sequences: int
    num_selected: int
    examples: list[Document]


class DocumentFacts:
    """What a round's scores say about documents."""

    def __init__(self, facts: Facts) -> None:
        self.facts, self.corpus = facts, facts.corpus
        self.sequence_length = self.corpus.config.sequence_length
        facts.con.execute(DOCUMENTS, {"spans": facts.spans})

    def extremes(self) -> tuple[list[Document], list[Document]]:
        """The documents with the highest and the lowest score, of those with at least half a sequence of tokens."""
        self.facts.con.execute(DISTINCT_DOCUMENTS)
        limits = {"enough": self.sequence_length // 2, "limit": NUM_DOCUMENTS}
        best, worst = (self.facts.con.execute(query, limits).fetchall() for query in (BEST, WORST))
        return self._documents(best), self._documents(worst)

    def leaderboard(self) -> Leaderboard:
        """The best and the worst domains, of those with at least four sequences of tokens."""
        con = self.facts.con
        con.execute(DOMAINS, {"documents": self.facts.documents_files})
        limits = {"enough": 4 * self.sequence_length}
        num_domains, num_ranked = con.execute(COUNT_DOMAINS, limits).fetchone() or (0, 0)
        shown = min(NUM_DOMAINS, (num_ranked + 1) // 2)  # no domain is on both sides
        best = [Domain(*row) for row in con.execute(BEST_DOMAINS, limits | {"limit": shown}).fetchall()]
        worst = [Domain(*row) for row in con.execute(WORST_DOMAINS, limits | {"limit": min(shown, num_ranked - shown)}).fetchall()]
        return Leaderboard(best, worst, num_domains, num_ranked, limits["enough"])

    def lengths(self) -> list[Band]:
        """The spread of scores among documents of each length, by powers of two."""
        rows = self.facts.con.execute(LENGTHS).fetchall()
        return [Band(_range(1 << power, 2 << power), count, low, middle, high, mean) for power, count, (low, middle, high), mean in rows]

    def deciles(self) -> list[Decile]:
        """Tenths of the sequences by score, with a few examples each. Scores that are tied share a decile."""
        (boundaries,) = self.facts.con.execute(BOUNDARIES).fetchone() or ([],)
        rows = self.facts.con.execute(DECILES, {"boundaries": boundaries, "limit": EXAMPLES_PER_DECILE}).fetchall()
        shown = self._sequences([example for row in rows for example in row[-1]])
        return [
            Decile(number, lowest, highest, mean, count, selected, [shown[example["id"]] for example in examples if example["id"] in shown])
            for number, lowest, highest, mean, count, selected, examples in rows
        ]

    def sides(self) -> tuple[list[Document], list[Document]]:
        """A sample of the selected sequences and one of those left out, each as the document that fills most of it."""
        rows = dict(self.facts.con.execute(SIDES, {"limit": EXAMPLES_PER_SIDE}).fetchall())
        shown = self._sequences([example for examples in rows.values() for example in examples])
        chosen, rest = ([shown[example["id"]] for example in rows.get(side, []) if example["id"] in shown] for side in (True, False))
        return chosen, rest

    def _sequences(self, examples: list[dict[str, Any]]) -> dict[int, Document]:
        """By sequence id, the document that fills most of the sequence, with the sequence's score."""
        shards = sorted({example["id"] // ROWS_PER_SHARD for example in examples})
        spans = [str(shard_file(self.corpus.sequences / "spans", shard)) for shard in shards]
        ids = [example["id"] for example in examples]
        pieces = dict(self.facts.con.execute(LONGEST_PIECES, {"spans": spans, "ids": ids}).fetchall()) if ids else {}
        rows = [(pieces[example["id"]], example["score"], None) for example in examples if example["id"] in pieces]
        return dict(zip([example["id"] for example in examples if example["id"] in pieces], self._documents(rows), strict=True))

    def _documents(self, rows: Iterable[tuple[int, float, int | None]]) -> list[Document]:
        """(document_id, score, num_tokens) with source, url and the beginning of the text."""
        rows = list(rows)
        texts = read_documents(self.corpus, {row[0] for row in rows}, most_characters=EXCERPT_CHARACTERS)
        shown = []
        for document_id, score, num_tokens in rows:
            text = texts[document_id]
            excerpt = _printable(text.text.strip()) + ("\N{HORIZONTAL ELLIPSIS}" if text.is_cut else "")
            shown.append(Document(document_id, score, num_tokens, text.source, text.url, excerpt))
        return shown


def _range(low: int, high: int) -> str:
    """From one power of two to another, the unit once where both have the same: 512 to 1k, 1 to 2k."""
    first, last = _size(low), _size(high)
    return f"{first[:-1] if first[-1] == last[-1] in 'kM' else first}\N{EN DASH}{last}"


def _size(tokens: int) -> str:
    """A power of two as people write it: 512, 4k, 1M."""
    for unit, letter in ((1 << 20, "M"), (1 << 10, "k")):
        if tokens >= unit:
            return f"{tokens // unit}{letter}"
    return str(tokens)


def _printable(text: str) -> str:
    """Without runs of empty lines; control characters have no place in HTML, so a sign shows where one was."""
    shown = "".join(character if character in "\n\t" or ord(character) >= 32 else "\N{REPLACEMENT CHARACTER}" for character in text)
    return _EMPTY_LINES.sub("\n\n", shown)
