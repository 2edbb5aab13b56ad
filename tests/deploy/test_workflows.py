"""GitHub ignores a workflow that is not valid YAML, and nothing else would say so."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tools.processes import ROOT


@pytest.mark.parametrize(
    "workflow", sorted((ROOT / ".github" / "workflows").glob("*.yml")), ids=lambda path: path.name
)
def test_every_step_of_a_workflow_runs_or_uses_something(workflow: Path) -> None:
    jobs = yaml.safe_load(workflow.read_text("utf-8"))["jobs"]
    assert jobs
    for job in jobs.values():
        for step in job.get("steps", ()):
            assert ("run" in step) != ("uses" in step), step
