"""Short runs of the fault injection, which tests.reliability.faults.run does at length."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.reliability.crash_recovery import kill_rounds, server_launches
from tests.reliability.faults.cases import CASES, NEEDS_ROOT, Case

pytestmark = [pytest.mark.slow, pytest.mark.integration]


@pytest.mark.parametrize("run_case", CASES, ids=lambda case: case.__name__)
def test_fault_does_what_the_documentation_says(
    run_case: Callable[[Path], Case], tmp_path: Path
) -> None:
    case = run_case(tmp_path)
    if case.observed == NEEDS_ROOT:
        pytest.skip(NEEDS_ROOT)
    assert case.passed, case.observed


def test_killed_servers_lose_no_acknowledged_change(tmp_path: Path) -> None:
    tally = kill_rounds(server_launches(str(tmp_path / "s.sqlite"), tmp_path, 8, 1), seed=0)
    assert (tally.rounds, tally.lost, tally.partial) == (8, 0, 0)
    assert tally.creates + tally.replacements > 0
