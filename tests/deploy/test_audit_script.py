"""The verdicts of .ci/audit on pip-audit's reports; pip-audit itself calls the first one clean."""

from __future__ import annotations

import json
from runpy import run_path
from typing import Any

import pytest

from tools.processes import ROOT

UNKNOWN = {"name": "a", "skip_reason": "Dependency not found on PyPI and could not be audited"}
CLEAN = {"name": "b", "version": "1", "vulns": []}
FLAWED = {"name": "c", "version": "2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3"]}]}


@pytest.mark.parametrize(
    ("packages", "status", "words"),
    [
        ([UNKNOWN, UNKNOWN], 0, "skipped, the service knows none of the 2"),
        ([CLEAN, UNKNOWN], 0, "1 packages without a known vulnerability; not known to the"),
        ([CLEAN, FLAWED, UNKNOWN], 1, "c 2: PYSEC-1, fixed in 3"),
        (None, 0, "skipped, the service cannot be reached"),
    ],
)
def test_audit_fails_on_findings_and_skips_what_no_service_knows(
    packages: Any, status: int, words: str
) -> None:
    verdict = run_path(str(ROOT / ".ci" / "audit"))["verdict"]
    output = "" if packages is None else json.dumps({"dependencies": packages, "fixes": []})
    code, line = verdict(output, "requests.exceptions.ConnectionError: no route")
    assert code == status
    assert words in line
    assert verdict("", "No module named pip_audit") == (
        2,
        "pip-audit failed: No module named pip_audit",
    )
