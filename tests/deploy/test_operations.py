"""What the chart gives operators: rules, dashboard, console, backups, volumes of their own."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.registry.stores.outcomes import OutcomeStore, RecordedOutcome, read_recorded
from tests.deploy.test_deploy import FLEET, TOKENS, objects, pod_of, settings_of
from tests.deploy.test_prometheus import PROMTOOL
from tests.support.deploy_tools import needs_tools, rendered
from tests.support.stores import registry
from tools.processes import ROOT

pytestmark = needs_tools
RULES: dict[str, Any] = {"prometheusRule": {"enabled": True}}
RUNBOOKS = ROOT / "docs" / "how-to" / "alerts.md"


def rules_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    groups = found["PrometheusRule/demo-modelsat"]["spec"]["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_rules_are_those_of_the_prometheus_folder(tmp_path: Path) -> None:
    found = objects(RULES)
    files = [ROOT / "deploy" / "prometheus" / name for name in ("alerts.yml", "slo.yml")]
    groups = [g for f in files for g in yaml.safe_load(f.read_text("utf-8"))["groups"]]
    assert found["PrometheusRule/demo-modelsat"]["spec"]["groups"] == groups
    if PROMTOOL:
        file = tmp_path / "rules.yml"
        file.write_text(yaml.safe_dump(found["PrometheusRule/demo-modelsat"]["spec"]))
        command = [PROMTOOL, "check", "rules", str(file)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_rules_can_be_labelled_left_out_and_added_to() -> None:
    mine = {"name": "mine", "rules": [{"record": "a:b", "expr": "vector(1)"}]}
    more = {
        "enabled": True,
        "labels": {"release": "prometheus"},
        "alertLabels": {"team": "platform"},
        "disabled": ["ModelsatInputDrift", "ModelsatLatencyBurnsSlowly"],
        "extraGroups": [mine],
    }
    found = objects({"prometheusRule": more})
    assert found["PrometheusRule/demo-modelsat"]["metadata"]["labels"]["release"] == "prometheus"
    rules = rules_of(found)
    assert rules[-1] == mine["rules"][0]
    alerts = {rule["alert"]: rule["labels"] for rule in rules if "alert" in rule}
    assert len(alerts) == len([r for r in rules_of(objects(RULES)) if "alert" in r]) - 2
    assert not {"ModelsatInputDrift", "ModelsatLatencyBurnsSlowly"} & alerts.keys()
    assert all(labels["team"] == "platform" and "severity" in labels for labels in alerts.values())
    refused = rendered({**TOKENS, "prometheusRule": {**more, "disabled": ["ModelsatInputDrifts"]}})
    assert "names no alert of the chart: ModelsatInputDrifts" in refused["refused"]


def test_every_alert_leads_to_a_section_of_the_runbooks() -> None:
    headings, section = {}, ""
    for line in RUNBOOKS.read_text("utf-8").splitlines():
        if title := re.match(r"#+ (.*)", line):
            section = re.sub(r"[^a-z0-9 -]", "", title[1].lower()).replace(" ", "-")
            headings[section] = title[1]
        elif section:
            headings[section] += f"\n{line}"
    for rule in rules_of(objects(RULES)):
        if "alert" in rule:
            page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
            assert page.endswith("/docs/how-to/alerts.md")
            assert rule["alert"] in headings[anchor], "the section says which alert it is about"


def test_dashboard_is_the_file_and_grafana_s_sidecar_finds_it() -> None:
    found = objects({"dashboard": {"enabled": True, "annotations": {"grafana_folder": "LLM"}}})
    config = found["ConfigMap/demo-modelsat-dashboard"]
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert config["metadata"]["annotations"] == {"grafana_folder": "LLM"}
    file = ROOT / "deploy" / "grafana" / "modelsat.json"
    assert json.loads(config["data"]["modelsat.json"]) == json.loads(file.read_text("utf-8"))


@pytest.mark.parametrize("values", [{}, FLEET], ids=["plain text", "tls"])
def test_console_has_a_service_that_few_may_reach(values: dict[str, Any]) -> None:
    assert "Service/demo-modelsat-console" not in objects(values)
    hosts = ["routing.example.com", "console"]
    found = objects({**values, "console": {"enabled": True, "hosts": hosts}})
    _, container = pod_of(found)
    settings = settings_of(container)
    assert settings.console_address == "0.0.0.0:8071"
    assert settings.console_host_names() == hosts
    (port,) = found["Service/demo-modelsat-console"]["spec"]["ports"]
    assert port["appProtocol"] == ("https" if "tls" in values else "http")
    assert port["targetPort"] in {p["name"] for p in container["ports"]}
    (rule,) = (
        rule
        for rule in found["NetworkPolicy/demo-modelsat"]["spec"]["ingress"]
        if rule["ports"][0]["port"] == "console"
    )
    assert rule["from"] == [{"podSelector": {"matchLabels": {"modelsat-console": "true"}}}]


def test_volumes_and_variables_of_one_s_own_reach_the_pod_and_the_backups() -> None:
    values = {
        "store": {"urlSecret": "db-app", "urlKey": "uri"},
        "backup": {"enabled": True},
        "extraVolumes": [{"name": "ca", "configMap": {"name": "db-ca"}}],
        "extraVolumeMounts": [{"name": "ca", "mountPath": "/etc/postgres", "readOnly": True}],
        "extraEnv": [{"name": "OTEL_RESOURCE_ATTRIBUTES", "value": "team=platform"}],
    }
    found = objects(values)
    spec, container = pod_of(found)
    backup = found["CronJob/demo-modelsat-backup"]["spec"]["jobTemplate"]["spec"]["template"]
    (copying,) = backup["spec"]["containers"]
    key = {"secretKeyRef": {"name": "db-app", "key": "uri"}}
    stores = [
        {"name": name, "valueFrom": key}
        for name in ("MODELSAT_CANDIDATES_DB", "MODELSAT_OUTCOMES_DB")
    ]
    assert copying["env"] == stores
    assert all(entry in container["env"] for entry in [*stores, *values["extraEnv"]])
    for pod, box in ((spec, container), (backup["spec"], copying)):
        assert values["extraVolumes"][0] in pod["volumes"]
        assert values["extraVolumeMounts"][0] in box["volumeMounts"]
        assert {m["name"] for m in box["volumeMounts"]} == {v["name"] for v in pod["volumes"]}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"store": {"persistence": {"enabled": False}}}, "backup.enabled needs store.urlSecret"),
        ({"backup": {"enabled": True, "schedule": "daily"}}, "schedule"),
        ({"backup": {"enabled": True, "keep": 0}}, "keep"),
        ({"console": {"hosts": ["https://routing.example.com"]}}, "hosts"),
        ({"prometheusRule": {"labels": ["release"]}}, "prometheusRule"),
        ({"extraVolumes": {"name": "ca"}}, "extraVolumes"),
        ({"settings": {"console_address": "0.0.0.0:80"}}, "console_address"),
    ],
)
def test_values_for_operators_that_cannot_work_are_refused(
    values: dict[str, Any], message: str
) -> None:
    assert message in rendered({**TOKENS, "backup": {"enabled": True}, **values})["refused"]


def test_no_service_and_no_budget_selects_the_pod_of_a_backup() -> None:
    found = objects({"backup": {"enabled": True}, "console": {"enabled": True}})
    job = found["CronJob/demo-modelsat-backup"]["spec"]["jobTemplate"]["spec"]["template"]
    labels = job["metadata"]["labels"].items()
    selectors = [o["spec"]["selector"] for k, o in found.items() if k.startswith("Service/")]
    selectors += [found["PodDisruptionBudget/demo-modelsat"]["spec"]["selector"]["matchLabels"]]
    assert not any(s.items() <= labels for s in selectors)
    (term,) = job["spec"]["affinity"]["podAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    server = found["Deployment/demo-modelsat"]["spec"]["template"]["metadata"]["labels"]
    assert term["labelSelector"]["matchLabels"].items() <= server.items()


async def test_script_of_the_backup_copies_both_stores_and_keeps_the_newest(
    tmp_path: Path,
) -> None:
    """With the real command, on open SQLite stores; the image has the same shell and tools."""
    candidates, recorded = tmp_path / "c.sqlite", tmp_path / "o.sqlite"
    opened = registry(str(candidates))
    store = OutcomeStore(recorded, 10)
    await store.record(RecordedOutcome("d1", "a", 1.0, "what was asked"))
    found = objects({"backup": {"enabled": True, "keep": 2}})
    job = found["CronJob/demo-modelsat-backup"]["spec"]["jobTemplate"]["spec"]["template"]
    (box,) = job["spec"]["containers"]
    folder = tmp_path / "backups"
    folder.mkdir()
    for kind in ("candidates", "outcomes"):
        for day in ("20260101T000000Z", "20260102T000000Z", "20260103T000000Z"):
            (folder / f"{kind}-{day}.sqlite").touch()
    places = {"MODELSAT_CANDIDATES_DB": str(candidates), "MODELSAT_OUTCOMES_DB": str(recorded)}
    path = f"{ROOT / '.venv' / 'bin'}:{os.environ['PATH']}"
    assert shutil.which("modelsat", path=path)
    script = box["args"][0].replace("/backups", str(folder))
    done = subprocess.run(
        [*box["command"], script],
        env={**os.environ, **places, "PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    kept = sorted(file.name for file in folder.iterdir())
    assert [name for name in kept if "20260103T" in name] == [kept[0], kept[2]]
    assert len(kept) == 4
    assert [r.text for r in read_recorded(folder / kept[3])] == ["what was asked"]
    await store.close()
    await opened.close()
