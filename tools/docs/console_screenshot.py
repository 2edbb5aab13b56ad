"""Draw the picture of docs/how-to/console.md: the web console of a real server, in Chromium.

python -m tools.docs.console_screenshot docs/images/console.png
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from modelsat import Client, Policy
from tools.processes import free_port, serving

TEXT = "If 3x + 7 = 22, what is x?"
REQUESTS = (
    "Write a haiku about rain.",
    "Prove that there are infinitely many primes.",
    "Is a verbal contract for the sale of land enforceable?",
    "Translate 'cat' to French.",
    "Implement binary search in Rust.",
)


def main() -> None:
    """Route some requests, and write the picture to the first argument."""
    (target,) = sys.argv[1:]
    console = f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path="/usr/bin/chromium", args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 1120})
        store = Path(folder) / "candidates.sqlite"
        with serving(store, "--console-address", console) as server:
            page.goto(f"http://{console}/")
            page.get_by_label("Instruction", exact=True).fill(TEXT)
            page.get_by_label("Willingness to pay").fill("60")
            page.get_by_role("button", name="Rank").click()
            page.locator("#ask-curve polyline").wait_for()
            with Client(server.address, timeout_s=30) as client:
                for text in REQUESTS:
                    client.route(text, Policy("willingness_to_pay_usd", 0.1))
            page.locator("#live-table tbody tr").nth(len(REQUESTS) - 1).wait_for()
            page.screenshot(path=target)
        browser.close()


if __name__ == "__main__":
    main()
