"""The whole way in a browser: the trigger form of `bliss_ingest` is filled, the corpus is re-scored by itself, the explorer shows it."""

import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bliss_ops.lake import Lake
from tests.browser.conftest import Watched, watch
from tests.browser.test_airflow import SECOND, frame_of
from tests.corpus.corpora import rows, write_gz
from tests.rescoring.lakes import T, fit, ingest, tokenizer_of, write_shards

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from bliss_ops.stack.state import State

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(find_spec("airflow") is None or find_spec("ray") is None, reason="Airflow or Ray is not installed"),
]


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    """A corpus, and a score model that a finished round has made of it."""
    lake = Lake.open(tmp_path / "lake")
    settings = ["--set", "ingest.vocab_size=512", "--set", f"ingest.sequence_length={T}"]
    ingest(lake, "own", write_shards(tmp_path / "own"), *settings, validation=write_gz(tmp_path / "validation.json.gz", rows(6, start=900)))
    fit(lake)
    return lake


@pytest.fixture
def state(browser: "Browser", lake: Lake, tmp_path: Path) -> "Iterator[State]":
    from bliss_ops.stack import local

    state = local.up(lake, tmp_path / "state")
    try:
        yield state
    finally:
        local.down(state.layout.state_dir)


@pytest.fixture
def seen(browser: "Browser", state: "State") -> Iterator[Watched]:
    from bliss_ops.stack.services import USER
    from bliss_ops.stack.state import password

    watched = watch(browser, color_scheme="light")
    page = watched.page
    page.set_default_timeout(60 * SECOND)
    page.goto(state.layout.airflow_url)
    page.fill("input[name=username]", USER)
    page.fill("input[name=password]", password(state.layout))
    page.click("button[type=submit]")
    page.get_by_test_id("nav-sidebar").get_by_role("link", name="Scores").wait_for()
    yield watched
    page.context.close()


def wait_for(what: Callable[[], Any], seconds: float = 240) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    return found


def finished_run(state: "State", dag_id: str, partition_key: str | None = None) -> dict[str, Any] | None:
    """A successful run of the DAG; a failed one fails the test."""
    runs = state.api.call("GET", f"/api/v2/dags/{dag_id}/dagRuns?limit=20")["dag_runs"]
    ours = [run for run in runs if partition_key in (None, run["partition_key"])]
    assert not [run for run in ours if run["state"] == "failed"]
    return next((run for run in ours if run["state"] == "success"), None)


def test_from_the_form_to_the_picture(seen: Watched, state: "State", lake: Lake, tmp_path: Path) -> None:
    page, url = seen.page, state.layout.airflow_url
    sections = {
        "Ingest": {
            "ingest.corpus": "fresh",
            "ingest.source": str(write_shards(tmp_path / "fresh", start=300)),
            "ingest.tokenizer": tokenizer_of(lake)[1],
            "ingest.sequence_length": str(T),
        },
        "Ingest: Validation": {"ingest.validation.source": "none"},
    }
    page.goto(f"{url}/dags/bliss_ingest")
    page.get_by_role("button", name="Trigger").click()
    form = page.get_by_role("dialog")
    for section, fields in sections.items():
        form.get_by_role("button", name=section, exact=True).click()  # which closes the one before
        for name, value in fields.items():
            field = form.locator(f"[name='element_{name}']")
            field.fill(value)
            assert field.input_value() == value
    form.get_by_role("button", name="Trigger").click()
    wait_for(lambda: finished_run(state, "bliss_ingest"))
    page.goto(f"{url}/dags/bliss_ingest/runs")
    page.get_by_text("Success", exact=True).first.wait_for()

    wait_for(lambda: finished_run(state, "bliss_rescore", "fresh"))  # started by the corpus's own event
    page.get_by_test_id("nav-sidebar").get_by_role("link", name="Scores").click()
    frame = frame_of(page)
    frame.get_by_text("re-scored fresh · dsir").wait_for()
    frame.locator("a[href*='/run/scores/fresh/']").first.click()
    frame.locator("#distribution svg rect.rest").last.wait_for()
    frame.get_by_role("link", name="Documents", exact=True).click()
    frame.get_by_role("link", name="Best", exact=True).click()
    frame.locator(".document footer a").first.click()
    assert len(frame.locator(".text-of-document").inner_text()) > 20
    frame.get_by_role("link", name="SQL", exact=True).click()
    frame.locator("#statement").fill("select num_sequences from score_runs where corpus = 'fresh'")
    frame.locator("#ask").click()
    frame.locator("#result td").wait_for()
    assert int(frame.locator("#result td").inner_text()) > 0
