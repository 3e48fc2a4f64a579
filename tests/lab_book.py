"""What README shows of MLflow's UI, done by a browser as a user would do it.

``python -m tests.lab_book docs/images`` takes the pictures anew.
"""

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.mlflow_servers import free_port
from tests.browser import chromium
from tests.servers import serving
from tests.small_project import ROOT, copy_project

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page, Route

PICTURES = ("runs.png", "comparison.png", "curves.png", "figure.png", "model.png")
TIMEOUT_MS = 60_000


@contextmanager
def user_interface(folder: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """``make ui`` in a copy of the project with some runs: its address, and the links it prints."""
    project = copy_project(folder)
    recorder = str(ROOT / "tests" / "lab_book_runs.py")
    project.run(sys.executable, "-P", recorder, PYTHONPATH=str(folder))
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    log = folder / "ui.log"
    make = ["make", "--old-file=.venv/.installed", "ui", f"PORT={port}"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with serving(*make, url=f"{address}/health", cwd=folder, log=log, PATH=path):
        yield address, dict(re.findall(r"^(\w+) +(http\S+)$", log.read_text(), re.MULTILINE))


def look(browser: "Browser", address: str, links: dict[str, str], pictures: Path) -> list[str]:
    """Go through the pages and save ``PICTURES``; returns what was asked from elsewhere."""
    from playwright.sync_api import expect

    elsewhere: list[str] = []

    def guard(route: "Route") -> None:
        if route.request.url.startswith(f"{address}/"):
            route.continue_()
        else:
            elsewhere.append(route.request.url)
            route.abort()

    expect.set_options(timeout=TIMEOUT_MS)
    window = browser.new_context(viewport={"width": 1480, "height": 700})
    window.set_default_timeout(TIMEOUT_MS)
    window.route(re.compile("^https?:"), guard)
    page = window.new_page()
    page.goto(links["results"])
    # the first visit from this machine opens MLflow's chat
    page.get_by_role("button", name="Close").click()
    page.get_by_role("button", name="Toggle sidebar").click()
    _runs(page, pictures)
    _comparison(page, pictures)
    _curves(page, links["curves"], pictures)
    _figure(page, links["results"], pictures)
    _model(page, links["models"], pictures)
    window.close()
    return elsewhere


def _runs(page: "Page", pictures: Path) -> None:
    from playwright.sync_api import expect

    page.get_by_role("button", name="Hide banner").click()
    for column in ("NM_rank1", "p_pretrain", "p_finetune", "finetune.lr"):
        expect(page.get_by_role("columnheader", name=column, exact=True).first).to_be_visible()
    expect(page.get_by_role("link", name="evaluate-casia_e")).to_have_count(3)
    for value in ("77.3", "0.003"):
        expect(page.get_by_role("gridcell", name=value, exact=True)).to_be_visible()
    page.screenshot(path=pictures / "runs.png")


def _comparison(page: "Page", pictures: Path) -> None:
    from playwright.sync_api import expect

    for _ in range(3):
        page.get_by_label("Press Space to toggle row selection (unchecked)").first.click()
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_role("heading", name="Comparing 3 Runs from 1 Experiment")).to_be_visible()
    expect(page.get_by_role("tab", name="Parallel Coordinates Plot")).to_be_visible()
    axes = page.locator(".axis-title")  # Plotly's: the page chose what differs, and a metric
    expect(axes).to_have_text(["finetune.lr", re.compile("_rank1$")])
    page.screenshot(path=pictures / "comparison.png")


def _curves(page: "Page", link: str, pictures: Path) -> None:
    from playwright.sync_api import expect

    page.goto(link)
    page.get_by_role("button", name="Hide banner").click()
    chart = page.get_by_test_id("experiment-view-compare-runs-card").first
    expect(chart.get_by_text("finetune-casia_e (p)")).to_have_count(3)
    eyes = page.locator("label:has(.is-visibility-toggle-checkbox)")
    expect(eyes).to_have_count(4)
    for newest in range(2):
        eyes.nth(newest).click()
    expect(chart.get_by_text("finetune-casia_e (p)")).to_have_count(1)
    expect(chart.get_by_text("pretrain-oumvlp (p)")).to_have_count(1)
    expect(chart.get_by_text("Step", exact=True)).to_be_visible()
    page.screenshot(path=pictures / "curves.png")


def _figure(page: "Page", link: str, pictures: Path) -> None:
    from playwright.sync_api import expect

    page.goto(link)
    page.get_by_role("link", name="evaluate-casia_e").first.click()
    page.get_by_role("tab", name="Artifacts").click()
    page.get_by_text("figures", exact=True).click()
    page.get_by_text("rank1_nm.png", exact=True).click()
    figure = page.get_by_alt_text("figures/rank1_nm.png")
    expect(figure).to_be_visible()
    assert figure.evaluate("image => image.decode().then(() => image.naturalWidth)") > 0
    path = page.get_by_text("Path: file:")  # where the runs lie on this machine
    page.screenshot(path=pictures / "figure.png", mask=[path], mask_color="#ffffff")


def _model(page: "Page", link: str, pictures: Path) -> None:
    from playwright.sync_api import expect

    page.goto(link)
    page.get_by_role("dialog").get_by_role("button", name="Close").click()  # what is new here
    page.get_by_role("link", name="gaitgl", exact=True).click()
    expect(page.get_by_role("heading", name="gaitgl")).to_be_visible()
    expect(page.get_by_text("champion").first).to_be_visible()
    page.screenshot(path=pictures / "model.png")


def main() -> None:
    with (
        chromium() as browser,
        tempfile.TemporaryDirectory() as folder,
        user_interface(Path(folder)) as (address, links),
    ):
        elsewhere = look(browser, address, links, Path(sys.argv[1]))
    print(f"asked from elsewhere: {elsewhere or 'nothing'}")


if __name__ == "__main__":
    main()
