"""Scheduled re-scoring: find what has not been scored, score it in groups of shards, load what is complete.

What there is to do is decided by `bliss pending`, run here in Airflow in a second or two, so a DAG run with nothing to do submits no job.
Each pair of corpus and score model is loaded by a task of its own, whatever became of the others: a broken corpus fails alone.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator, Param, Variable
from airflow.sdk.exceptions import AirflowFailException

from bliss_ops.airflow.notifications import FailedElsewhereError
from bliss_ops.airflow.operator import BlissStageOperator, StageFailed, run_here
from bliss_ops.airflow.rounds import slug

if TYPE_CHECKING:
    from airflow.sdk import Context

    from bliss_ops.manifest import Manifest

RUNS_VARIABLE = "bliss_rescore_runs"  # a JSON list of runs whose latest score models score everything new
PAIRS = "pairs"
COUNTS = ("num_sequences", "num_tokens", "mean", "standard_deviation", "tokens_per_second")  # of a set of scores, told in its event


def rescore_params() -> dict[str, Param]:
    """The form of `bliss_rescore`; an asset event fills in nothing but the corpus."""
    return {
        "corpus": Param(None, type=["null", "string"], title="Corpus", description="Corpus to score; empty takes every ingested corpus."),
        "runs": Param(
            [],
            type="array",
            items={"type": "string"},
            title="Runs",
            description=f"Score with the latest score model of these runs; empty takes the Variable {RUNS_VARIABLE}, and without one the "
            "newest score model that fits the corpus.",
        ),
        "round": Param(None, type=["null", "integer"], minimum=1, title="Round", description="An older round's score model, by number."),
        "groups": Param(
            None,
            type=["null", "integer"],
            minimum=1,
            maximum=64,
            title="Groups",
            description="Groups of shards to map over; empty takes the run's scoring.num_groups.",
        ),
    }


class PlanOperator(BaseOperator):
    """Finds the pairs of corpus and score model that are not scored yet.

    Returns the arguments of one `load` task per pair; pushes the pairs themselves, and `incompatible`, the ones that cannot be scored.
    """

    ui_color = "#fef7e0"

    def execute(self, context: "Context") -> list[dict[str, Any]]:
        params = context["params"]
        corpus = context.get("partition_key") or params["corpus"]
        pairs = find_pending(corpus, params["runs"] or chosen_runs(), params["round"])
        misfits = [pair for pair in pairs if pair["reason"]]
        if misfits and params["corpus"] and params["runs"]:  # asked for by name, by a person
            raise AirflowFailException("\n\n".join(pair["reason"] for pair in misfits))
        for pair in misfits:
            self.log.warning("left out: %s", pair["reason"])
        pairs = [pair for pair in pairs if not pair["reason"]]
        for pair in pairs:
            self.log.info("%(corpus)s by %(run)s round %(round)d: %(num_missing)d of %(num_shards)d shards to score", pair)
        if not pairs:
            self.log.info("nothing to score")
        context["ti"].xcom_push(key=PAIRS, value=pairs)
        context["ti"].xcom_push(key="incompatible", value=misfits)
        return [{"subject": pair["corpus"], "arguments": [pair["name"]], "num_shards_scored": pair["num_missing"]} for pair in pairs]


class GroupsOperator(BaseOperator):
    """Cuts every pair in groups of shards; returns the arguments of one `rescore` task per group."""

    ui_color = "#fef7e0"

    def execute(self, context: "Context") -> list[dict[str, Any]]:
        pairs = context["ti"].xcom_pull(task_ids="plan", key=PAIRS)
        return [arguments for pair in pairs for arguments in group_arguments(pair, context["params"]["groups"])]


class LoadScoresOperator(BlissStageOperator):
    """Loads one pair's scores and says how many they are; fails at once, without a job, where their scoring has failed."""

    def __init__(self, *, num_shards_scored: int = 0, **kwargs: Any) -> None:
        super().__init__(subcommand="load-scores", **kwargs)
        self.num_shards_scored = num_shards_scored

    def execute(self, context: "Context") -> None:
        if self._scores() is None:
            raise FailedElsewhereError(f"the scores {self.arguments[0]} of {self.subject} are not complete: see the failed `rescore` tasks")
        super().execute(context)

    def counts(self) -> dict[str, Any]:
        scores = self._scores()
        assert scores is not None, "checked before the job"
        return {
            "corpus": self.subject,
            "scores": self.arguments[0],
            "run": scores.identity["run"],
            "round": scores.identity["round"],
            "num_shards_scored": self.num_shards_scored,
            **{name: scores.metrics[name] for name in COUNTS if name in scores.metrics},
        }

    def _scores(self) -> "Manifest | None":
        from bliss_ops.lake import Lake
        from bliss_ops.manifest import find_manifest

        return find_manifest(Lake.open().further_scores(self.subject, self.arguments[0]))


class FindCorporaOperator(BaseOperator):
    """Finds the corpora with something to score; returns the arguments of one triggered `bliss_rescore` per corpus."""

    ui_color = "#fef7e0"

    def execute(self, context: "Context") -> list[dict[str, Any]]:
        pairs = find_pending(None, chosen_runs(), None)
        for pair in pairs:
            if pair["reason"]:
                self.log.warning("left out: %s", pair["reason"])
        return triggers([pair for pair in pairs if not pair["reason"]], context["ti"].run_id)


def find_pending(corpus: str | None, runs: list[str], round_number: int | None) -> list[dict[str, Any]]:
    """What `bliss pending` says."""
    command = ["bliss", "pending", "--format=json", *([f"--corpus={corpus}"] if corpus else []), *(f"--run={run}" for run in runs)]
    found: list[dict[str, Any]] = json.loads(run_here([*command, *([f"--round={round_number}"] if round_number else [])]))
    return found


def chosen_runs() -> list[str]:
    """The runs that the Variable names; none where it is not set."""
    runs = Variable.get(RUNS_VARIABLE, default=None, deserialize_json=True) or []
    if not (isinstance(runs, list) and all(isinstance(run, str) for run in runs)):
        raise StageFailed(f'the Variable {RUNS_VARIABLE} is {runs!r}: write a JSON list of runs, such as ["demo-bliss-s0"]')
    return runs


def group_arguments(pair: Mapping[str, Any], num_groups: int | None) -> list[dict[str, Any]]:
    """The arguments of a pair's `rescore` tasks; never more groups than shards."""
    number = min(num_groups or pair["num_groups"], pair["num_shards"])
    common = {"subject": pair["run"], "arguments": [f"--corpus={pair['corpus']}"], "round_number": str(pair["round"])}
    return [common | {"group": f"{group}/{number}"} for group in range(number)]


def triggers(pairs: list[dict[str, Any]], run_id: str) -> list[dict[str, Any]]:
    """One triggered DAG run per corpus, named after the corpus and the DAG run that found it."""
    runs: dict[str, list[str]] = {}
    for pair in pairs:
        runs.setdefault(pair["corpus"], []).append(pair["run"])
    return [
        {"trigger_run_id": f"{corpus}.{slug(run_id)}", "conf": {"corpus": corpus, "runs": of_corpus}} for corpus, of_corpus in runs.items()
    ]
