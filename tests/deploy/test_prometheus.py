"""A real Prometheus on a real server is asked every expression of dashboard and alerts."""

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
pytestmark = needs(
    "" if PROMETHEUS and PROMTOOL else "no prometheus; `make .venv-deploy/.done` gets Debian's"
)
QUIET = {"Errors by code", "Audit records"}  # panels without a series on a server that is well
Query = Callable[[str], list[Any]]


def test_the_alerts_fire_when_they_should() -> None:
    for arguments in (["check", "config", "prometheus.yml"], ["test", "rules", "alerts_test.yml"]):
        done = subprocess.run(
            [str(PROMTOOL), *arguments], cwd=FOLDER, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def query(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Query]:
    """What Prometheus answers, once it has read a server with some traffic on it for a while."""
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
                _await_scrapes(own, metrics, 3)
        yield lambda expression: _ask(own, expression)


def _command(folder: Path, metrics: str, own: str) -> list[str]:
    """deploy/prometheus/ as it is, but for the address and a faster clock."""
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text("utf-8"))
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["scrape_configs"][0]["static_configs"] = [{"targets": [metrics]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(FOLDER / "alerts.yml", folder)
    return [
        str(PROMETHEUS),
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={own}",
    ]


def _await_scrapes(address: str, metrics: str, more: int) -> None:
    """Until Prometheus has read the server `more` times from now on."""
    begun, deadline = time.time(), time.monotonic() + 60
    asked = f'timestamp(up{{instance="{metrics}"}})'
    seen: set[float] = set()
    while len(seen) < more:
        assert time.monotonic() < deadline, "Prometheus does not read the server"
        time.sleep(0.2)
        stamps = [float(found["value"][1]) for found in _ask(address, asked)]
        seen |= {stamp for stamp in stamps if stamp > begun}


def _ask(address: str, expression: str) -> list[Any]:
    url = f"http://{address}/api/v1/query?" + urllib.parse.urlencode({"query": expression})
    with urllib.request.urlopen(url, timeout=20) as answer:
        body = json.load(answer)
    assert body["status"] == "success", body
    found: list[Any] = body["data"]["result"]
    return found


def test_every_panel_of_the_dashboard_shows_something(query: Query) -> None:
    assert query("up")[0]["value"][1] == "1"
    silent = set()
    for panel in panels():
        for target in panel.get("targets", ()):
            asked = target["expr"].replace("$instance", ".*").replace("$__rate_interval", "1m")
            if not query(asked):
                silent.add(panel["title"])
    assert silent <= QUIET, silent


def test_no_alert_fires_on_a_server_that_is_well(query: Query) -> None:
    (group,) = yaml.safe_load((FOLDER / "alerts.yml").read_text("utf-8"))["groups"]
    assert {rule["alert"]: query(rule["expr"]) for rule in group["rules"]} == {
        rule["alert"]: [] for rule in group["rules"]
    }
    assert query('ALERTS{alertstate="firing"}') == []
