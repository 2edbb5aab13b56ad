"""The Grafana dashboard shows what the server exports, no more and no less.

tests/serving/test_telemetry.py compares a real server with the same table.
"""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from engine.serving.telemetry.metrics import BY_NAME
from tools.processes import ROOT

DASHBOARD = ROOT / "deploy" / "grafana" / "modelsat.json"
ROWS = (
    "Traffic and errors",
    "Latency by phase",
    "Queue and batches",
    "Choices",
    "Input drift",
    "Adaptation",
)
NAME = re.compile(r"\b(?:modelsat|process)_\w+")
SUFFIX = re.compile(r"_(?:bucket|sum|count)$")


def panels() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    return found


def test_the_dashboard_queries_every_metric_and_no_other() -> None:
    queried = set()
    for panel in panels():
        for target in panel.get("targets", ()):
            names = NAME.findall(target["expr"])
            assert names, panel["title"]
            for name in names:
                base = SUFFIX.sub("", name)
                metric = BY_NAME[name if name in BY_NAME else base]
                assert (metric.kind == "histogram") == (name != base), name
                queried.add(metric.name)
                for label in re.findall(rf"{name}\{{([^}}]*)\}}", target["expr"]):
                    used = set(re.findall(r'(\w+)(?:=~|!=|!~|=)"', label))
                    assert used <= {*metric.labels, "instance"}, target["expr"]
    unseen = set(BY_NAME) - queried
    assert unseen == {"process_virtual_memory_bytes", "process_start_time_seconds"}


def test_the_panels_are_in_rows_and_do_not_overlap() -> None:
    assert [p["title"] for p in panels() if p["type"] == "row"] == [*ROWS, "Fleet"]
    assert len({p["id"] for p in panels()}) == len(panels())
    cells = [
        (x, y)
        for p in panels()
        for box in [p["gridPos"]]
        for x in range(box["x"], box["x"] + box["w"])
        for y in range(box["y"], box["y"] + box["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
    assert all(p["description"] for p in panels() if p["type"] != "row")


def test_the_page_for_operators_explains_every_alert() -> None:
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yml").read_text("utf-8"))
    alerts = [rule["alert"] for rule in rules["groups"][0]["rules"]]
    page = (ROOT / "docs" / "how-to" / "alerts.md").read_text("utf-8")
    assert re.findall(r"^### (Modelsat\w+)$", page, re.MULTILINE) == alerts
