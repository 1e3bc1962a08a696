"""The explorer alone, as somebody with a browser meets it: by mouse, by keyboard, in light and in dark."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from bliss_ops.sharding import ROWS_PER_SHARD
from tests.browser.conftest import Watched, watch
from tests.lakes import SCRIPT

if TYPE_CHECKING:
    from playwright.sync_api import Browser

RUN = "demo-bliss-s0/round-01"
FOR_MINUTES = "select count(*) from range(10_000_000) a, range(10_000_000) b where hash(a.range, b.range) = 1"
SECOND = 1000


@pytest.fixture
def seen(browser: "Browser", explorer: str) -> Iterator[Watched]:
    """A page that must end without an error and without a request to anybody else."""
    watched = watch(browser, color_scheme="light")
    watched.page.set_default_timeout(15 * SECOND)
    yield watched
    assert watched.errors == []
    assert watched.elsewhere(explorer) == []
    watched.page.context.close()


def test_from_home_to_a_document(seen: Watched, explorer: str) -> None:
    page = seen.page
    page.goto(explorer)
    assert page.locator("h1").inner_text() == "Score runs"
    page.get_by_role("link", name=RUN, exact=True).click()
    chart = page.locator("#distribution svg")
    assert chart.locator("rect.chosen").count() > 0
    threshold = chart.locator("line.threshold").bounding_box()
    frame = chart.bounding_box()
    assert threshold is not None
    assert frame is not None
    assert frame["x"] < threshold["x"] < frame["x"] + frame["width"]
    page.get_by_role("link", name="Documents", exact=True).click()
    page.get_by_role("link", name="Decile 10").click()
    page.locator(".document footer a").first.click()
    assert "quick brown fox" in page.locator(".text-of-document").inner_text()
    assert RUN in page.get_by_label("Scores").inner_text()


def test_script_in_a_document_stays_text(seen: Watched, explorer: str) -> None:
    dialogs: list[str] = []
    seen.page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    seen.page.goto(f"{explorer}/document/tiny/{ROWS_PER_SHARD}")
    assert seen.page.locator(".text-of-document").inner_text() == SCRIPT
    ask(seen, explorer, f"select '<img src=x onerror=alert(1)>' as picture, '{SCRIPT.replace(chr(39), chr(39) * 2)}' as \"<b>name</b>\"")
    seen.page.wait_for_selector("#result table")
    assert seen.page.locator("#result td").all_inner_texts() == ["<img src=x onerror=alert(1)>", SCRIPT]
    assert seen.page.locator("#result th").all_inner_texts()[1] == "<b>name</b>"
    assert seen.page.locator("#result img, #result b, #result script").count() == 0
    assert dialogs == []


def ask(seen: Watched, explorer: str, statement: str) -> None:
    seen.page.goto(f"{explorer}/sql")
    seen.page.fill("#statement", statement)
    seen.page.click("#ask")


def test_the_console_answers_and_says_when_it_cuts(seen: Watched, explorer: str) -> None:
    ask(seen, explorer, "select range as number from range(10_000_000)")
    seen.page.wait_for_selector("#result tbody tr")
    assert seen.page.locator("#result tbody tr").count() == 1000
    assert "There are more" in seen.page.inner_text("#status")
    with seen.page.expect_download() as download:
        seen.page.click("#download")
    lines = download.value.path().read_text().splitlines()
    assert (lines[0], len(lines)) == ("number", 100_001)
    seen.page.select_option("#examples", index=1)
    assert "select" in seen.page.input_value("#statement")


def test_a_refusal_is_said_in_words(seen: Watched, explorer: str) -> None:
    ask(seen, explorer, "drop table scores")
    seen.page.wait_for_selector("#status.error")
    assert "one that reads" in seen.page.inner_text("#status")
    seen.errors = [error for error in seen.errors if "400" not in error]  # the browser notes the answer's status


def test_cancel_ends_a_running_statement(seen: Watched, explorer: str) -> None:
    ask(seen, explorer, FOR_MINUTES)
    seen.page.wait_for_selector("#cancel:not([disabled])")
    seen.page.click("#cancel")
    seen.page.wait_for_selector("#status.error")
    assert seen.page.inner_text("#status") == "Cancelled."
    assert seen.page.is_enabled("#ask")
    seen.errors = [error for error in seen.errors if "400" not in error]


def test_the_keyboard_alone_goes_everywhere(seen: Watched, explorer: str) -> None:
    page = seen.page
    page.goto(explorer)

    def focused() -> str:
        page.keyboard.press("Tab")
        return str(page.evaluate("document.activeElement.textContent.trim()"))

    first = [focused() for _ in range(5)]
    assert first == ["Skip to content", "BLISS scores", "Score runs", "Overlap", "SQL"]
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.goto(explorer)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # skips to the content
    assert page.evaluate("document.activeElement.id") == "main"
    page.goto(f"{explorer}/sql")
    page.focus("#statement")
    page.keyboard.press("Control+a")
    page.keyboard.type("select 42 as answer")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#result td")
    assert page.inner_text("#result td") == "42"
    assert page.evaluate("document.activeElement.id") == "statement"


def test_long_texts_unfold(seen: Watched, explorer: str) -> None:
    page = seen.page
    page.set_viewport_size({"width": 330, "height": 900})
    page.goto(f"{explorer}/examples/{RUN}?category=best")
    excerpt = page.locator(".excerpt").first
    button = page.locator("button.more").first
    folded = excerpt.evaluate("element => element.clientHeight")
    button.press("Enter")
    assert button.get_attribute("aria-expanded") == "true"
    assert excerpt.evaluate("element => element.clientHeight") > folded
    button.press("Enter")
    assert excerpt.evaluate("element => element.clientHeight") == folded


def test_wide_tables_scroll_in_themselves(seen: Watched, explorer: str) -> None:
    seen.page.set_viewport_size({"width": 420, "height": 800})
    for address in ("/", f"/run/{RUN}", f"/domains/{RUN}", f"/beside/{RUN}", "/overlap", "/sql"):
        seen.page.goto(f"{explorer}{address}")
        assert seen.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), address


def luminance(page_color: str) -> float:
    red, green, blue = (float(part) for part in re.findall(r"[\d.]+", page_color)[:3])
    return (red + green + blue) / 3


@pytest.mark.parametrize(("scheme", "is_dark"), [("dark", True), ("light", False)])
def test_alone_it_follows_the_browsers_colours(browser: "Browser", explorer: str, scheme: str, is_dark: bool) -> None:
    watched = watch(browser, color_scheme=scheme)
    watched.page.goto(f"{explorer}/run/{RUN}")
    background = watched.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (luminance(background) < 60) is is_dark
    text = watched.page.evaluate("getComputedStyle(document.querySelector('.tick')).fill")
    assert abs(luminance(text) - luminance(background)) > 80  # figures are legible too
    watched.page.context.close()
