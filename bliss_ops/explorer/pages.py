"""What each page shows: facts of the snapshot, text of the lake, figures; a function a page, the words are in `templates/`."""

import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from bliss_ops import queries
from bliss_ops.corpus.texts import DocumentText, iter_documents, read_documents
from bliss_ops.explorer import facts, figures
from bliss_ops.explorer.snapshots import Row, Snapshots, rows
from bliss_ops.lake import Lake
from bliss_ops.names import quoted_text
from bliss_ops.report.curves import read_rows
from bliss_ops.report.outer_loop import training_charts
from bliss_ops.sharding import ROWS_PER_SHARD

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

Page = dict[str, Any]  # what a template is filled with

RUNS_PER_PAGE = 40
EXCERPT_CHARACTERS = 6_000
DOCUMENT_CHARACTERS = 200_000
MOST_SOURCES_BY_ROUND = 40
MOST_IN_MATRIX = 24
CATEGORIES = ["best", *(f"decile-{k:02d}" for k in range(1, 11)), "worst"]
KINDS = ("round", "rescored", "imported")


class NotFoundError(ValueError):
    """The page's subject is not in the store."""


class Pages:
    """The pages of one lake."""

    def __init__(self, lake: Lake, snapshots: Snapshots) -> None:
        self.lake, self.snapshots = lake, snapshots

    def home(self, corpus: str | None, kind: str | None, page: int) -> Page:
        """All score runs, newest first."""
        with self.snapshots.cursor() as cursor:
            runs = facts.score_runs(cursor, corpus=corpus, kind=kind)
            shown = runs[(page - 1) * RUNS_PER_PAGE : page * RUNS_PER_PAGE]
            return {
                "runs": shown,
                "num_runs": len(runs),
                "sparks": self._sparks(cursor, shown),
                "corpora": rows(cursor, facts.CORPORA),
                "kinds": KINDS,
                "corpus": corpus,
                "kind": kind,
                "page": page,
                "per_page": RUNS_PER_PAGE,
                "published_at": self.published_at(),
            }

    def run(self, score_run_id: str) -> Page:
        """One score run: distribution, deciles, length, training."""
        with self.snapshots.cursor() as cursor:
            run = _run(cursor, score_run_id)
            bins = facts.histograms(cursor, [score_run_id])[score_run_id]
            columns = rows(cursor, facts.LENGTHS, {"score_run_id": score_run_id})
            outer = (
                read_rows(self.lake.run(run["run"]).round(run["round"]) / "selector" / "metrics.jsonl") if run["kind"] == "round" else []
            )
            return {
                "run": run,
                "histogram": figures.distribution(bins, run["threshold"]) if bins else None,
                "deciles": rows(cursor, facts.DECILES, {"score_run_id": score_run_id}),
                "lengths": figures.lengths(columns, run["threshold"]) if columns else None,
                "length_table": columns,
                "training": training_charts(outer),
                "num_outer_steps": len(outer),
                "num_rounds": len(rows(cursor, facts.ROUNDS_OF, {"run": run["run"]})) if run["kind"] == "round" else 0,
                "tab": "overview",
            }

    def examples(self, score_run_id: str, category: str) -> Page:
        """Documents behind a score run: one category, or the selected beside the rejected."""
        categories = ["selected", "rejected"] if category == "sides" else [category]
        if category != "sides" and category not in CATEGORIES:
            raise NotFoundError(f"there is no category {category!r} of examples")
        with self.snapshots.cursor() as cursor:
            run = _run(cursor, score_run_id)
            found = rows(cursor, facts.EXAMPLES, {"score_run_id": score_run_id, "categories": categories})
        texts = self._texts(run["corpus"], found)
        return {
            "run": run,
            "category": category,
            "categories": CATEGORIES,
            "columns": [(name, [each for each in found if each["category"] == name]) for name in categories],
            "texts": texts,
            "tab": "examples",
        }

    def places(self, score_run_id: str, place: str, order: str, part: str, least: int, page: int) -> Page:
        """Leaderboard of the sources or the domains of a score run."""
        with self.snapshots.cursor() as cursor:
            run = _run(cursor, score_run_id)
            found, num_found = facts.leaderboard(cursor, score_run_id, place, order=order, part=part, least=least, page=page)
        return {
            "run": run,
            "place": place,
            "order": order,
            "part": part,
            "least": least,
            "page": page,
            "per_page": facts.PER_PAGE,
            "found": found,
            "num_found": num_found,
            "tab": place,
        }

    def rounds(self, score_run_id: str) -> Page:
        """What entered and left between the rounds of a run: the share of each source that every round kept."""
        with self.snapshots.cursor() as cursor:
            run = _run(cursor, score_run_id)
            found = rows(cursor, facts.SHARES_KEPT, {"run": run["run"]}) if run["kind"] == "round" else []
        numbers = sorted({each["round"] for each in found})
        tokens: dict[str, int] = {}
        for each in found:
            tokens[each["name"]] = tokens.get(each["name"], 0) + each["num_tokens"]
        sources = sorted(tokens, key=lambda name: (-tokens[name], name))[:MOST_SOURCES_BY_ROUND]
        by_source = {(each["name"], each["round"]): each for each in found}
        kept = {key: (each["num_selected_tokens"] or 0) / each["num_tokens"] for key, each in by_source.items() if each["num_tokens"]}
        selected = {n: sum(each["num_selected_tokens"] or 0 for each in found if each["round"] == n) for n in numbers}
        share = {key: (each["num_selected_tokens"] or 0) / (selected[each["round"]] or 1) for key, each in by_source.items()}
        return {
            "run": run,
            "rounds": numbers,
            "sources": sources,
            "num_sources": len(tokens),
            "kept": kept,
            "share": share,
            "matrix": figures.shares_by_round(sources, numbers, kept) if len(numbers) > 1 else None,
            "tab": "rounds",
        }

    def beside(self, score_run_id: str, other_id: str | None) -> Page:
        """A score run beside another of the same sequences."""
        with self.snapshots.cursor() as cursor:
            run = _run(cursor, score_run_id)
            siblings = rows(cursor, facts.SIBLINGS, {"score_run_id": score_run_id})
            if other_id is not None and other_id not in [sibling["score_run_id"] for sibling in siblings]:
                raise NotFoundError(f"{other_id} did not score the same sequences as {score_run_id}")
            other_id = other_id or next((sibling["score_run_id"] for sibling in siblings), None)
            other = _run(cursor, other_id) if other_id else None
            found = facts.compare(cursor, run, other) if other else None
        shown = [each for side in found["only"].values() for each in side] if found else []
        return {
            "run": run,
            "other": other,
            "siblings": siblings,
            "found": found,
            "matrix": figures.deciles_of_both(found["deciles"], found["num_sampled"]) if found else None,
            "texts": self._texts(run["corpus"], shown),
            "tab": "beside",
        }

    def overlap(self) -> Page:
        """Selections beside each other: a matrix for each set of sequences and round."""
        with self.snapshots.cursor() as cursor:
            pairs = rows(cursor, facts.OVERLAPS)
        groups: dict[tuple[str, int], list[Row]] = {}
        for pair in pairs:
            groups.setdefault((pair["sequence_set"], pair["round"]), []).append(pair)
        shown = []
        for (sequence_set, number), members in groups.items():
            names = sorted({name for pair in members for name in (pair["a"], pair["b"])})[:MOST_IN_MATRIX]
            short = [f"{i + 1}  {name}" for i, name in enumerate(names)]
            jaccard = {(pair["a"], pair["b"]): pair["jaccard"] for pair in members}
            shown.append((sequence_set, number, figures.overlaps(names, short, jaccard), members))
        return {"groups": shown}

    def document(self, corpus: str, document_id: int, *, whole: bool) -> Page:
        """One document: its text, and its score by every score run."""
        with self.snapshots.cursor() as cursor:
            parameters = {"corpus": corpus, "shard": document_id // ROWS_PER_SHARD, "document_id": document_id}
            facts_of_document = rows(cursor, facts.DOCUMENT, parameters)
            scored = facts.document_scores(cursor, corpus, document_id) if facts_of_document else []
        most = None if whole else DOCUMENT_CHARACTERS
        text = next(iter(read_documents(self.lake.corpus(corpus), [document_id], most_characters=most).values()), None)
        if text is None and not facts_of_document:
            raise NotFoundError(f"there is no document {document_id} in corpus {corpus}")
        return {
            "corpus": corpus,
            "document_id": document_id,
            "facts": facts_of_document[0] if facts_of_document else None,
            "scored": scored,
            "text": text,
        }

    def of_dag(self, dag_id: str) -> Page:
        """The tab of a DAG: the newest score runs, where the DAG is one of ours."""
        if not dag_id.startswith("bliss_"):
            return {"dag_id": dag_id, "runs": None, "sparks": {}, "num_runs": 0}
        with self.snapshots.cursor() as cursor:
            runs = facts.score_runs(cursor, kind="rescored" if dag_id == "bliss_rescore" else None)
            return {"dag_id": dag_id, "runs": runs[:10], "num_runs": len(runs), "sparks": self._sparks(cursor, runs[:10])}

    def sql(self) -> Page:
        """The console: tables and columns to look up, questions to start from."""
        with self.snapshots.cursor() as cursor:
            tables: dict[str, list[Row]] = {}
            for column in rows(cursor, facts.COLUMNS):
                tables.setdefault(column["table_name"], []).append(column)
            questions = [question for name in queries.names() if (question := _question(cursor, name))]
        return {"tables": tables, "questions": questions}

    def published_at(self) -> datetime:
        """When the snapshot was published."""
        return datetime.fromtimestamp(self.snapshots.published_at, UTC)

    def _sparks(self, cursor: "DuckDBPyConnection", runs: list[Row]) -> dict[str, Any]:
        thresholds = {run["score_run_id"]: run["threshold"] for run in runs}
        bins = facts.histograms(cursor, list(thresholds))
        return {name: figures.spark(found, thresholds[name]) for name, found in bins.items() if found}

    def _texts(self, corpus: str, examples: list[Row]) -> dict[int, DocumentText]:
        ids = [each["document_id"] for each in examples if each["document_id"] is not None]
        return {text.document_id: text for text in iter_documents(self.lake.corpus(corpus), ids, most_characters=EXCERPT_CHARACTERS)}


def _question(cursor: "DuckDBPyConnection", name: str) -> tuple[str, str] | None:
    """(question, statement) of a named query, its defaults written in; None where the store has nothing it could be asked of."""
    query = queries.load(name)
    try:
        values = query.bind(cursor, {})
    except ValueError:  # a parameter that must be given, or a second score run where there is one only
        return None
    return query.question, re.sub(r"\$([a-z_]+)", lambda match: _literal(values[match[1]]), query.sql)


def _literal(value: str | int | float) -> str:
    return quoted_text(value) if isinstance(value, str) else repr(value)


def _run(cursor: "DuckDBPyConnection", score_run_id: str) -> Row:
    found = facts.score_runs(cursor, score_run_id=score_run_id)
    if not found:
        raise NotFoundError(f"there is no score run {score_run_id} in the store")
    return found[0]


def printable(text: str) -> str:
    """Control characters have no place in HTML: a sign shows where one was."""
    return "".join(c if c in "\n\t" or ord(c) >= 32 else "\N{REPLACEMENT CHARACTER}" for c in text.replace("\r\n", "\n"))


def number(value: float | None, digits: int = 3) -> str:
    """With so many decimals and a real minus, but none before zero."""
    if value is None:
        return "\N{EN DASH}"
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", "\N{MINUS SIGN}")


FILTERS: dict[str, Callable[..., str]] = {
    "count": lambda value: "\N{EN DASH}" if value is None else f"{value:,}",
    "percent": lambda value: f"{value:.0%}" if value >= 0.1 or value == 0 else f"{value:.1%}",
    "number": number,
    "when": lambda value: f"{value:%Y-%m-%d %H:%M}",
    "printable": printable,
}
