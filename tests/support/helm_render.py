"""Helm's own engine on a chart: lint, values.schema.json, template; then Kubernetes' schemas.

    .venv-deploy/bin/python tests/support/helm_render.py CHART < values.json

prints {"lint": [...], "objects": [...], "invalid": [...]}, or {"refused": "..."}.
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
    """What `helm lint --strict`, `helm template` and a strict look at every object say."""
    with Chart.load(chart) as loaded:
        try:
            loaded.validate_schema(values)
            files = loaded.render(values, name="demo", namespace="routing")
        except HelmError as error:
            return {"refused": str(error)}
    notes = next(text for name, text in files.items() if name.endswith("NOTES.txt"))
    texts = [text for name, text in files.items() if name.endswith(".yaml")]
    objects = [o for text in texts for o in yaml.safe_load_all(text) if o]
    found = lint(chart, values, strict=True)["messages"]
    return {
        "lint": [m["error"] for m in found if m["severity"] >= WARNING],
        "objects": objects,
        "notes": notes,
        "invalid": [problem for o in objects for problem in invalid(o)],
    }


def invalid(found: dict[str, Any]) -> list[str]:
    """What Kubernetes' schema does not allow in an object; custom resources have none here."""
    if found["apiVersion"].startswith("monitoring.coreos.com"):
        return []
    try:
        kubernetes_validate.validate(found, KUBERNETES, strict=True)
    except kubernetes_validate.ValidationError as error:
        return [f"{found['kind']}: {error.message}"]
    return []


if __name__ == "__main__":
    print(json.dumps(render(sys.argv[1], json.load(sys.stdin))))
