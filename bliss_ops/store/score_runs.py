"""What the lake says the store should hold: each score run, the parts it consists of, and where each part's rows come from.

A score run is loaded only when the sequences it scored are the ones that are packed now: its manifests lead to a digest of those
sequences, and that has to be the digest of the corpus's manifest. `loading` brings the tables to this state, `check` compares.

A round is up to seven small files, and each is a round trip to an object store while the machine's other loaders wait. So 32 rounds are
read at once, and no file twice.
"""

import json
import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cache
from threading import Lock
from typing import Any, TypeVar

from upath import UPath

from bliss_ops.collected import find_collected, gone
from bliss_ops.lake import Lake, Run, at_once
from bliss_ops.manifest import Manifest, find_manifest, read_manifest
from bliss_ops.store import tables

log = logging.getLogger(__name__)

KIND_OF_STAGE = {"score": "round", "rescore": "rescored", "import_scores": "imported"}
SELECTION_COUNTS = ("num_candidates", "num_selected", "threshold", "num_ties_at_threshold", "num_ties_kept", "num_tokens")

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
FindManifest = Callable[[UPath], Manifest | None]


@dataclass(frozen=True)
class Part:
    """One shard of one table's content: the rows of a file, or one row of values."""

    kind: tables.Kind
    owner: str
    shard: int
    sha256: str  # of the file's bytes; a row made from manifests has no file, its hash is the row itself
    values: dict[str, Any]
    file: UPath | None = None
    made_by: str = ""  # the command that makes the file again

    @property
    def key(self) -> tuple[str, str, int]:
        return self.kind.name, self.owner, self.shard


@dataclass(frozen=True)
class Content:
    """A corpus as it is packed now, in one sequence set; either manifest is None where it is not (or no longer) there."""

    lake: Lake
    corpus: str
    sequence_set: str
    documents: Manifest | None
    packed: Manifest | None

    @property
    def is_settled(self) -> bool:
        """Whether the sequences are made from the documents that are there; they are not while a corpus is being ingested again."""
        if self.packed is None:
            return False
        return self.documents is None or self.packed.inputs.get(self.documents.artifact, self.documents.digest) == self.documents.digest


@dataclass(frozen=True)
class ScoreRun:
    """One score run of the lake: `row` for `score_runs`, `parts` of its own, and which shards of its corpus stand behind it."""

    id: str
    content: Content
    sequences_digest: str
    row: Part
    parts: list[Part]
    shards: list[int] = field(repr=False)
    collected: str = ""  # in words, where its files were deleted by `bliss gc`

    @property
    def is_former(self) -> bool:
        """Whether the corpus has other content now than the one that was scored."""
        packed = self.content.packed
        return self.content.is_settled and packed is not None and packed.digest != self.sequences_digest

    @property
    def refusal(self) -> str | None:
        """Why the scores cannot be in the store, in words; None when they can."""
        corpus = self.content.corpus
        if self.collected:
            return f"{self.id}: {self.collected}"
        if not self.sequences_digest:
            return (
                f"{self.id}: its manifests do not say which sequences were scored (is the selector's directory gone?), "
                "so its scores cannot be told from those of other content: score the corpus again"
            )
        if not self.content.is_settled:
            return f"{self.id}: corpus {corpus!r} is not ingested whole at the moment: run `bliss ingest` for it, then load the scores"
        if self.is_former:
            return (
                f"{self.id}: its scores are of former content of {self.content.sequence_set}, the corpus has been ingested again since. "
                "They stay in Parquet and out of the score store; score the corpus again, or delete their directory"
            )
        return None

    def corpus_parts(self) -> Iterator[Part]:
        """Documents and spans of the scored shards."""
        content, scored = self.content, set(self.shards)
        for manifest, kind, folder, owner, values, command in (
            (content.documents, tables.DOCUMENTS, "", content.corpus, {}, "extract"),
            (content.packed, tables.SPANS, "spans/", content.sequence_set, {"corpus": content.corpus}, "pack"),
        ):
            if manifest:
                made_by = f"bliss {command} {content.corpus}"
                yield from (
                    part for part in _of_files(content.lake, manifest, kind, owner, made_by, folder, values) if part.shard in scored
                )


class ScoreRuns:
    """Finds score runs, many at once; every corpus's manifests are read once."""

    def __init__(self, lake: Lake) -> None:
        self.lake = lake
        self.unreadable: list[str] = []  # what is wrong with directories that cannot be read as score runs
        self._contents: dict[str, Content] = {}
        self._being_read: dict[str, Lock] = {}

    def of_lake(self, *, but: Collection[str] = ()) -> list[ScoreRun]:
        """Every score run there is, rounds before re-scored and imported ones; what cannot be read is noted and does not stop the rest.

        Args:
            but: ids of those that are known already.
        """
        runs = [self.lake.run(name) for name in self.lake.run_names()]
        rounds = [each for of_run in self._readable(_rounds, runs) for each in of_run if _id_of_round(*each) not in but]
        further = [each for each in self.lake.further_score_names() if _id_of_further(*each) not in but]
        found = [each for each in self._readable(self._find_round, rounds) if each]
        return [*found, *self._readable(lambda each: self.further(*each), further)]

    def _readable(self, read: Callable[[ItemT], ResultT], items: Sequence[ItemT]) -> Iterator[ResultT]:
        """What `read` gives of each item, as many as possible at once; notes those that cannot be read."""

        def attempt(item: ItemT) -> ResultT | ValueError:
            try:
                return read(item)
            except ValueError as error:
                return error

        for result in at_once(attempt, items, self.lake.root):
            if isinstance(result, ValueError):
                log.warning("score store: %s", result)
                self.unreadable.append(str(result))
            else:
                yield result

    def of_run(self, run: Run) -> list[ScoreRun]:
        """The rounds of one run that have scores."""
        return [found for found in at_once(self._find_round, _rounds(run), self.lake.root) if found]

    def further(self, corpus: str, name: str) -> ScoreRun:
        """Scores that are no round's own.

        Raises:
            ValueError: they are not there or not finished, or something else is.
        """
        directory = self.lake.further_scores(corpus, name)
        manifest = read_manifest(directory, made_by="bliss rescore")
        kind, about = KIND_OF_STAGE.get(manifest.stage), manifest.identity
        if kind is None:
            raise ValueError(f"{directory} was made by {manifest.stage!r}: scores come from `bliss rescore` or `bliss import-scores`")
        run, round_number = str(about.get("run", name)), int(about.get("round", 0))
        selector = find_manifest(self.lake.run(run).round(round_number) / "selector") if kind == "rescored" else None
        is_same_selector = selector is not None and manifest.inputs.get(selector.artifact) == selector.digest
        made_by = f"bliss rescore {run} --round {round_number} --corpus {corpus}" if kind == "rescored" else "bliss import-scores"
        about = {
            "kind_of_run": kind,
            "run": run,
            "round": round_number,
            "recipe": about.get("recipe", ""),
            "method": about.get("method", name),
            "seed": about.get("seed", 0),
            "selector_fingerprint": selector.fingerprint if selector is not None and is_same_selector else "",
        }
        score_run = self._score_run(_id_of_further(corpus, name), corpus, manifest, manifest.inputs, about, made_by)
        record = find_collected(directory)
        return replace(score_run, collected=gone(score_run.id, record)) if record else score_run

    def content(self, corpus: str, sequence_set: str) -> Content:
        with self._being_read.setdefault(sequence_set, Lock()):  # who comes second waits for what the first one reads
            if sequence_set not in self._contents:
                packed = find_manifest(self.lake.root / "corpora" / sequence_set)
                documents = find_manifest(self.lake.root / "corpora" / corpus / "documents")
                self._contents[sequence_set] = Content(self.lake, corpus, sequence_set, documents, packed)
            return self._contents[sequence_set]

    def _find_round(self, run_and_round: tuple[Run, int]) -> ScoreRun | None:
        """A round, where it has scores."""
        run, round_number = run_and_round
        here, config = run.round(round_number), run.config
        scores = find_manifest(here / "scores")
        if scores is None:
            return None
        selector = find_manifest(here / "selector")
        is_same_selector = selector is not None and scores.inputs.get(selector.artifact) == selector.digest
        about = {
            "kind_of_run": "round",
            "run": run.name,
            "round": round_number,
            "recipe": config.recipe,
            "method": config.method,
            "seed": config.seed,
            "selector_fingerprint": selector.fingerprint if selector else "",
        }
        inputs = selector.inputs if selector is not None and is_same_selector else {}
        parts = list(_of_round(run, round_number, scores))
        made_by = f"bliss score {run.name} --round {round_number}"
        return self._score_run(_id_of_round(run, round_number), config.ingest.corpus, scores, inputs, about, made_by, parts)

    def _score_run(
        self,
        id: str,  # noqa: A002 - what it is
        corpus: str,
        scores: Manifest,
        inputs: dict[str, str],
        about: dict[str, Any],
        made_by: str,
        further_parts: Iterable[Part] = (),
    ) -> ScoreRun:
        found = _sequences(inputs, corpus)
        sequence_set, digest = found or (f"{corpus}/{self.lake.corpus(corpus).sequences.name}", "")
        values = about | {
            "corpus": corpus,
            "sequence_set": sequence_set,
            "sequences_digest": digest,
            "scores_fingerprint": scores.fingerprint,
            "num_sequences": scores.metrics["num_sequences"],
            "finished_at": datetime.fromisoformat(scores.finished_at).astimezone(UTC).replace(tzinfo=None),
        }
        parts = [*_of_files(self.lake, scores, tables.SCORES, id, made_by), *further_parts]
        row = Part(tables.SCORE_RUNS, id, 0, _as_hash(values), values)
        return ScoreRun(id, self.content(corpus, sequence_set), digest, row, parts, sorted(scores.shards))


def is_in_lake(lake: Lake, id: str) -> bool:  # noqa: A002 - what it is
    """Whether a score run of that id has finished scores, asked for by name."""
    directory = id if id.count("/") == 2 else f"runs/{id}/scores"  # `scores/<corpus>/<name>` is its own address
    return (lake.root / directory / "manifest.json").is_file()


def _rounds(run: Run) -> list[tuple[Run, int]]:
    return [(run, number) for number in range(1, run.config.num_rounds + 1)]


def _id_of_round(run: Run, round_number: int) -> str:
    return f"{run.name}/round-{round_number:02d}"


def _id_of_further(corpus: str, name: str) -> str:
    return f"scores/{corpus}/{name}"


def _of_round(run: Run, round_number: int, scores: Manifest) -> Iterator[Part]:
    """Influences, selection and evaluation, where they are there and made from these scores and not from former ones."""
    here, lake, owner = run.round(round_number), run.lake, _id_of_round(run, round_number)
    find: FindManifest = cache(find_manifest)  # an evaluation stands on the selection, too

    def of_these_scores(name: str) -> Manifest | None:
        manifest = find(here / name)
        return manifest if manifest and _stands_on(lake, manifest, here, scores, find) else None

    def command(stage: str) -> str:
        return f"bliss {stage} {run.name} --round {round_number}"

    if fidelity := of_these_scores("fidelity"):
        for output in fidelity.outputs:  # none where nothing could be measured
            yield Part(tables.INFLUENCES, owner, 0, output.sha256, {}, here / "fidelity" / output.path, command("fidelity"))
    if selection := of_these_scores("selection"):
        values = {name: selection.metrics.get(name) for name in SELECTION_COUNTS}
        yield Part(tables.SELECTION_COUNTS, owner, 0, _as_hash(values), values)
        yield from _of_files(lake, selection, tables.SELECTIONS, owner, command("select"))
    if evaluation := of_these_scores("evaluation"):
        kinds = {"results.parquet": tables.EVALUATIONS, "questions.parquet": tables.QUESTIONS}  # the second where there are tasks
        for output in evaluation.outputs:
            yield Part(kinds[output.path], owner, 0, output.sha256, {}, here / "evaluation" / output.path, command("evaluate"))


def _stands_on(lake: Lake, manifest: Manifest, here: UPath, scores: Manifest, find: FindManifest) -> bool:
    """Whether what `manifest` was made from, inside the round, is what is there; an input that is gone (a deleted subset) cannot say."""
    for address, digest in manifest.inputs.items():
        if address == scores.artifact:
            if digest != scores.digest:
                return False
        elif address.startswith(lake.relative(here) + "/"):
            before = find(lake.root / address)
            if before and (before.digest != digest or not _stands_on(lake, before, here, scores, find)):
                return False
    return True


def _of_files(
    lake: Lake, manifest: Manifest, kind: tables.Kind, owner: str, made_by: str, folder: str = "", values: dict[str, Any] | None = None
) -> Iterator[Part]:
    """A part for each of the artifact's shards in `folder` (a pattern)."""
    pattern = re.compile(folder + r"shard-(\d+)[.]parquet")
    directory = lake.root / manifest.artifact
    for output in manifest.outputs:
        if match := pattern.fullmatch(output.path):
            yield Part(kind, owner, int(match[1]), output.sha256, values or {}, directory / output.path, made_by)


def _sequences(inputs: dict[str, str], corpus: str) -> tuple[str, str] | None:
    """The sequence set among an artifact's inputs, and the digest of its content then."""
    for address, digest in inputs.items():
        match = re.fullmatch(r"corpora/([^/]+)/(sequences-[^/]+)", address)
        if match and match[1] == corpus:
            return f"{corpus}/{match[2]}", digest
    return None


def _as_hash(values: dict[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, default=str)
