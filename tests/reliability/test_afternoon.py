"""One's own models behind one's own gateway, by the documentation's files alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.reliability import afternoon_litellm
from tests.reliability.afternoon_envoy import SPEAKERS, play
from tests.support.optional_tools import ENVOY, LITELLM, missing, needs


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


@pytest.mark.integration
@needs(missing(LITELLM))
def test_behind_litellm_no_request_fails(tmp_path: Path) -> None:
    well, upstream_killed, modelsat_killed = afternoon_litellm.play(tmp_path, seconds=3)
    phases = (well, upstream_killed, modelsat_killed)
    assert [phase.failures for phase in phases] == [[], [], []]
    assert min(phase.requests for phase in phases) > 10
    assert well.cut == modelsat_killed.cut == well.repeated == 0
    assert upstream_killed.repeated > 0
    assert "auto" in modelsat_killed.models
    assert "auto" not in upstream_killed.models
