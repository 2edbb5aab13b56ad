"""Tools in environments of their own, without which some tests are skipped."""

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
    """Return why a test cannot run; empty if `tool`, a target of the Makefile, is built."""
    return "" if tool.exists() else f"`make {tool.relative_to(ROOT)}` was not made, or failed"


def needs(reason: str) -> pytest.MarkDecorator:
    """Return a mark that skips a test for `reason`, unless that is empty.

    With MODELSAT_REQUIRE_TOOLS=1, as in CI, the collection fails instead.
    """
    if reason and os.environ.get("MODELSAT_REQUIRE_TOOLS") == "1":
        pytest.fail(f"MODELSAT_REQUIRE_TOOLS=1, but {reason}", pytrace=False)
    return pytest.mark.skipif(bool(reason), reason=reason)
