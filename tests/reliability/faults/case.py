"""What every fault case reports, and how it asks the server."""

from __future__ import annotations

from dataclasses import dataclass, replace

from engine.api.candidate import Candidate
from modelsat import Client, ModelsatClientError
from tests.reliability.crash_recovery import CATALOG


@dataclass(frozen=True)
class Case:
    """good: whether what was seen is what docs/operations.md says."""

    fault: str
    seen: str
    good: bool


def new(identifier: str) -> Candidate:
    """A candidate to register."""
    return replace(CATALOG[0], id=identifier)


def refusal(client: Client, identifier: str) -> tuple[str, str]:
    """(status, message) of an attempt to register; empty where it went well."""
    try:
        client.create_candidate(new(identifier))
    except ModelsatClientError as error:
        return error.code, str(error)
    return "", ""


def routes(client: Client) -> bool:
    """Whether an instruction is routed."""
    return bool(client.route("Is it still there?").selected)
