"""Lint and render a chart with Helm's engine, and check the objects by Kubernetes' schemas.

    .venv-deploy/bin/python tests/support/helm_render.py CHART < values.json

Prints {"lint": [...], "objects": [...], "invalid": [...]}, or {"refused": "..."}.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import kubernetes_validate
import yaml
from helm_python import Chart, HelmError, lint

KUBERNETES = "1.34"
WARNING = 2


def render(chart: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return the results of `helm lint --strict`, `helm template` and the schemas."""
    with Chart.load(chart) as loaded:
        try:
            loaded.validate_schema(values)
            files = loaded.render(values, name="demo", namespace="routing")
        except HelmError as error:
            return {"refused": str(error)}
    notes = next(text for name, text in files.items() if name.endswith("NOTES.txt"))
    texts = [text for name, text in files.items() if name.endswith(".yaml")]
    objects = [o for text in texts for o in yaml.safe_load_all(text) if o]
    messages = lint(chart, values, strict=True)["messages"]
    return {
        "lint": [m["error"] for m in messages if m["severity"] >= WARNING],
        "objects": objects,
        "notes": notes,
        "invalid": [problem for o in objects for problem in invalid(o)],
    }


def invalid(manifest: dict[str, Any]) -> list[str]:
    """Return how an object violates Kubernetes' schema; custom resources are not checked."""
    if manifest["apiVersion"].startswith("monitoring.coreos.com"):
        return []
    try:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{manifest['kind']}: {error.message}"]
    return []


if __name__ == "__main__":
    print(json.dumps(render(sys.argv[1], json.load(sys.stdin))))
