"""A comparison as DAG tasks: configure every run, wait for the corpus, warm up once per seed, then each run for itself, then the report.

Nothing waits in a slot: the corpus is ingested, and later rounds are run, by DAG runs of their own, which sensors look for now and then
(rescheduled in between); training tasks beyond the room there is wait in a pool. A run that fails stops at its failed task and no other.
"""

import json
from typing import TYPE_CHECKING, Any

from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.sdk import BaseOperator, BaseSensorOperator, PokeReturnValue
from airflow.sdk.exceptions import AirflowFailException, AirflowSkipException

from bliss_ops.airflow import forms
from bliss_ops.airflow.notifications import FailedElsewhereError
from bliss_ops.airflow.operator import BlissStageOperator, run_here
from bliss_ops.airflow.rounds import next_run_id, slug

if TYPE_CHECKING:
    from airflow.sdk import Context

    from bliss_ops.comparisons import Comparison
    from bliss_ops.lake import Lake

POKE_SECONDS = 15.0
MOST_POKE_SECONDS = 300.0  # each look is a process of its own: twenty runs that look every 15 s would keep a CPU busy
MOST_SECONDS = 30 * 24 * 3600.0
FAILED, SUCCEEDED = "failed", "success"


class ConfigureComparisonOperator(BaseOperator):
    """Runs `bliss configure-comparison`; returns the arguments of one mapped group of tasks per run that is not finished.

    Pushes `name`, `corpus`, `num_rounds`, `num_workers`, and `warmups`, the runs that warm up for the unfinished ones.
    """

    ui_color = "#fef7e0"

    def execute(self, context: "Context") -> list[dict[str, str]]:
        params = dict(context["params"])
        comparison = json.loads(run_here(["bliss", *forms.comparison_arguments(params)]).strip().splitlines()[-1])
        recipe = forms.recipe(params)
        unfinished = comparison["unfinished"]
        ti = context["ti"]
        for key in ("name", "corpus", "num_rounds"):
            ti.xcom_push(key=key, value=comparison[key])
        ti.xcom_push(key="num_workers", value=recipe.compute.num_workers)
        warmups = {member["warmup"]: member["seed"] for member in unfinished}
        ti.xcom_push(key="warmups", value=[{"subject": run, "title": f"s{seed} in {run}"} for run, seed in warmups.items()])
        self.log.info("%d of %d runs are not finished", len(unfinished), len(comparison["runs"]))
        return [{"subject": member["run"], "title": member["label"]} for member in unfinished]


class IngestOperator(TriggerDagRunOperator):
    """Triggers `bliss_ingest` for the comparison's corpus; skips itself where the corpus is finished."""

    template_fields = ("corpus",)

    def __init__(self, *, corpus: str, **kwargs: Any) -> None:
        super().__init__(trigger_dag_id="bliss_ingest", logical_date=None, skip_when_already_exists=True, **kwargs)
        self.corpus = corpus

    def execute(self, context: "Context") -> None:
        if _is_ingested(self.corpus):
            raise AirflowSkipException(f"corpus {self.corpus} is there")
        params = dict(context["params"])
        settings = {key: value for key, value in forms.overrides(params).items() if key.startswith("ingest.")}
        self.trigger_run_id = ingest_run_id(self.corpus, context["ti"].run_id)
        self.conf = {"recipe": params["recipe"], **settings}
        super().execute(context)


class CorpusSensor(BaseSensorOperator):
    """Waits for the corpus, checks that it has data for every run, and returns the arguments of one warm-up per seed."""

    template_fields = ("corpus",)

    def __init__(self, *, corpus: str, **kwargs: Any) -> None:
        super().__init__(mode="reschedule", poke_interval=POKE_SECONDS, timeout=MOST_SECONDS, **kwargs)
        self.corpus = corpus

    def poke(self, context: "Context") -> bool | PokeReturnValue:
        ti = context["ti"]
        if _is_ingested(self.corpus):
            _check_data(context)
            return PokeReturnValue(is_done=True, xcom_value=ti.xcom_pull(task_ids="configure", key="warmups"))
        run_id = ingest_run_id(self.corpus, ti.run_id)
        if ti.get_dr_count("bliss_ingest", run_ids=[run_id], states=[FAILED]):
            raise FailedElsewhereError(f"the ingestion of corpus {self.corpus} failed: see the DAG run {run_id} of bliss_ingest")
        return False


class WarmedUpOperator(BlissStageOperator):
    """The first stage of a run in a comparison; fails at once, without a job, where its warm-up has failed."""

    def execute(self, context: "Context") -> None:
        from bliss_ops.lake import Lake
        from bliss_ops.manifest import find_manifest

        run = Lake.open().run(self.subject)
        if find_manifest(run.warmup) is None:
            raise FailedElsewhereError(f"the warm-up of {run.config.warmup_of or run.name} is not there: see the failed `warm_up` task")
        super().execute(context)


class NextRoundsOperator(TriggerDagRunOperator):
    """Triggers `bliss_round` for round 2 of a run, which goes on by itself from there; skips itself where there is one round."""

    template_fields = ("subject", "title", "num_rounds")

    def __init__(self, *, subject: str, title: str, num_rounds: Any, **kwargs: Any) -> None:
        super().__init__(trigger_dag_id="bliss_round", logical_date=None, skip_when_already_exists=True, **kwargs)
        self.subject, self.title, self.num_rounds = subject, title, num_rounds

    def execute(self, context: "Context") -> None:
        if int(self.num_rounds) < 2:
            raise AirflowSkipException("there is one round")
        params = dict(context["params"])
        member = next(member for member in _comparison(context).runs if member.run == self.subject)
        self.trigger_run_id = next_run_id(self.subject, 1, context["ti"].run_id)
        config = _lake().run(self.subject).config
        self.conf = {
            "recipe": params["recipe"],
            "method": member.method,
            "seed": member.seed,
            "round": 2,
            "name": member.run,
            "compare_with": list(config.compare_with),
            **forms.overrides(params),
        }
        super().execute(context)


class LaterRoundsSensor(BaseSensorOperator):
    """Waits for the DAG runs of the later rounds; fails as soon as one of them has, skips itself where there is one round.

    The task before is skipped, too, when the DAG run that it triggers is there already: because it is tried again or, at its first try, on
    a machine so busy that Airflow's own client sent the request twice (seen). Hence not `all_success`.
    """

    template_fields = ("subject", "title", "num_rounds")

    def __init__(self, *, subject: str, title: str, num_rounds: Any, **kwargs: Any) -> None:
        waits: dict[str, Any] = {"poke_interval": POKE_SECONDS, "exponential_backoff": True, "max_wait": MOST_POKE_SECONDS}
        waits["trigger_rule"] = "none_failed"
        super().__init__(mode="reschedule", timeout=MOST_SECONDS, **waits, **kwargs)
        self.subject, self.title, self.num_rounds = subject, title, num_rounds

    def poke(self, context: "Context") -> bool:
        if int(self.num_rounds) < 2:
            raise AirflowSkipException("there is one round")
        ti = context["ti"]
        run_ids = later_run_ids(self.subject, int(self.num_rounds), ti.run_id)
        if ti.get_dr_count("bliss_round", run_ids=run_ids, states=[FAILED]):
            raise FailedElsewhereError(f"a later round of {self.subject} failed: see {', '.join(run_ids)} of bliss_round")
        return int(ti.get_dr_count("bliss_round", run_ids=run_ids, states=[SUCCEEDED])) == len(run_ids)


class ReportComparisonOperator(BlissStageOperator):
    """Writes the report about the runs that are done, whatever became of the others; fails at once where nothing was configured."""

    def execute(self, context: "Context") -> None:
        if self.subject in (None, "", "None"):
            raise FailedElsewhereError("nothing was configured: see the failed `configure` task")
        super().execute(context)


class MissingOperator(BaseOperator):
    """Ends red when a run is missing, after everything else has been done."""

    def execute(self, context: "Context") -> None:
        from bliss_ops import comparisons

        lake, comparison = _lake(), _comparison(context)
        if missing := comparisons.unfinished(lake, comparison):
            lines = [f"{member.run}: {comparisons.how_far(lake.run(member.run), comparison.num_rounds)}" for member in missing]
            raise FailedElsewhereError(f"{len(missing)} of {len(comparison.runs)} runs are missing in the report:\n" + "\n".join(lines))


def ingest_run_id(corpus: str, run_id: str) -> str:
    """The DAG run of `bliss_ingest` that a comparison's DAG run triggers."""
    return f"{corpus}.{slug(run_id)}"


def later_run_ids(run_name: str, num_rounds: int, run_id: str) -> list[str]:
    """The DAG runs of `bliss_round` for rounds 2 and on."""
    found: list[str] = []
    for number in range(1, num_rounds):
        run_id = next_run_id(run_name, number, run_id)
        found.append(run_id)
    return found


def _is_ingested(corpus: str) -> bool:
    from bliss_ops.landing import is_ingested

    return is_ingested(_lake().corpus(corpus))


def _check_data(context: "Context") -> None:
    from bliss_ops import comparisons

    try:
        comparisons.check_data(_lake(), _comparison(context))
    except ValueError as error:
        raise AirflowFailException(str(error)) from None


def _comparison(context: "Context") -> "Comparison":
    from bliss_ops import comparisons

    return comparisons.read(_lake(), context["ti"].xcom_pull(task_ids="configure", key="name"))


def _lake() -> "Lake":
    from bliss_ops.lake import Lake

    return Lake.open()
