"""Headless Chromium; skipped, with the reason, where playwright or Chromium is missing."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest

from bliss_ops.lake import Lake
from tests.explorer.conftest import make_lake

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
]


@dataclass
class Watched:
    """A page, and what it said and asked for."""

    page: "Page"
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def elsewhere(self, url: str) -> list[str]:
        """Requests that went to another server than `url`."""
        return [address for address in self.requests if not address.startswith((url, "blob:", "data:"))]


@pytest.fixture(scope="session")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    return make_lake(tmp_path_factory.mktemp("browser") / "lake")


@pytest.fixture(scope="package")  # not session: playwright keeps an event loop running, which other packages' tests could not start
def browser() -> "Iterator[Browser]":
    if find_spec("playwright") is None:
        pytest.skip("playwright is not installed: pip install 'bliss-ops[dev]'")
    executable = next((path for name in NAMES if (path := shutil.which(name))), None)
    if executable is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS)
        yield browser
        browser.close()


def watch(browser: "Browser", **context: Any) -> Watched:
    """A new page of its own, watched."""
    page = browser.new_context(viewport={"width": 1280, "height": 900}, **context).new_page()
    watched = Watched(page)
    page.on("console", lambda message: watched.errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: watched.errors.append(str(error)))
    page.on("request", lambda request: watched.requests.append(request.url))
    return watched


@pytest.fixture(scope="session")
def explorer(lake: Lake) -> Iterator[str]:
    """The address of `bliss explore` over the lake."""
    command = [sys.executable, "-m", "bliss_ops.cli", "explore", "--lake", str(lake.root), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[4].rstrip("/")
        finally:
            process.terminate()
            process.wait(10)
