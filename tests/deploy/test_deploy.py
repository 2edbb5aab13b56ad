"""The chart, as Helm renders it, fits Kubernetes' schemas and the server's own settings."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.api.errors import InvalidInputError
from engine.cli.main import parser
from engine.serving.rpc.listener import LIVENESS, PROBES
from engine.serving.settings import Settings, resolve
from engine.serving.telemetry.metrics import BY_NAME
from tests.support.deploy_tools import needs_tools, rendered, run
from tools.processes import ROOT

pytestmark = needs_tools
FLEET: dict[str, Any] = {
    "replicas": 3,
    "settings": {
        "score_cache_mb": 64,
        "max_recorded_outcomes": 1_000_000,
        "audit_include_text": False,
    },
    "admin": {"exposure": "service"},
    "store": {"urlSecret": "postgres"},
    "tokens": {"secret": "tokens"},
    "tls": {"secret": "server-tls", "clientSecret": "probe-tls", "serverName": "router.example"},
    "autoscaling": {"enabled": True},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "gpu": {"enabled": True},
    "bundle": {"claim": "my-bundle"},
    "podAnnotations": {"note": "yes"},
}
CHART = ROOT / "deploy" / "helm" / "modelsat"
# Set by other values of the chart, or by the image.
SET_BY_VALUES = {
    *("address", "admin_address", "metrics_address", "extproc_address", "bundle"),
    *("console_address", "console_hosts"),
    *("candidates_db", "outcomes_db", "changes_log", "last_table_file"),
    *("auth_tokens_file", "allow_anonymous", "tls_certificate", "tls_key", "tls_client_ca"),
}
TOKENS: dict[str, Any] = {"tokens": {"secret": "tokens"}}
SINGLE: dict[str, Any] = {**TOKENS, "store": {"persistence": {"enabled": False}}}


def objects(values: dict[str, Any]) -> dict[str, Any]:
    """Return kind/name -> object; fail if lint or a schema complains."""
    found = rendered({**TOKENS, **values})
    assert "refused" not in found, found
    assert found["lint"] == []
    assert found["invalid"] == []
    return {f"{o['kind']}/{o['metadata']['name']}": o for o in found["objects"]}


def pod_of(found: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the spec of the pod, and its container."""
    spec = found["Deployment/demo-modelsat"]["spec"]["template"]["spec"]
    return spec, spec["containers"][0]


def settings_of(container: dict[str, Any]) -> Settings:
    """Return the settings that the server reads from the container's environment."""
    environment = {e["name"]: e.get("value", "postgresql://h/d") for e in container["env"]}
    return resolve({}, environment, Path()).settings


@pytest.mark.parametrize("values", [{}, SINGLE, FLEET], ids=["default", "single", "fleet"])
def test_server_accepts_the_environment_and_has_time_to_drain(values: dict[str, Any]) -> None:
    spec, container = pod_of(objects(values))
    settings = settings_of(container)
    pause = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert spec["terminationGracePeriodSeconds"] > settings.shutdown_grace_period_s + pause
    assert (
        spec["enableServiceLinks"] is False
    )  # otherwise MODELSAT_PORT is refused as an unknown setting
    ports = {p["name"]: p["containerPort"] for p in container["ports"]}
    assert settings.address.endswith(f":{ports['grpc']}")
    assert settings.metrics_address.endswith(f":{ports['metrics']}")
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    assert spec["securityContext"]["runAsNonRoot"] is True
    mounts = {m["name"] for m in container["volumeMounts"]}
    assert mounts == {v["name"] for v in spec["volumes"]}


def test_admin_address_is_private_to_the_pod_by_default() -> None:
    found = objects({})
    _, container = pod_of(found)
    assert settings_of(container).admin_address == "127.0.0.1:50052"
    exposed = {
        p["port"] for k, o in found.items() if k.startswith("Service/") for p in o["spec"]["ports"]
    }
    assert exposed == {50051, 9464}
    policy = found["NetworkPolicy/demo-modelsat"]["spec"]["ingress"]
    assert {p["port"] for rule in policy for p in rule["ports"]} == {"grpc", "metrics"}


@pytest.mark.parametrize(
    ("values", "claims", "anonymous"),
    [
        ({}, True, False),
        (SINGLE, False, False),
        (FLEET, False, False),
        ({"tokens": {"allowAnonymous": True}}, True, True),
    ],
    ids=["default", "no volume", "postgresql", "anonymous"],
)
def test_defaults_keep_candidates_and_ask_who_calls(
    values: dict[str, Any], claims: bool, anonymous: bool
) -> None:
    found = objects(values)
    spec, container = pod_of(found)
    assert ("PersistentVolumeClaim/demo-modelsat" in found) is claims
    (state,) = (v for v in spec["volumes"] if v["name"] == "state")
    assert ("persistentVolumeClaim" in state) is claims
    settings = settings_of(container)
    assert settings.allow_anonymous is anonymous
    assert bool(settings.auth_tokens_file.name) is not anonymous
    assert container["resources"]["limits"]["memory"]
    assert settings.changes_log.is_relative_to("/var/lib/modelsat")
    assert settings.last_table_file.is_relative_to("/var/lib/modelsat")


def test_image_refuses_to_serve_anyone() -> None:
    text = (ROOT / "deploy" / "docker" / "Dockerfile").read_text("utf-8")
    environment = dict(re.findall(r"(MODELSAT_[A-Z_]+)=([^ \\\n]+)", text))
    with pytest.raises(InvalidInputError, match=r"--address: is 0\.0\.0\.0:50051"):
        resolve({}, environment, Path())
    settings = resolve({}, {**environment, "MODELSAT_ALLOW_ANONYMOUS": "1"}, Path()).settings
    assert settings.admin_address == "127.0.0.1:50052"
    assert settings.candidates_db == "/var/lib/modelsat/candidates.sqlite"


def test_probes_use_health_names_of_the_server() -> None:
    _, container = pod_of(objects({}))
    probes = {
        name: container[f"{name}Probe"]["grpc"] for name in ("startup", "readiness", "liveness")
    }
    assert {p["port"] for p in probes.values()} == {50051}
    assert [p["service"] for p in probes.values()] == [LIVENESS, "readiness", LIVENESS]
    assert {p["service"] for p in probes.values()} <= set(PROBES)


def test_probes_run_the_health_command_with_tls() -> None:
    """Kubernetes' gRPC probes cannot speak TLS; the command is parsed as in the image."""
    _, container = pod_of(objects(FLEET))
    program, *arguments = container["livenessProbe"]["exec"]["command"]
    parsed = parser().parse_args(arguments)
    assert (program, parsed.service, parsed.server) == ("modelsat", LIVENESS, "localhost:50051")
    assert str(parsed.tls_ca) == "/etc/modelsat/tls/ca.crt"
    assert parsed.tls_server_name == "router.example"
    files = {str(parsed.tls_cert), str(parsed.tls_key)}
    assert files == {"/etc/modelsat/client/tls.crt", "/etc/modelsat/client/tls.key"}


def test_autoscaler_reads_a_metric_that_the_server_exports() -> None:
    found = objects(FLEET)
    assert "replicas" not in found["Deployment/demo-modelsat"]["spec"]
    (metric,) = found["HorizontalPodAutoscaler/demo-modelsat"]["spec"]["metrics"]
    assert BY_NAME[metric["pods"]["metric"]["name"]].kind == "gauge"
    monitor = found["ServiceMonitor/demo-modelsat"]["spec"]
    headless = found["Service/demo-modelsat-headless"]
    assert monitor["selector"]["matchLabels"].items() <= headless["metadata"]["labels"].items()
    assert monitor["endpoints"][0]["port"] in {p["name"] for p in headless["spec"]["ports"]}
    assert headless["spec"]["clusterIP"] == "None"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "nothing asks who calls: set tokens.secret or tls.clientSecret"),
        ({"tls": {"secret": "server"}}, "nothing asks who calls"),
        ({"tokens": {"allowAnonymous": False}}, "nothing asks who calls"),
        ({"tokens": {"allowAnonymous": "no"}}, "allowAnonymous"),
        ({"replicas": 2}, "more than one replica needs store.urlSecret"),
        ({"autoscaling": {"enabled": True}}, "more than one replica needs store.urlSecret"),
        ({"tls": {"clientSecret": "c"}}, "tls.clientSecret needs tls.secret"),
        ({"settings": {"auth_tokens_file": "/file"}}, "invalid propertyName 'auth_tokens_file'"),
        ({"settings": {"nonsense": 3}}, "invalid propertyName 'nonsense'"),
        ({"ports": {"grpc": 70000}}, "ports"),
        ({"persistance": {}}, "persistance"),
    ],
)
def test_values_that_cannot_work_are_refused(values: dict[str, Any], message: str) -> None:
    open_values = {} if "asks" in message or "Anonymous" in message else TOKENS
    assert message in rendered({**open_values, **values})["refused"]


def test_chart_accepts_exactly_the_settings_of_the_server() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text("utf-8"))
    taken = set(schema["properties"]["settings"]["propertyNames"]["enum"])
    known = {f.name for f in fields(Settings)} - SET_BY_VALUES
    assert sorted(known - taken) == [], "add these to settings.propertyNames in the schema"
    assert sorted(taken - known) == [], "in the schema, but not a setting for users of the chart"


def test_gpu_is_reserved_for_the_image_that_uses_it() -> None:
    images = {
        "modelsat:cpu": {},
        "modelsat:gpu": {"gpu": {"enabled": True}},
        "modelsat:mine": {"gpu": {"enabled": True}, "image": {"tag": "mine"}},
    }
    for image, values in images.items():
        found = objects(values)
        (test,) = found["Pod/demo-modelsat-test"]["spec"]["containers"]
        _, container = pod_of(found)
        assert [container["image"], test["image"]] == [image, image]
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) is ("gpu" in values)


def test_helm_test_can_pull_its_image_and_call_the_server() -> None:
    mine = {"podSelector": {"matchLabels": {"app": "gateway"}}}
    secrets = [{"name": "registry"}]
    found = objects({"imagePullSecrets": secrets, "networkPolicy": {"clients": [mine]}})
    pod = found["Pod/demo-modelsat-test"]
    assert pod["spec"]["imagePullSecrets"] == secrets
    labels = pod["metadata"]["labels"].items()
    callers = found["NetworkPolicy/demo-modelsat"]["spec"]["ingress"][0]["from"]
    selectors = [c["podSelector"]["matchLabels"].items() for c in callers]
    assert [s <= labels for s in selectors] == [False, True]
    services = [o["spec"]["selector"] for k, o in found.items() if k.startswith("Service/")]
    assert not any(s.items() <= labels for s in services)


def test_hadolint_finds_nothing_in_the_dockerfile() -> None:
    assert run("hadolint", "deploy/docker/Dockerfile") == ""


def test_image_and_chart_agree() -> None:
    text = (ROOT / "deploy" / "docker" / "Dockerfile").read_text("utf-8")
    spec, container = pod_of(objects({}))
    user = re.search(r"^USER (\d+):(\d+)$", text, re.M)
    assert user is not None
    security = spec["securityContext"]
    assert user.groups() == (str(security["runAsUser"]), str(security["runAsGroup"]))
    state = re.search(r"^VOLUME (\S+)$", text, re.M)
    assert state is not None
    assert state[1] in {m["mountPath"] for m in container["volumeMounts"]}


@pytest.mark.skipif("extproc_address" not in vars(Settings()), reason="no ext_proc in this version")
def test_compose_mounts_existing_files_and_starts_the_server() -> None:
    file = ROOT / "deploy" / "compose" / "compose.yaml"
    services = yaml.safe_load(file.read_text("utf-8"))["services"]
    mounts = [v.split(":")[0] for s in services.values() for v in s["volumes"]]
    missing = [m for m in mounts if m.startswith(".") and not (file.parent / m).resolve().exists()]
    assert missing == []
    started = parser().parse_args(services["modelsat"]["command"])
    assert started.fallback == "overload"  # as docs/how-to/envoy.md recommends
    # The image's entrypoint starts as root, and cannot change its user without capabilities.
    assert services["envoy"]["cap_drop"] == ["ALL"]
    assert services["envoy"]["user"] == "101:101"
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text("utf-8"))
    (target,) = config["scrape_configs"][0]["static_configs"][0]["targets"]
    assert f"--metrics-address={target}" in services["modelsat"]["command"]
