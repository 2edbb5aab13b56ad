"""One's own models behind one's own gateway, by the documentation's files alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reliability.afternoon_envoy import SPEAKERS, play
from tests.support.optional_tools import ENVOY, missing, needs


@pytest.mark.integration
@needs(missing(ENVOY))
def test_behind_envoy_no_request_fails(tmp_path: Path) -> None:
    well, upstream_killed, modelsat_killed = play(tmp_path, seconds=2.5)
    phases = (well, upstream_killed, modelsat_killed)
    assert [phase.failures for phase in phases] == [[], [], []]
    assert min(phase.requests for phase in phases) > 20
    assert well.cut == modelsat_killed.cut == well.repeated == 0
    assert set(well.models) <= SPEAKERS["/v1/chat/completions"] | SPEAKERS["/v1/messages"]
    assert "meta-llama/Llama-3.3-70B-Instruct" in upstream_killed.models
    assert upstream_killed.repeated > 0
    assert "gpt-5-mini" not in modelsat_killed.models
