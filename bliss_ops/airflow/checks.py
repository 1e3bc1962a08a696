"""The gates as tasks: they read a few manifests, so Airflow runs them itself, in a second and without a cluster."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator
from airflow.sdk.exceptions import AirflowFailException

if TYPE_CHECKING:
    from airflow.sdk import Context


class CheckOperator(BaseOperator):
    """Runs a light stage. One that fails is not tried again: it would fail again until the data or a bound has changed.

    Args:
        subcommand: the stage's command, such as `check-round`.
        subject: the corpus or run it is for.
        round_number: of a round's stage.
        title: what a mapped task is called.
    """

    template_fields: Sequence[str] = ("subject", "round_number", "title")
    ui_color = "#fef7e0"

    def __init__(self, *, subcommand: str, subject: str, round_number: str | None = None, title: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.subcommand = subcommand
        self.subject = subject
        self.round_number = round_number
        self.title = title

    def execute(self, context: "Context") -> None:
        from bliss_ops import gates, pipeline
        from bliss_ops.lake import Lake

        (stage,) = (stage for stage in (*pipeline.CORPUS_STAGES, *pipeline.ROUND_STAGES) if stage.command == self.subcommand)
        lake = Lake.open()
        target = lake.corpus(self.subject) if stage in pipeline.CORPUS_STAGES else lake.run(self.subject)
        try:
            manifest = stage.do(target, None if self.round_number is None else int(self.round_number))
        except gates.GateFailed as error:
            raise AirflowFailException(str(error)) from None
        assert manifest is not None, "a light stage is done in one piece"
        for verdict in gates.read_report(lake.root / manifest.artifact):
            self.log.info("%s", verdict.line())
        for asset in self.outlets:
            event = context["outlet_events"][asset]
            event.add_partitions([self.subject])
            event.extra = self._counts(lake)

    def _counts(self, lake: Any) -> dict[str, Any]:
        """What the event of a corpus says."""
        from bliss_ops.manifest import read_manifest

        sequences = read_manifest(lake.corpus(self.subject).sequences, made_by=f"bliss pack {self.subject}")
        return {"corpus": self.subject, "num_shards": len(sequences.shards), **sequences.metrics}
