"""The explorer inside Airflow's own UI: log in, the entry in the navigation, pages in its frame, its theme, the tab of a DAG."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest

from bliss_ops.lake import Lake
from tests.browser.conftest import Watched, watch
from tests.browser.test_explorer import RUN, luminance
from tests.explorer.airflow_server import PASSWORDS, Server, airflow_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser, FrameLocator, Page

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("airflow") is None, reason="Airflow is not installed"),
]
SECOND = 1000


@pytest.fixture(scope="module")
def server(browser: "Browser", lake: Lake, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with airflow_server(str(lake.root), tmp_path_factory.mktemp("airflow"), with_dags=True) as server:
        yield server


@pytest.fixture(scope="module")
def seen(browser: "Browser", server: Server) -> Iterator[Watched]:
    """A browser in which somebody has logged in."""
    watched = watch(browser, color_scheme="light")
    page = watched.page
    page.set_default_timeout(40 * SECOND)
    page.goto(server.url)
    page.fill("input[name=username]", "admin")
    page.fill("input[name=password]", PASSWORDS["admin"])
    page.click("button[type=submit]")
    page.get_by_test_id("nav-sidebar").get_by_role("link", name="Scores").wait_for()
    yield watched
    page.context.close()


def frame_of(page: "Page") -> "FrameLocator":
    return page.frame_locator("iframe[title='Scores']")


def test_from_the_navigation_to_a_document_and_an_answer(seen: Watched, server: Server) -> None:
    page = seen.page
    page.get_by_test_id("nav-sidebar").get_by_role("link", name="Scores").click()
    frame = frame_of(page)
    frame.get_by_text("tiny · bliss").first.wait_for()  # the corpus
    frame.get_by_role("link", name=RUN, exact=True).click()
    frame.locator("#distribution svg rect.chosen").last.wait_for()
    assert frame.locator("#distribution line.threshold").count() == 1
    frame.get_by_role("link", name="Documents", exact=True).click()
    frame.locator(".document footer a").first.click()
    frame.locator(".text-of-document").wait_for()
    assert "quick brown fox" in frame.locator(".text-of-document").inner_text()
    frame.get_by_role("link", name="SQL", exact=True).click()
    frame.locator("#statement").fill("select count(*) as answer from score_runs")
    frame.locator("#ask").click()
    frame.locator("#result td").wait_for()
    assert frame.locator("#result td").inner_text() == "5"
    assert seen.elsewhere(server.url) == []


def test_an_address_inside_the_frame_can_be_shared(seen: Watched, server: Server) -> None:
    page = seen.page
    page.goto(f"{server.url}/plugin/bliss-scores/bliss/run/{RUN}")
    frame_of(page).locator("#distribution svg").wait_for()


def test_it_follows_airflows_theme_at_once(seen: Watched, server: Server) -> None:
    page = seen.page
    page.goto(f"{server.url}/plugin/bliss-scores")
    heading = frame_of(page).locator("h1")
    heading.wait_for()

    def is_dark() -> bool:
        return luminance(str(heading.evaluate("heading => getComputedStyle(heading).color"))) > 150  # light text

    assert not is_dark()
    # As its own switch does: next-themes keeps the choice in localStorage and shows it as a class of the document.
    page.evaluate("document.documentElement.classList.replace('light', 'dark')")
    page.wait_for_timeout(100)
    assert is_dark()
    page.evaluate("localStorage.setItem('theme', 'dark')")
    page.reload()
    heading.wait_for()
    assert is_dark()
    page.evaluate("localStorage.setItem('theme', 'light')")


@pytest.mark.parametrize(("dag_id", "shows"), [("bliss_round", RUN), ("bliss_ingest", RUN)])
def test_the_tab_of_a_dag_shows_its_newest_scores(seen: Watched, server: Server, dag_id: str, shows: str) -> None:
    page = seen.page
    page.goto(f"{server.url}/dags/{dag_id}")
    page.get_by_test_id("main-content").get_by_role("link", name="Scores").click()
    frame_of(page).get_by_role("link", name=shows, exact=True).wait_for()


def test_without_a_login_the_frame_shows_nothing(browser: "Browser", server: Server) -> None:
    watched = watch(browser)
    answer = watched.page.goto(f"{server.url}/bliss/")
    assert answer is not None
    assert answer.status == 401
    assert "score" not in watched.page.inner_text("body").lower()
    watched.page.context.close()
