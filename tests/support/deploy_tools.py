"""Run the tools that check deploy/ and Triton's configuration (`make .venv-deploy/.done`)."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from tests.support.optional_tools import DEPLOY, missing, needs
from tools.processes import ROOT

TOOLS = ROOT / ".venv-deploy" / "bin"
needs_tools = needs(missing(DEPLOY))


def run(*command: str, stdin: str = "") -> str:
    """Run a tool and return its output; a failure of it fails the test with its errors."""
    program, *arguments = command
    done = subprocess.run(
        [str(TOOLS / program), *arguments],
        cwd=ROOT,
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rendered(values: dict[str, Any]) -> dict[str, Any]:
    """Render the chart with `values` by tests/support/helm_render.py."""
    chart = "deploy/helm/modelsat"
    output = run("python", "tests/support/helm_render.py", chart, stdin=json.dumps(values))
    result: dict[str, Any] = json.loads(output)
    return result
