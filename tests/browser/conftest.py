"""A real browser: Debian's chromium, driven by Playwright."""

import os
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from tests.browser.fake_server import FakeServer, serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}
PATIENCE = 60_000  # ms that a test waits for what it expects, on whatever machine


# A module at a time: Playwright's event loop counts as running until it is stopped, and asyncio.run
# refuses beside it, in whatever test comes next. Scope "package" is the whole run here, where
# folders of tests are no packages.
@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """Chromium without a window; tests skip where there is none."""
    found = os.environ.get("STRATA_BROWSER") or next(
        filter(None, map(shutil.which, BROWSERS)), None
    )
    if not found:
        pytest.skip(
            "no chromium on the PATH (Debian: apt install chromium; or STRATA_BROWSER=PATH)"
        )
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs playwright, of extra test")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found)
        yield browser
        browser.close()


@pytest.fixture
def context(browser: "Browser") -> Iterator["BrowserContext"]:
    context = browser.new_context(viewport=DESKTOP, reduced_motion="reduce")
    context.set_default_timeout(PATIENCE)
    yield context
    context.close()


@pytest.fixture
def complaints() -> list[str]:
    """What the page wrote to the console as warnings or errors; empty it where that is expected."""
    return []


@pytest.fixture
def page(context: "BrowserContext", complaints: list[str]) -> Iterator["Page"]:
    """An empty page; at the test's end nothing may be left in ``complaints``."""
    page = context.new_page()
    page.on("pageerror", lambda error: complaints.append(f"pageerror: {error}"))
    page.on(
        "console",
        lambda message: message.type in ("warning", "error") and complaints.append(message.text),
    )
    yield page
    assert complaints == []


@pytest.fixture
def serve() -> Iterator[Callable[[list[str]], FakeServer]]:
    """Starts a fake server of some keys; it ends with the test."""
    from contextlib import ExitStack

    with ExitStack() as stack:
        yield lambda keys: stack.enter_context(serving(keys))


@pytest.fixture
def fake(serve: Callable[[list[str]], FakeServer]) -> FakeServer:
    """A fake server of three hundred pictures."""
    return serve([f"photos/{number:06d}" for number in range(300)])
