"""The console's page in headless Chromium."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.api.usage import Usage
from engine.pb.router_service_pb2 import Policy
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
    page.get_by_label("Instruction", exact=True).fill("Translate 'cat' to French.")
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


def test_the_page_begins_with_the_objective_of_the_server(tmp_path: Path, browser: Any) -> None:
    """Kind: a server that weighs costs; the page must not show another choice than Route's."""
    with showing(tmp_path, "--willingness-to-pay-usd", "0.002") as console:
        with Client(console.server.address) as client:
            answer = client.route(QUESTION)
        page = browser.new_page()
        page.goto(console.url)
        page.get_by_label("Objective").get_by_text("own, $0.002 per success").wait_for(
            state="attached"
        )
        page.get_by_role("button", name="Rank").click()
        best = page.locator("#ask-ranking tr.selected th").inner_text()
        page.close()
    assert best.removesuffix("selected") == answer.selected
    most_probable = max(answer.ranking, key=lambda r: r.probability)
    assert answer.selected != most_probable.candidate, "costs count"


OBJECTIVES = {field.name for field in Policy.DESCRIPTOR.oneofs_by_name["objective"].fields}
OUTCOMES = ((1.0, Usage(900, 200)), (0.0, Usage(1500, 400)), (1.0, None))
# Some that the focus reaches, in this order.
STOPS = ("#ask-text", "#ask-ranking", "#live-pause", "#spend-baseline", "#reliability-candidate")


@pytest.fixture(scope="module")
def judged(console: Console) -> Console:
    """A console with outcomes of some decisions."""
    with Client(console.server.address) as client:
        for i, (score, usage) in enumerate(4 * OUTCOMES):
            answer = client.route(f"{QUESTION} Then what is {i} times x?")
            client.record_outcome(answer.decision_id, answer.selected, score, usage=usage)
    return console


def test_the_page_shows_spend_savings_and_reliability(judged: Console, browser: Any) -> None:
    view = judged.get("/api/outcomes")
    assert (view["reports"], view["spend"]["calls"]) == (12, 8)
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.goto(judged.url)
    best, other = view["spend"]["always"][:2]
    about = page.locator("#spend-about")
    about.get_by_text(f"by {best['candidate']} alone").wait_for()
    page.get_by_label("Compare with always").select_option(other["candidate"])
    about.get_by_text(f"by {other['candidate']} alone").wait_for()
    (reliable, *_) = view["reliability"]["candidates"]
    page.get_by_label("Show").select_option(reliable["candidate"])
    row = page.locator("#reliability-table tr.selected").inner_text()
    assert row.split()[0] == reliable["candidate"]
    assert f"{reliable['observed']:.2f}" in row
    page.close()


def test_the_page_ranks_by_each_objective_among_those_allowed(
    console: Console, browser: Any
) -> None:
    ranking = console.route(text=QUESTION)["decision"]["ranking"]
    names = [r["candidate"].split("/")[1] for r in ranking if "expected_cost_usd" in r][:3]
    allowed = [f"candidates/{name}" for name in names]
    page = browser.new_page()
    page.goto(console.url)
    page.get_by_text("Constraints", exact=True).click()
    page.get_by_label("Allowed candidates").fill(f"{names[0]}, candidates/{names[1]} {names[2]}")
    page.get_by_label("Instruction", exact=True).fill(QUESTION)
    for objective, label, limit in (
        ("willingness_to_pay_usd", "", None),
        ("target_probability", "Probability", 0.5),
        ("budget_usd", "US dollars a request", 1.0),
        ("", "", None),
    ):
        page.get_by_label("Objective").select_option(objective)
        if label:
            page.get_by_label(label, exact=True).fill(str(limit))
        with page.expect_response("**/api/route") as answered:
            page.get_by_role("button", name="Rank").click()
        policy = answered.value.request.post_data_json["policy"]
        assert policy["allowed_candidates"] == allowed
        assert {name: policy[name] for name in OBJECTIVES & policy.keys()} == (
            {objective: limit or "Infinity"} if objective else {}
        )
        reason = answered.value.json()["decision"]["reason"]
        page.locator("#ask-reason").get_by_text(reason, exact=True).wait_for()
        assert page.locator("#ask-ranking tbody tr:not(.excluded)").count() == 3
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [420, 1280])
def test_the_page_passes_axe(judged: Console, browser: Any, width: int, scheme: str) -> None:
    """All rules of axe-core, contrast among them, with every section filled and opened."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page.goto(judged.url)
    page.locator("#reliability-table tbody tr").first.wait_for()
    page.get_by_text("Constraints", exact=True).click()
    page.get_by_role("button", name="Rank").click()
    page.locator("#ask-curve polyline").wait_for()
    for candidate in CATALOG[:2]:
        page.get_by_label(f"compare {candidate.id}", exact=True).check()
    violations = axe.run(page).response["violations"]
    assert [(v["id"], [n["target"] for n in v["nodes"]]) for v in violations] == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "no sideways scroll"
    cut = "nodes => nodes.filter(n => n.scrollWidth > n.clientWidth + 1).map(n => n.id)"
    assert page.locator("main .scroll").evaluate_all(cut) == [], "no table is cut off"
    page.close()


def test_the_page_is_used_by_keyboard_alone(judged: Console, browser: Any) -> None:
    page = browser.new_page(viewport={"width": 420, "height": 900})
    page.goto(judged.url)
    page.locator("#reliability-table tbody tr").first.wait_for()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # skips the navigation
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "ask-text"
    page.keyboard.press("Control+Enter")
    page.locator("#ask-ranking tr.selected").wait_for()
    reached = ["ask-text"]
    hidden = []
    while reached[-1] != "revisions-table":
        page.keyboard.press("Tab")
        found, outline = page.evaluate(
            "[document.activeElement.id, getComputedStyle(document.activeElement).outlineStyle]"
        )
        reached.append(found)
        hidden += [found] if outline == "none" else []
        assert len(reached) < 200, reached
    places = [reached.index(stop.removeprefix("#")) for stop in STOPS]
    assert places == sorted(places)
    assert hidden == [], "the focus is always visible"
    page.locator("#live-pause").focus()
    page.keyboard.press("Space")
    assert page.locator("#live-pause").inner_text() == "Resume"
    page.close()


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
    page.get_by_label("Instruction", exact=True).fill(QUESTION)
    page.keyboard.press("Control+Enter")
    page.locator("#ask-problem").get_by_text("needs 'admin' or 'route'").wait_for()
    assert not page.locator("#login").is_visible()
    assert page.context.cookies() == []
    page.close()
