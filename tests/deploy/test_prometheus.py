"""A real Prometheus with a real server evaluates every expression of dashboard and alerts."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from modelsat import Client
from tests.conftest import INSTRUCTIONS
from tests.deploy.test_dashboard import panels
from tests.support.deploy_tools import TOOLS
from tests.support.optional_tools import needs
from tools.processes import ROOT, free_port, running, serving

FOLDER = ROOT / "deploy" / "prometheus"
PATH = f"{TOOLS}:/usr/bin:/usr/local/bin"
PROMETHEUS, PROMTOOL = (shutil.which(name, path=PATH) for name in ("prometheus", "promtool"))
pytestmark = [
    pytest.mark.integration,
    needs(
        "" if PROMETHEUS and PROMTOOL else "no prometheus; `make .venv-deploy/.done` gets Debian's"
    ),
]
QUIET = {
    "Failed calls",
    "Candidates set aside",
    "Errors by code",
    "Audit records",
    "Failed reloads",
    "Age of secrets",
    "Outcomes learned from",
    "Age of the newest outcome",
}  # panels without a series on a healthy server
Query = Callable[[str], list[Any]]


def test_the_alerts_fire_when_they_should() -> None:
    tests = ["alerts_test.yml", "slo_test.yml"]
    for arguments in (["check", "config", "prometheus.yml"], ["test", "rules", *tests]):
        done = subprocess.run(
            [str(PROMTOOL), *arguments], cwd=FOLDER, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def query(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Query]:
    """Return a function that queries Prometheus once it has scraped a server with some traffic."""
    folder = tmp_path_factory.mktemp("prometheus")
    metrics, own = (f"127.0.0.1:{free_port()}" for _ in range(2))
    command, log = _command(folder, metrics, own), folder / "prometheus.log"
    with (
        serving(folder / "s.sqlite", "--metrics-address", metrics) as server,
        running(command, log, f"http://{own}/-/ready"),
    ):
        with Client(server.address, timeout_s=30) as client:
            for texts in (INSTRUCTIONS[:4], INSTRUCTIONS[:8]):
                client.route_many(texts)
                client.route(texts[0])
                _await_scrapes(own, metrics, 3)
        yield lambda expression: _ask(own, expression)


def _command(folder: Path, metrics: str, own: str) -> list[str]:
    """Write deploy/prometheus/ with another address and short intervals; return the command."""
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text("utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [metrics]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    for rules in config["rule_files"]:
        shutil.copy(FOLDER / rules, folder)
    return [
        str(PROMETHEUS),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={own}",
    ]


def _await_scrapes(address: str, metrics: str, more: int) -> None:
    """Wait until Prometheus has scraped the server `more` times from now on."""
    begun, deadline = time.time(), time.monotonic() + 60
    expression = f'timestamp(up{{instance="{metrics}"}})'
    seen: set[float] = set()
    while len(seen) < more:
        assert time.monotonic() < deadline, "Prometheus does not scrape the server"
        time.sleep(0.2)
        stamps = [float(found["value"][1]) for found in _ask(address, expression)]
        seen |= {stamp for stamp in stamps if stamp > begun}


def _ask(address: str, expression: str) -> list[Any]:
    url = f"http://{address}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(url, timeout=20) as answer:
        body = json.load(answer)
    assert body["status"] == "success", body
    found: list[Any] = body["data"]["result"]
    return found


def test_every_panel_of_the_dashboard_has_data(query: Query) -> None:
    assert query("up")[0]["value"][1] == "1"
    silent = set()
    for panel in panels():
        for target in panel.get("targets", ()):
            expression = target["expr"].replace("$instance", ".*").replace("$__rate_interval", "1m")
            if not query(expression):
                silent.add(panel["title"])
    assert silent <= QUIET, silent


def test_no_alert_fires_on_a_healthy_server(query: Query) -> None:
    files = [
        yaml.safe_load((FOLDER / name).read_text("utf-8")) for name in ("alerts.yml", "slo.yml")
    ]
    rules = [rule for file in files for group in file["groups"] for rule in group["rules"]]
    alerts = {rule["alert"]: rule["expr"] for rule in rules if "alert" in rule}
    assert [name for name, expression in alerts.items() if query(expression)] == []
    recorded = [r["record"] for r in rules if "record" in r and "extproc" not in r["record"]]
    silent = [name for name in recorded if "rate5m" in name and not query(name)]
    assert silent == []
    assert query('ALERTS{alertstate="firing"}') == []
