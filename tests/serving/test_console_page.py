"""The console's page in headless Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from engine.registry.catalog import read_catalog
from modelsat import Client
from tests.support.browser import Console, showing, showing_guarded
from tools.processes import BUNDLE

pytestmark = pytest.mark.browser

CATALOG = read_catalog(BUNDLE / "zoo.json")
QUESTION = "If 3x + 7 = 22, what is x?"


@pytest.fixture(scope="module")
def console(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    with showing(tmp_path_factory.mktemp("console")) as found:
        yield found


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Console]:
    with showing_guarded(tmp_path_factory.mktemp("guarded")) as found:
        yield found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed: install the package chromium")
    with playwright.sync_playwright() as started:
        # Its sandbox needs rights that a container does not have; the page is our own.
        found = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield found
        found.close()


def test_the_page_ranks_a_text_and_shows_a_decision(console: Console, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    complaints: list[str] = []
    requests: list[str] = []
    page.on("console", lambda m: complaints.append(m.text) if m.type != "log" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(console.url)
    page.get_by_label("Instruction").fill("Translate 'cat' to French.")
    page.keyboard.press("Control+Enter")
    rows = page.locator("#ask-ranking tbody tr")
    rows.nth(len(CATALOG) - 1).wait_for()
    best = page.locator("#ask-ranking tr.selected th").inner_text()
    page.get_by_label("Willingness to pay").press("Home")
    page.wait_for_function(
        "best => !document.querySelector('#ask-ranking tr.selected th').innerText.includes(best)",
        arg=best.split()[0],
    )
    with Client(console.server.address) as client:
        answer = client.route(QUESTION)
    with console.watching() as live:
        made = next(d["number"] for d in live if d["decision_id"] == answer.decision_id)
    page.locator("#live-about").get_by_text(f"{made} since the start").wait_for()
    newest = page.locator("#live-table tbody tr").first.inner_text()
    assert answer.selected in newest
    for candidate in CATALOG[:2]:
        page.get_by_label(f"compare {candidate.id}", exact=True).check()
    assert page.locator("#compare-picture .spot.second").count() == len(CATALOG[0].aptitude)
    assert page.locator("#revisions-table tr.selected").count() == 1
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "no sideways scroll"
    page.close()
    assert complaints == []
    assert requests
    assert all(url.startswith(console.url) for url in requests)


def test_the_page_asks_for_a_token_and_keeps_it(guarded: Console, browser: Any) -> None:
    assert guarded.tokens is not None
    page = browser.new_page(ignore_https_errors=True)
    page.goto(guarded.url)
    for token, answer in (("route", "needs 'admin' or 'read'"), ("read", "")):
        page.get_by_role("textbox", name="Token").fill(guarded.tokens[token])
        page.keyboard.press("Enter")
        if answer:
            page.locator("#login-message").get_by_text(answer).wait_for()
    page.locator("#candidates-table tbody tr").nth(len(CATALOG) - 1).wait_for()
    page.reload()
    page.locator("#candidates-table tbody tr").nth(len(CATALOG) - 1).wait_for()
    page.get_by_label("Instruction").fill(QUESTION)
    page.keyboard.press("Control+Enter")
    page.locator("#ask-problem").get_by_text("needs 'admin' or 'route'").wait_for()
    assert not page.locator("#login").is_visible()
    assert page.context.cookies() == []
    page.close()
