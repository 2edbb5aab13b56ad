"""The examples for other gateways fit each other, the server's settings, and where it runs, Envoy.

Their schemas are not in this repository: docs/how-to/other-gateways.md says by which they were
checked.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.cli.main import parser
from engine.serving.settings import Settings
from tests.support.optional_tools import ENVOY, missing, needs
from tools.envoy import BINARY, CONFIG
from tools.processes import ROOT

FOLDER = ROOT / "deploy" / "gateways"
EXAMPLES = sorted(FOLDER.glob("*.yaml"))
EXT_PROC = "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor"
MANAGER = (
    "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager"
    ".v3.HttpConnectionManager"
)


def command_of(file: Path) -> list[str]:
    """Return the arguments of `modelsat serve` in the comment at the beginning."""
    text = file.read_text("utf-8").replace("\\\n#", "")
    line = re.search(r"^# +modelsat (serve .*?)(?: \.\.\.)?$", text, re.M)
    assert line is not None
    return line[1].split()


def everything(value: Any) -> list[Any]:
    """Return every mapping within a document."""
    children = value.values() if isinstance(value, dict) else value
    if not isinstance(value, dict | list):
        return []
    own = [value] if isinstance(value, dict) else []
    return own + [each for child in children for each in everything(child)]


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_routes_match_the_header_that_the_server_sets(file: Path) -> None:
    settings = parser().parse_args(command_of(file))
    header = settings.extproc_model_header or Settings.extproc_model_header
    documents = list(yaml.safe_load_all(file.read_text("utf-8")))
    matched = [m for m in everything(documents) if m.get("name") == header and "value" in m]
    assert len(matched) >= 2
    assert header in file.read_text("utf-8").split("must not", 1)[1]  # from clients, it is removed


def istio_patches() -> dict[str, Any]:
    documents = yaml.safe_load_all((FOLDER / "inference-extension.yaml").read_text("utf-8"))
    (patches,) = [d["spec"]["configPatches"] for d in documents if d["kind"] == "EnvoyFilter"]
    return {each["applyTo"]: each["patch"]["value"] for each in patches}


@pytest.mark.integration
@needs(missing(ENVOY))
def test_envoy_accepts_what_istio_adds(tmp_path: Path) -> None:
    patches = istio_patches()
    config = yaml.safe_load(CONFIG.read_text("utf-8"))
    (listener,) = config["static_resources"]["listeners"]
    listener |= patches["LISTENER"]
    (network,) = listener["filter_chains"][0]["filters"]
    manager = network["typed_config"]
    assert manager["@type"] == patches["NETWORK_FILTER"]["typed_config"]["@type"] == MANAGER
    manager |= patches["NETWORK_FILTER"]["typed_config"]
    added = patches["HTTP_FILTER"]
    ours = {f["typed_config"]["@type"]: f for f in manager["http_filters"]}[EXT_PROC]
    expected = dict(ours["typed_config"])
    service = {"envoy_grpc": {"cluster_name": "modelsat"}}
    assert added["typed_config"] | {"grpc_service": service} == expected
    added["typed_config"]["grpc_service"] = service
    manager["http_filters"] = [added, *[f for f in manager["http_filters"] if f is not ours]]
    file = tmp_path / "envoy.yaml"
    file.write_text(yaml.safe_dump(config))
    command = [str(BINARY), "--mode", "validate", "-c", str(file), "--use-dynamic-base-id"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
