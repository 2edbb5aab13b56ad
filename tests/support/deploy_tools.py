"""The environment that checks deploy/ and Triton's configuration; `make .venv-deploy/.done`."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from tests.support.optional_tools import DEPLOY, missing, needs
from tools.processes import ROOT

TOOLS = ROOT / ".venv-deploy" / "bin"
needs_tools = needs(missing(DEPLOY))


def run(*command: str, given: str = "") -> str:
    """What a tool printed; fails with its errors."""
    program, *arguments = command
    done = subprocess.run(
        [str(TOOLS / program), *arguments],
        cwd=ROOT,
        input=given,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rendered(values: dict[str, Any]) -> dict[str, Any]:
    """tests/support/helm_render.py on our chart."""
    chart = "deploy/helm/modelsat"
    found: dict[str, Any] = json.loads(
        run("python", "tests/support/helm_render.py", chart, given=json.dumps(values))
    )
    return found
