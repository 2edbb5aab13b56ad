"""What `make test` installs beside the package where it can, each in a folder of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tools.processes import ROOT

ENVOY = ROOT / ".venv-envoy" / ".done"
LITELLM = ROOT / ".venv-litellm" / ".done"
DEPLOY = ROOT / ".venv-deploy" / ".done"
NODE_EXAMPLE = ROOT / "examples" / "node"
NODE_PACKAGES = NODE_EXAMPLE / "node_modules" / ".package-lock.json"


def missing(tool: Path) -> str:
    """Why a test cannot run; empty where `tool`, a target of the Makefile, is built."""
    return "" if tool.exists() else f"`make {tool.relative_to(ROOT)}` was not made, or failed"


def needs(reason: str) -> pytest.MarkDecorator:
    """Skips for `reason`, unless it is empty.

    With MODELSAT_REQUIRE_TOOLS=1, as in CI, the collection fails instead.
    """
    if reason and os.environ.get("MODELSAT_REQUIRE_TOOLS") == "1":
        pytest.fail(f"MODELSAT_REQUIRE_TOOLS=1, but {reason}", pytrace=False)
    return pytest.mark.skipif(bool(reason), reason=reason)
