"""Pages in a real browser: headless Chromium by Playwright, and whatever goes wrong meanwhile.

with chromium() as browser, opened(browser, url, width=360) as page:
    ...                 # playwright.sync_api.Page
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Response, Route

NAMES = ("chromium", "chromium-browser", "google-chrome")
"""What the system calls the browser; Playwright's own download is not used."""

FLAGS = [
    "--no-sandbox",  # of root, as in a container
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-gpu",
    "--disable-sync",
    "--no-first-run",
]

INSIDE = ("data", "blob", "about")
"""Schemes of addresses that reach no file and no network."""


@contextmanager
def chromium() -> Iterator["Browser"]:
    """The system's Chromium without a window; skips the test, with the reason, where there is none.

    Starting takes a second or two: open several pages in one.
    """
    driver = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"no browser here: none of {', '.join(NAMES)} is on PATH")
    with driver.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def opened(
    browser: "Browser", url: str, width: int = 1_200, height: int = 900, **context: Any
) -> Iterator["Page"]:
    """A page at ``url``, loaded, in a window of ``width`` x ``height`` CSS pixels.

    AssertionError at the end if it logged an error, raised one, met a request that failed or was
    answered with one, or asked for anything beyond its own file or server (which it is not given).
    ``context``: further settings of Playwright's ``new_context``.
    """
    wrong: list[str] = []

    def guard(route: "Route") -> None:
        if _belongs(route.request.url, url):
            route.continue_()
        else:
            wrong.append(f"request elsewhere: {route.request.url}")
            route.abort()

    def logged(message: "ConsoleMessage") -> None:
        if message.type == "error":
            wrong.append(f"console: {message.text}")

    def failed(request: "Request") -> None:
        wrong.append(f"request failed: {request.url}: {request.failure}")

    def answered(response: "Response") -> None:
        if response.status >= 400:
            wrong.append(f"answer {response.status}: {response.url}")

    window = browser.new_context(viewport={"width": width, "height": height}, **context)
    try:
        window.route("**/*", guard)
        page = window.new_page()
        page.on("console", logged)
        page.on("pageerror", lambda error: wrong.append(f"error: {error}"))
        page.on("requestfailed", failed)
        page.on("response", answered)
        page.goto(url)
        yield page
    finally:
        window.close()
    assert not wrong, f"{url}:\n" + "\n".join(wrong)


def _belongs(url: str, page: str) -> bool:
    asked, own = urlsplit(url), urlsplit(page)
    if asked.scheme in INSIDE:
        return True
    if own.scheme == "file":
        return (asked.scheme, asked.path) == (own.scheme, own.path)
    return (asked.scheme, asked.netloc) == (own.scheme, own.netloc)


def broken_pictures(page: "Page") -> list[str]:
    """Alternative texts of pictures that did not load."""
    broken: list[str] = page.evaluate(
        "() => [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt)"
    )
    return broken


def sideways(page: "Page") -> int:
    """By how many CSS pixels the page is wider than its window."""
    wider: int = page.evaluate(
        "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
    )
    return wider
