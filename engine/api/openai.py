"""Read the turns of a request body; engine.api.conversation has everything else that it says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from engine.api.conversation.body import from_body
from engine.api.conversation.conversation import Role


def turns(body: Mapping[str, Any]) -> list[tuple[Role, str]]:
    """Return (role, text) of each turn that has text, oldest first."""
    said = [(turn.role, turn.text) for turn in from_body(body).turns]
    return [(role, text) for role, text in said if text.strip()]
